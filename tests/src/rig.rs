//! A cluster with everything in it that most tests need: pods with servers, Services over them,
//! and an agent on each node.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;

use crate::agent::Agent;
use crate::manifests::{Manifests, Service};
use crate::net::Place;
use crate::topology::addresses::{self, Addresses, FAMILIES, IpFamily};
use crate::topology::{Cluster, Pod, Seen, Variant};
use crate::traffic::{Probe, Server, SocketKind};

/// Where every pod's servers listen.
pub const TARGET_PORT: u16 = 8080;

const LOOPBACK: Addresses = Addresses {
    v4: Ipv4Addr::LOCALHOST,
    v6: Ipv6Addr::LOCALHOST,
};

/// A cluster in use. The pods are `client` and `a` on n1, `b` and `c` on n2; all of them serve.
#[derive(Debug)]
pub struct Rig {
    /// What was written for the agents.
    pub services: BTreeMap<&'static str, Service>,
    /// On n1 and n2.
    pub agents: Vec<Agent>,
    /// Client processes by where they are, started when they are first needed.
    clients: BTreeMap<Client, Probe>,
    /// One server process per pod, by the pod's name.
    pub servers: BTreeMap<String, Probe>,
    /// The pods by name.
    pub pods: BTreeMap<String, Pod>,
    /// Where the agents read.
    pub manifests: Manifests,
    /// The cluster below.
    pub cluster: Cluster,
}

/// Who connects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Client {
    /// The pod `client` on n1.
    Pod,
    /// The same, unseen by socket hooks.
    PodAsPackets,
    /// A process of n1.
    Node,
    /// The same, unseen by socket hooks.
    NodeAsPackets,
    /// A pod of n1 in the node's own network.
    HostPod,
    /// A process of n2, where pod `a` is remote.
    OtherNode,
    /// The pod `c` on n2.
    OtherPod,
    /// The client on the shared network.
    Outside,
    /// The client on n1's second uplink.
    Outside2,
}

/// What is dialled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    /// A Service's ClusterIP and port.
    ClusterIp(&'static str),
    /// A Service's node port on n1.
    NodePort1(&'static str),
    /// A Service's node port on n2.
    NodePort2(&'static str),
    /// A Service's node port on the address of n1's second uplink.
    Uplink2(&'static str),
    /// A Service's node port on the loopback address of who dials.
    Loopback(&'static str),
    /// A pod's own servers, past every Service.
    Direct(&'static str),
    /// Any address and port.
    At(Addresses, u16),
}

/// Name, number and port of each Service with the pods behind it. All have three different
/// numbers for port, node port (30,000 more) and target port.
const SERVICES: [(&str, u8, u16, &[&str]); 5] = [
    ("all", 10, 80, &["a", "b", "c"]),
    ("near", 11, 81, &["a"]),
    ("far", 12, 82, &["b", "c"]),
    ("self", 13, 83, &["client"]),
    ("empty", 14, 84, &[]),
];

impl Rig {
    /// Builds the cluster and starts an agent on each node with `arguments`.
    pub fn new(variant: Variant, arguments: &[&str]) -> Result<Self> {
        let mut rig = Self::without_agents(variant)?;
        for node in &rig.cluster.nodes {
            rig.agents
                .push(Agent::start(&rig.cluster, node, &rig.manifests, arguments)?);
        }
        Ok(rig)
    }

    /// Builds the cluster with servers and manifests only.
    pub fn without_agents(variant: Variant) -> Result<Self> {
        let mut cluster = Cluster::new(variant)?;
        let mut pods = BTreeMap::new();
        let mut servers = BTreeMap::new();
        for (node, name) in [(0, "client"), (0, "a"), (1, "b"), (1, "c")] {
            let pod = cluster.add_pod(node, name)?;
            servers.insert(name.to_owned(), serve(&pod)?);
            pods.insert(name.to_owned(), pod);
        }
        let manifests = Manifests::new(&cluster)?;
        let mut services = BTreeMap::new();
        for (name, number, port, behind) in SERVICES {
            let service = Service::new(name, number)
                .port(port, 30_000 + port, TARGET_PORT)
                .pods(behind.iter().map(|pod| &pods[*pod]));
            manifests.apply(&service)?;
            services.insert(name, service);
        }
        let clients = BTreeMap::new();
        Ok(Self {
            services,
            agents: Vec::new(),
            clients,
            servers,
            pods,
            manifests,
            cluster,
        })
    }

    /// Starts an agent on each node with `arguments`, and waits for both.
    pub fn start_agents(&mut self, arguments: &[&str]) -> Result<()> {
        for node in &self.cluster.nodes {
            let agent = Agent::start(&self.cluster, node, &self.manifests, arguments)?;
            self.agents.push(agent);
        }
        Ok(())
    }

    /// Starts servers in the network of node `number`, named after it, on the pods' port.
    pub fn serve_on_node(&mut self, number: u8) -> Result<()> {
        let node = &self.cluster.nodes[usize::from(number) - 1];
        let place = node.place(Seen::BySocketHooks);
        let probe = serve_at(&place, &node.name, node.addresses)?;
        self.servers.insert(node.name.clone(), probe);
        Ok(())
    }

    /// The process that plays `client`.
    pub fn client(&mut self, client: Client) -> Result<&mut Probe> {
        if !self.clients.contains_key(&client) {
            let probe = Probe::start(&self.place(client)?)?;
            self.clients.insert(client, probe);
        }
        Ok(self.clients.get_mut(&client).expect("it was just inserted"))
    }

    /// Gives the sockets of `client`'s namespace only 100 ports, the `slice`th of 280 such sets.
    ///
    /// A flow of the packet path is remembered for a while, and a socket that is translated by
    /// itself must not have its port meanwhile.
    pub fn use_ports(&self, client: Client, slice: u16) -> Result<()> {
        let first = 32_768 + slice % 280 * 100;
        self.use_port_range(client, first, first + 99)
    }

    /// Gives the sockets of `client`'s namespace only these ports.
    pub fn use_port_range(&self, client: Client, first: u16, last: u16) -> Result<()> {
        let range = format!("{first} {last}");
        self.place(client)?
            .netns
            .sysctl("net/ipv4/ip_local_port_range", &range)
    }

    /// Address and port of `target`.
    pub fn address(&self, target: Target, family: IpFamily) -> SocketAddr {
        let node_port = |name: &str| self.services[name].ports[0].node_port;
        let (ip, port) = match target {
            Target::ClusterIp(name) => (
                self.services[name].addresses,
                self.services[name].ports[0].port,
            ),
            Target::NodePort1(name) => (addresses::node(1), node_port(name)),
            Target::NodePort2(name) => (addresses::node(2), node_port(name)),
            Target::Uplink2(name) => (addresses::uplink2(11), node_port(name)),
            Target::Loopback(name) => (LOOPBACK, node_port(name)),
            Target::Direct(pod) => (self.pods[pod].addresses, TARGET_PORT),
            Target::At(addresses, port) => (addresses, port),
        };
        (ip.of(family), port).into()
    }

    /// Writes one more Service for the agents, or one that differs.
    pub fn add(&mut self, name: &'static str, service: Service) -> Result<()> {
        self.manifests.apply(&service)?;
        self.services.insert(name, service);
        Ok(())
    }

    /// The Service `name` with these pods behind it instead.
    pub fn behind(&self, name: &str, pods: &[&str]) -> Service {
        self.services[name]
            .clone()
            .pods(pods.iter().map(|pod| &self.pods[*pod]))
    }

    /// The addresses that `client` has itself.
    pub fn own_addresses(&self, client: Client) -> Vec<Addresses> {
        match client {
            Client::Pod | Client::PodAsPackets => vec![self.pods["client"].addresses],
            Client::Node | Client::NodeAsPackets | Client::HostPod => node_addresses(1),
            Client::OtherNode => node_addresses(2),
            Client::OtherPod => vec![self.pods["c"].addresses],
            Client::Outside => vec![self.cluster.client.addresses],
            Client::Outside2 => self
                .cluster
                .client2
                .iter()
                .map(|client| client.addresses)
                .collect(),
        }
    }

    /// Where the processes of `client` run.
    pub fn place(&self, client: Client) -> Result<Place> {
        let [n1, n2] = &self.cluster.nodes;
        let pod = &self.pods["client"];
        Ok(match client {
            Client::Pod => pod.place(Seen::BySocketHooks).clone(),
            Client::PodAsPackets => pod.place(Seen::OnlyAsPackets).clone(),
            Client::Node => n1.place(Seen::BySocketHooks),
            Client::NodeAsPackets => n1.place(Seen::OnlyAsPackets),
            Client::HostPod => Place {
                netns: n1.netns.clone(),
                cgroup: self.cluster.sandbox().cgroup("n1/host-pod")?,
            },
            Client::OtherNode => n2.place(Seen::BySocketHooks),
            Client::OtherPod => self.pods["c"].place(Seen::BySocketHooks).clone(),
            Client::Outside => self.cluster.client.place(),
            Client::Outside2 => self
                .cluster
                .client2
                .as_ref()
                .unwrap_or(&self.cluster.client)
                .place(),
        })
    }
}

/// Every address that a node may use towards pods.
pub fn node_addresses(node: u8) -> Vec<Addresses> {
    let mut all = vec![
        addresses::node(node),
        addresses::bridge(node),
        addresses::vxlan(node),
    ];
    if node == 1 {
        all.push(addresses::uplink2(11));
    }
    all
}

/// Whether one of `all` is `ip`.
pub fn contains(all: &[Addresses], ip: IpAddr) -> bool {
    all.iter()
        .any(|one| FAMILIES.iter().any(|&family| one.of(family) == ip))
}

/// Starts a pod's servers, TCP and UDP of both families, named after the pod.
pub fn serve(pod: &Pod) -> Result<Probe> {
    serve_at(pod.place(Seen::BySocketHooks), &pod.name, pod.addresses)
}

fn serve_at(place: &Place, name: &str, addresses: Addresses) -> Result<Probe> {
    let mut probe = Probe::start(place)?;
    for family in FAMILIES {
        for socket in [SocketKind::Tcp, SocketKind::Udp] {
            probe.serve(Server {
                name: name.to_owned(),
                socket,
                listen: (addresses.of(family), TARGET_PORT).into(),
            })?;
        }
    }
    Ok(probe)
}
