//! The cluster at work: namespaces, servers, clients, and an agent on each node.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tests::agent::Agent;
use tests::manifests::Manifests;
use tests::net::{self, Place};
use tests::topology::{Cluster, Node, Pod, Seen, Variant};
use tests::traffic::{Plan, Probe, Server, SocketKind};

use crate::checks::Route;
use crate::signals;

/// How long the agents may take until every path works.
const READY: Duration = Duration::from_secs(20);
/// How long one connection may take while we wait for that.
const TRY_MS: u64 = 300;

/// Who connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// A process in the client pod, seen by the socket hooks.
    Pod,
    /// A process in the client pod that the socket hooks do not see, as in a sandboxed runtime.
    UnseenPod,
    /// A process of n1 itself.
    Node,
    /// The client outside the cluster.
    Outside,
}

/// Everything that runs. Dropping it removes it all, unless it was kept.
pub struct Stage {
    agents: Vec<Agent>,
    clients: Vec<(Client, Probe)>,
    servers: Vec<Probe>,
    /// The pod that connects.
    pub pod: Pod,
    /// The namespaces; last, so that they go when nothing runs in them.
    pub cluster: Cluster,
}

impl Stage {
    /// Builds the cluster with its pods.
    pub fn build() -> Result<Self> {
        let mut cluster = Cluster::new(Variant::default())?;
        signals::owns(cluster.sandbox().name());
        for (node, name) in [(0, "web-1"), (0, "web-2"), (1, "web-3")] {
            cluster.add_pod(node, name)?;
        }
        let pod = cluster.add_pod(1, "shopper")?;
        Ok(Self {
            cluster,
            pod,
            servers: Vec::new(),
            clients: Vec::new(),
            agents: Vec::new(),
        })
    }

    /// Starts a server at every endpoint of the manifests; each calls itself by its address.
    pub fn start_servers(&mut self, manifests: &crate::manifests::Manifests) -> Result<()> {
        for pod in &self.cluster.pods {
            let place = pod.place(Seen::BySocketHooks);
            let own = [IpAddr::V4(pod.addresses.v4), IpAddr::V6(pod.addresses.v6)];
            let mut probe = Probe::start(place)?;
            for endpoint in manifests
                .endpoints()
                .iter()
                .filter(|e| own.contains(&e.at.ip()))
            {
                let is_udp = endpoint.protocol == "UDP";
                let socket = if is_udp {
                    SocketKind::Udp
                } else {
                    SocketKind::Tcp
                };
                let name = endpoint.at.to_string();
                probe.serve(Server {
                    name,
                    socket,
                    listen: endpoint.at,
                })?;
            }
            self.servers.push(probe);
        }
        Ok(())
    }

    /// Starts an agent on each node and waits until it has read the manifests.
    pub fn start_agents(&mut self, manifests: &Path) -> Result<()> {
        let manifests = Manifests::at(manifests.to_path_buf());
        for node in &self.cluster.nodes {
            self.agents
                .push(Agent::start(&self.cluster, node, &manifests, &[])?);
        }
        Ok(())
    }

    /// Waits until every route is answered. The error says what the agents logged.
    pub fn wait_until_ready(&mut self, routes: &[Route]) -> Result<()> {
        let outcome = net::eventually(READY, || self.all_answer(routes));
        outcome.with_context(|| {
            let log = |agent: &Agent| format!("an agent's log ends:\n{}\n", agent.log_tail());
            self.agents.iter().map(log).collect::<String>()
        })
    }

    fn all_answer(&mut self, routes: &[Route]) -> Result<()> {
        for route in routes {
            let plan = Plan::new(route.socket, route.to).timeout_ms(TRY_MS);
            let report = self.client(route.client)?.connect(plan)?;
            if report.failed() > 0 {
                bail!("{}: {:?}", route.name, report.failures);
            }
        }
        Ok(())
    }

    /// The probe of a client; started when it is first asked for.
    pub fn client(&mut self, client: Client) -> Result<&mut Probe> {
        let found = self.clients.iter().position(|(known, _)| *known == client);
        let index = match found {
            Some(index) => index,
            None => {
                let probe = Probe::start(&self.place(client))?;
                self.clients.push((client, probe));
                self.clients.len() - 1
            }
        };
        Ok(&mut self.clients[index].1)
    }

    fn place(&self, client: Client) -> Place {
        match client {
            Client::Pod => self.pod.place(Seen::BySocketHooks).clone(),
            Client::UnseenPod => self.pod.place(Seen::OnlyAsPackets).clone(),
            Client::Node => self.node(0).place(Seen::BySocketHooks),
            Client::Outside => self.cluster.client.place(),
        }
    }

    /// A node, counted from 0.
    pub fn node(&self, index: usize) -> &Node {
        &self.cluster.nodes[index]
    }

    /// What a command of the agent prints on n1.
    pub fn ask_agent(&self, words: &[&str]) -> Result<String> {
        let agent = self.agents.first().context("no agent was started")?;
        let bpffs = agent.bpffs();
        agent.shunt(&[words, &["--bpffs", &bpffs]].concat())
    }

    /// Leaves the cluster up when this value is dropped and the process is gone.
    pub fn keep(mut self) -> Result<String> {
        self.cluster.keep()?;
        for server in self.servers.drain(..) {
            server.detach()?;
        }
        self.agents.drain(..).for_each(Agent::detach);
        Ok(self.cluster.sandbox().name().to_owned())
    }
}
