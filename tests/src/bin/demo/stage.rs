//! The cluster at work: namespaces, servers, clients, and an agent on each node.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tests::net::{self, Place};
use tests::topology::{Cluster, Node, Pod, Seen, Variant};
use tests::traffic::{Plan, Probe, Server, SocketKind};

use crate::checks::Route;
use crate::manifests::Manifests;
use crate::signals;

/// How long the agents may take until every path works.
const READY: Duration = Duration::from_secs(20);
/// How long one connection may take while we wait for that.
const TRY_MS: u64 = 300;
/// Lines of an agent's log that are shown when it fails.
const LOG_LINES: usize = 15;

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
    /// The namespaces.
    pub cluster: Cluster,
    /// The pod that connects.
    pub pod: Pod,
    servers: Vec<Probe>,
    clients: Vec<(Client, Probe)>,
    agents: Vec<Child>,
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
    pub fn start_servers(&mut self, manifests: &Manifests) -> Result<()> {
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

    /// Starts an agent on each node.
    pub fn start_agents(&mut self, manifests: &Path) -> Result<()> {
        for node in &self.cluster.nodes {
            let log = File::create(self.log(node)).context("making the agent's log")?;
            let mut command = Command::new(agent_binary()?);
            command
                .arg("agent")
                .arg("--manifests")
                .arg(manifests)
                .args(["--node-name", &node.name]);
            command
                .arg("--bpffs")
                .arg(&node.bpffs)
                .arg("--cgroup")
                .arg(&node.cgroup);
            command
                .stdout(log.try_clone()?)
                .stderr(log)
                .stdin(Stdio::null());
            // The cluster ends it, with everything else in the node's cgroup.
            self.agents
                .push(node.place(Seen::BySocketHooks).spawn(&mut command)?);
        }
        Ok(())
    }

    /// Waits until every route is answered; an agent that ended is reported with its log.
    pub fn wait_until_ready(&mut self, routes: &[Route]) -> Result<()> {
        let outcome = net::eventually(READY, || match self.ended_agent() {
            Some(status) => Ok(Err(anyhow!("an agent ended: {status}"))),
            None => self.all_answer(routes).map(Ok),
        });
        outcome
            .flatten()
            .with_context(|| format!("the agents say:\n{}", self.logs()))
    }

    fn ended_agent(&mut self) -> Option<ExitStatus> {
        self.agents
            .iter_mut()
            .find_map(|agent| agent.try_wait().ok().flatten())
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

    /// Where the log of a node's agent is.
    pub fn log(&self, node: &Node) -> PathBuf {
        self.cluster
            .sandbox()
            .dir()
            .join(format!("agent-{}.log", node.name))
    }

    /// What a command of the agent prints on a node.
    pub fn ask_agent(&self, node: &Node, words: &[&str]) -> Result<String> {
        let binary = agent_binary()?;
        let (binary, bpffs) = (binary.to_string_lossy(), node.bpffs.to_string_lossy());
        let mut line = vec![&*binary];
        line.extend(words);
        line.extend(["--bpffs", &*bpffs]);
        node.netns.run(&line)
    }

    /// Leaves the cluster up when this value is dropped and the process is gone.
    pub fn keep(mut self) -> Result<String> {
        self.cluster.keep()?;
        for server in self.servers.drain(..) {
            server.detach()?;
        }
        Ok(self.cluster.sandbox().name().to_owned())
    }

    fn logs(&self) -> String {
        let tail = |node: &Node| {
            let text = fs::read_to_string(self.log(node)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            format!("{}:\n  {}\n", node.name, last.join("\n  "))
        };
        self.cluster.nodes.iter().map(tail).collect()
    }
}

/// The agent's binary: `SHUNT_BIN`, or beside this program.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHUNT_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("asking for the own path")?;
    Ok(own.with_file_name("shunt"))
}
