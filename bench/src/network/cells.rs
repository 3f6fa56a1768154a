//! What is compared with what: groups of ways over the same links to the same backend, each with a
//! direct way.

use std::net::SocketAddr;

use tests::rig::TARGET_PORT;
use tests::topology::addresses::{self, IpFamily};
use tests::topology::{Cluster, Offloads};

use super::service::{FAR, NEAR};

/// Who dials what.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Path {
    /// A pod a ClusterIP whose backend is beside it.
    ClusterIp,
    /// A client outside a node port whose backend is on that node.
    NodePortLocal,
    /// A client outside a node port whose backend is on another node.
    NodePortRemote,
}

/// Who translates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// Nobody: the backend itself is dialled, on nodes without any proxy.
    Direct,
    /// shunt's socket hooks.
    Socket,
    /// shunt's tc programs.
    Tc,
    /// shunt's native XDP program.
    Xdp,
    /// kube-proxy's iptables rules.
    Iptables,
    /// kube-proxy's nftables rules.
    Nftables,
}

/// What a cluster has on its node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Proxy {
    /// Nothing.
    None,
    /// shunt, without XDP.
    Shunt,
    /// shunt, with native XDP.
    ShuntXdp,
    /// kube-proxy, iptables mode.
    Iptables,
    /// kube-proxy, nftables mode.
    Nftables,
}

/// Whether links compute checksums and cut segments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Links {
    /// They do.
    Offloaded,
    /// They do not, as native XDP needs it on veth.
    Plain,
}

/// Which process dials.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Seat {
    /// A pod.
    Pod,
    /// A pod whose processes the socket hooks do not see.
    UnseenPod,
    /// A client outside.
    Outside,
}

/// Ways that are compared with each other.
pub struct Group {
    pub path: Path,
    pub links: Links,
    /// The first one is direct.
    pub ways: &'static [Way],
}

/// One way in one group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cell {
    pub path: Path,
    pub links: Links,
    pub way: Way,
}

use Way::{Direct, Iptables, Nftables, Socket, Tc, Xdp};

/// All of them.
pub const GROUPS: [Group; 4] = [
    Group {
        path: Path::ClusterIp,
        links: Links::Offloaded,
        ways: &[Direct, Socket, Tc, Iptables, Nftables],
    },
    Group {
        path: Path::NodePortLocal,
        links: Links::Offloaded,
        ways: &[Direct, Tc, Iptables, Nftables],
    },
    Group {
        path: Path::NodePortRemote,
        links: Links::Offloaded,
        ways: &[Direct, Tc, Iptables, Nftables],
    },
    Group {
        path: Path::NodePortRemote,
        links: Links::Plain,
        ways: &[Direct, Tc, Xdp, Iptables, Nftables],
    },
];

/// What each of the clusters is.
pub const SITES: [(Proxy, Links); 9] = [
    (Proxy::None, Links::Offloaded),
    (Proxy::Shunt, Links::Offloaded),
    (Proxy::Iptables, Links::Offloaded),
    (Proxy::Nftables, Links::Offloaded),
    (Proxy::None, Links::Plain),
    (Proxy::Shunt, Links::Plain),
    (Proxy::ShuntXdp, Links::Plain),
    (Proxy::Iptables, Links::Plain),
    (Proxy::Nftables, Links::Plain),
];

impl Group {
    /// Its cells.
    pub fn cells(&self) -> impl Iterator<Item = Cell> {
        self.ways.iter().map(|way| Cell {
            path: self.path,
            links: self.links,
            way: *way,
        })
    }
}

impl Cell {
    /// The cell that this one is compared with.
    pub fn direct(self) -> Self {
        Self {
            way: Way::Direct,
            ..self
        }
    }

    /// The cluster that it is measured in.
    pub fn site(self) -> (Proxy, Links) {
        let proxy = match self.way {
            Way::Direct => Proxy::None,
            Way::Socket | Way::Tc => Proxy::Shunt,
            Way::Xdp => Proxy::ShuntXdp,
            Way::Iptables => Proxy::Iptables,
            Way::Nftables => Proxy::Nftables,
        };
        (proxy, self.links)
    }

    /// Who dials.
    pub fn seat(self) -> Seat {
        match (self.path, self.way) {
            (Path::ClusterIp, Way::Tc) => Seat::UnseenPod,
            (Path::ClusterIp, _) => Seat::Pod,
            (Path::NodePortLocal | Path::NodePortRemote, _) => Seat::Outside,
        }
    }

    /// What is dialled in `cluster`, whose first two pods are the backends.
    pub fn address(self, cluster: &Cluster) -> SocketAddr {
        let node = addresses::node(1).v4;
        match (self.way, self.path) {
            (Way::Direct, Path::ClusterIp | Path::NodePortLocal) => {
                cluster.pods[0].at(IpFamily::V4, TARGET_PORT)
            }
            (Way::Direct, Path::NodePortRemote) => cluster.pods[1].at(IpFamily::V4, TARGET_PORT),
            (_, Path::ClusterIp) => (super::service::cluster_ip(), NEAR.port).into(),
            (_, Path::NodePortLocal) => (node, NEAR.node_port).into(),
            (_, Path::NodePortRemote) => (node, FAR.node_port).into(),
        }
    }
}

impl Path {
    /// As rows name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster_ip",
            Self::NodePortLocal => "node_port_local",
            Self::NodePortRemote => "node_port_remote",
        }
    }
}

impl Way {
    /// As rows name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Socket => "shunt_socket",
            Self::Tc => "shunt_tc",
            Self::Xdp => "shunt_xdp",
            Self::Iptables => "kube_proxy_iptables",
            Self::Nftables => "kube_proxy_nftables",
        }
    }

    /// True where shunt does it.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Socket | Self::Tc | Self::Xdp)
    }
}

impl Links {
    /// As rows name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Offloaded => "on",
            Self::Plain => "off",
        }
    }

    /// As a cluster is told.
    pub fn offloads(self) -> Offloads {
        match self {
            Self::Offloaded => Offloads::On,
            Self::Plain => Offloads::Off,
        }
    }
}
