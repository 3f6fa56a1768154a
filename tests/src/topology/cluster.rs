//! Two nodes, the network between them, and the clients outside.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::addresses::{self, Addresses, BALANCED4, BALANCED6, PODS4, PODS6, SERVICES4, SERVICES6};
use super::{Device, Node, Offloads, Overlay, Pod, Uplinks, Variant, node};
use crate::net::{Netns, Place, Sandbox, Tunnel};

/// The shared network's own address, the default gateway of the nodes.
const GATEWAY: Addresses = addresses::uplink(1);
/// The VLAN between nodes.
const VLAN: &str = "vlan id 7";
/// First address a pod gets.
const FIRST_POD: u8 = 10;

/// A cluster. Dropping it removes everything it consists of, with all processes in it.
#[derive(Debug)]
pub struct Cluster {
    /// How it is built.
    pub variant: Variant,
    /// n1 and n2.
    pub nodes: [Node; 2],
    /// A client on the shared network, with a plain route of the service ranges and of load
    /// balancers' addresses to n1.
    pub client: Outside,
    /// The client on n1's second uplink, where the variant has one.
    pub client2: Option<Outside>,
    /// The network between them: a bridge that is also the default gateway.
    pub net: Netns,
    /// All pods so far, in the order they were added.
    pub pods: Vec<Pod>,
    next_pod: [u8; 2],
    tunnel: Option<Tunnel>,
    sandbox: Sandbox,
}

/// A machine outside the cluster.
#[derive(Clone, Debug)]
pub struct Outside {
    /// Its namespace.
    pub netns: Netns,
    /// Its addresses.
    pub addresses: Addresses,
    cgroup: PathBuf,
}

impl Outside {
    /// Where its processes run.
    pub fn place(&self) -> Place {
        Place {
            netns: self.netns.clone(),
            cgroup: self.cgroup.clone(),
        }
    }
}

impl Cluster {
    /// Builds the cluster, without pods.
    pub fn new(variant: Variant) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let net = sandbox.netns("net")?;
        net.ip(&format!(
            "link add br0 type bridge mcast_snooping 0\n\
             addr add {}/24 dev br0\n\
             addr add {}/64 dev br0 nodad\n\
             link set br0 up\n",
            GATEWAY.v4, GATEWAY.v6,
        ))?;
        let nodes = [
            Node::new(&sandbox, 1, &variant)?,
            Node::new(&sandbox, 2, &variant)?,
        ];
        let client = Outside {
            netns: sandbox.netns("client")?,
            addresses: addresses::uplink(100),
            cgroup: sandbox.cgroup("outside")?,
        };
        let mut cluster = Self {
            variant,
            nodes,
            client,
            client2: None,
            net,
            pods: Vec::new(),
            next_pod: [FIRST_POD; 2],
            tunnel: None,
            sandbox,
        };
        cluster.connect().context("connecting the cluster")?;
        Ok(cluster)
    }

    /// Adds a pod on `node` (counted from 0 in [`Cluster::nodes`]). Its name is at most ten
    /// letters, and unique.
    pub fn add_pod(&mut self, node: usize, name: &str) -> Result<Pod> {
        let host = self.next_pod[node];
        self.next_pod[node] += 1;
        let pod = Pod::new(&self.sandbox, &self.nodes[node], &self.variant, name, host)
            .with_context(|| format!("adding pod {name}"))?;
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// The node a pod is on.
    pub fn node_of(&self, pod: &Pod) -> &Node {
        &self.nodes[usize::from(pod.node != self.nodes[0].name)]
    }

    /// What owns all namespaces and cgroups.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// As [`Sandbox::keep`].
    pub fn keep(&mut self) -> Result<()> {
        self.sandbox.keep()
    }

    fn connect(&mut self) -> Result<()> {
        if let Overlay::Tun = self.variant.overlay {
            let ends = [&self.nodes[0].netns, &self.nodes[1].netns];
            self.tunnel = Some(Tunnel::new(node::TUN, ends)?);
        }
        for node in &self.nodes {
            self.attach_node(node)?;
            let other = 3 - node.number;
            node.netns.ip(&format!(
                "route add default via {}\nroute add default via {}\n",
                GATEWAY.v4, GATEWAY.v6,
            ))?;
            node.add_pod_network(&self.variant, &[other])?;
            node.add_firewall(self.variant.firewall)?;
        }
        let client = &self.client;
        self.attach(&client.netns, "eth0", "client", client.addresses)?;
        let n1 = self.nodes[0].addresses;
        client.netns.ip(&format!(
            "route add {SERVICES4} via {}\nroute add {SERVICES6} via {}\n\
             route add {BALANCED4} via {}\nroute add {BALANCED6} via {}\n",
            n1.v4, n1.v6, n1.v4, n1.v6,
        ))?;
        self.client2 = match self.variant.uplinks {
            Uplinks::One => None,
            Uplinks::Two => Some(self.add_client2(addresses::uplink2(100))?),
            Uplinks::TwoWithPolicy => Some(self.add_client2(addresses::behind_uplink2(100))?),
        };
        Ok(())
    }

    /// Connects `netns` to the shared network: `link` there, `port` on the bridge.
    fn attach(&self, netns: &Netns, link: &str, port: &str, own: Addresses) -> Result<()> {
        self.add_veth(netns, link, port)?;
        self.net.ip(&format!("link set {port} master br0 up\n"))?;
        address(netns, link, own)
    }

    /// Connects a node by the device that the variant asks for. The bridge is on the other side of
    /// the VLAN too; a bond needs nothing there.
    fn attach_node(&self, node: &Node) -> Result<()> {
        let (netns, port) = (&node.netns, &node.name);
        match self.variant.device {
            Device::Veth => return self.attach(netns, "up0", port, node.addresses),
            Device::Vlan => {
                self.add_veth(netns, "up0-veth", &format!("{port}-veth"))?;
                netns.ip(&format!(
                    "link set up0-veth up\nlink add link up0-veth name up0 type {VLAN}\n"
                ))?;
                self.net.ip(&format!(
                    "link set {port}-veth up\n\
                     link add link {port}-veth name {port} type {VLAN}\n\
                     link set {port} master br0 up\n"
                ))?;
            }
            Device::Bond => {
                netns.ip("link add up0 type bond mode active-backup miimon 50\n")?;
                for number in 0..2 {
                    let (link, port) = (format!("up0-{number}"), format!("{port}-{number}"));
                    self.add_veth(netns, &link, &port)?;
                    self.net.ip(&format!("link set {port} master br0 up\n"))?;
                    netns.ip(&format!("link set {link} master up0\n"))?;
                }
            }
        }
        address(netns, "up0", node.addresses)
    }

    /// A link between `netns` and the shared network.
    fn add_veth(&self, netns: &Netns, link: &str, port: &str) -> Result<()> {
        self.net.ip(&format!(
            "link add {port} type veth peer name {link} netns {}\n",
            netns.name(),
        ))?;
        set_offloads(&self.variant, &self.net, port)?;
        set_offloads(&self.variant, netns, link)
    }

    /// Adds n1's second uplink with a client on it. A client whose address is not in the link's
    /// network is "behind the router" that the link's other end plays.
    fn add_client2(&self, own: Addresses) -> Result<Outside> {
        let n1 = &self.nodes[0];
        let netns = self.sandbox.netns("client2")?;
        let (node, peer) = (addresses::uplink2(11), addresses::uplink2(100));
        n1.netns.ip(&format!(
            "link add up1 type veth peer name eth0 netns {}\n\
             link set up1 up\n\
             addr add {}/24 dev up1\n\
             addr add {}/64 dev up1 nodad\n",
            netns.name(),
            node.v4,
            node.v6,
        ))?;
        set_offloads(&self.variant, &n1.netns, "up1")?;
        set_offloads(&self.variant, &netns, "eth0")?;
        netns.ip(&format!(
            "link set eth0 up\n\
             addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             route add {SERVICES4} via {}\n\
             route add {SERVICES6} via {}\n",
            peer.v4, peer.v6, node.v4, node.v6,
        ))?;
        if own != peer {
            self.add_policy(&netns, own)?;
        }
        Ok(Outside {
            netns,
            addresses: own,
            cgroup: self.client.cgroup.clone(),
        })
    }

    /// Gives the second client an address behind its link, and n1 the rule that leads to it.
    fn add_policy(&self, netns: &Netns, own: Addresses) -> Result<()> {
        let (node, peer) = (addresses::uplink2(11), addresses::uplink2(100));
        netns.ip(&format!(
            "addr add {}/32 dev lo\n\
             addr add {}/128 dev lo nodad\n\
             route replace {}/32 dev eth0 src {}\n\
             route replace {}/128 dev eth0 src {}\n\
             route replace {SERVICES4} via {} src {}\n\
             route replace {SERVICES6} via {} src {}\n",
            own.v4, own.v6, node.v4, own.v4, node.v6, own.v6, node.v4, own.v4, node.v6, own.v6,
        ))?;
        // Strict rp_filter asks the rules with the packet's own addresses swapped, so the rule
        // for the uplink's address also makes the client's packets acceptable.
        let (n1, from) = (&self.nodes[0].netns, node.v6.to_string());
        // Pods are never behind the second uplink, whatever the source is.
        for selector in [
            ["to", PODS6, "lookup", "main"],
            ["from", &from, "lookup", "78"],
        ] {
            let priority = if selector[0] == "to" { "70" } else { "78" };
            let words = ["ip", "-6", "rule", "add", "priority", priority];
            n1.run(&words.into_iter().chain(selector).collect::<Vec<_>>())?;
        }
        n1.ip(&format!(
            "rule add to {PODS4} lookup main priority 70\n\
             rule add from {} lookup 78 priority 78\n\
             route add default via {} dev up1 table 78\n\
             route add default via {} dev up1 table 78\n",
            node.v4, peer.v4, peer.v6,
        ))
    }
}

/// Takes a link of the shared network into use.
fn address(netns: &Netns, link: &str, own: Addresses) -> Result<()> {
    netns.ip(&format!(
        "link set {link} up\naddr add {}/24 dev {link}\naddr add {}/64 dev {link} nodad\n",
        own.v4, own.v6,
    ))
}

/// Switches the offloads of a link off where the variant says so.
pub fn set_offloads(variant: &Variant, netns: &Netns, link: &str) -> Result<()> {
    match variant.offloads {
        Offloads::On => Ok(()),
        Offloads::Off => {
            let off = "tx off rx off sg off tso off gso off gro off";
            let words = ["ethtool", "-K", link].into_iter().chain(off.split(' '));
            netns.run(&words.collect::<Vec<_>>()).map(drop)
        }
    }
}
