//! What depends on the node: its facts, NODE_ADDRESSES and CONFIG.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bytemuck::Zeroable;
use ipnet::IpNet;
use proxy_common::config::flags;
use proxy_common::node::address_flags;
use proxy_common::{
    ABI_VERSION, ANSWERS_PER_SEC_DEFAULT, Addr4, Addr6, Cidr, Config, DetectLocal, FamilyConfig,
    SERVICE_CIDRS_MAX,
};

use super::cover::cover;
use crate::family::{IpFamily, config_cidr};
use crate::ip_text::{parse_cidr, parse_ip};
use crate::objects::Node;
use crate::settings::{
    DetectLocalMode, Masquerade, NodePortAddress, Settings, SocketLb, SocketUdp,
};

/// The only label that names the zone (section 4 of the rules).
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The own node as decisions need it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeFacts {
    /// Its name (S-170); empty: unknown.
    pub name: String,
    /// Its zone; empty: unknown.
    pub zone: String,
    /// Primary address of each family (S-171).
    pub primaries: Vec<IpAddr>,
    /// Its `podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

/// An address of this node, from netlink.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LocalAddress {
    /// The address.
    pub addr: IpAddr,
    /// Its interface.
    pub ifindex: u32,
    /// Its interface is the loopback interface.
    pub is_on_loopback: bool,
}

impl NodeFacts {
    /// Collects the facts from settings and the own Node, where it is known.
    pub fn of(settings: &Settings, node: Option<&Node>) -> Self {
        let zone = node.and_then(|node| node.metadata.labels.get(ZONE_LABEL));
        let pod_cidrs = node.map_or(&[][..], |node| node.spec.networks());
        Self {
            name: settings.node_name.trim().to_lowercase(),
            zone: zone.cloned().unwrap_or_default(),
            primaries: primaries(settings, node),
            pod_cidrs: pod_cidrs
                .iter()
                .filter_map(|text| parse_cidr(text))
                .collect(),
        }
    }

    /// The primary address of one family.
    pub fn primary<A: IpFamily>(&self) -> Option<A> {
        self.primaries.iter().copied().find_map(A::from_ip)
    }
}

/// InternalIPs, then ExternalIPs; the first of each family counts (S-171).
fn primaries(settings: &Settings, node: Option<&Node>) -> Vec<IpAddr> {
    let addresses = node.map_or(&[][..], |node| &node.status.addresses);
    let of_type = |type_: &'static str| {
        let matching = addresses
            .iter()
            .filter(move |address| address.type_ == type_);
        matching.filter_map(|address| parse_ip(&address.address))
    };
    let bind = settings.bind_address.filter(|addr| !addr.is_unspecified());
    let mut primaries: Vec<IpAddr> = Vec::new();
    for addr in bind
        .into_iter()
        .chain(of_type("InternalIP"))
        .chain(of_type("ExternalIP"))
    {
        if primaries
            .iter()
            .all(|known| known.is_ipv4() != addr.is_ipv4())
        {
            primaries.push(addr);
        }
    }
    primaries.retain(|addr| !addr.is_loopback());
    primaries
}

/// NODE_ADDRESSES of one family: every own address, and which of them serve NodePorts (S-118 to
/// S-119b).
pub fn addresses<A: IpFamily>(
    settings: &Settings,
    node: &NodeFacts,
    local: &[LocalAddress],
) -> BTreeMap<A, u32> {
    let accepted = Accepted::of::<A>(settings, node);
    let mut addresses = BTreeMap::new();
    for address in local {
        let Some(addr) = A::from_ip(address.addr) else {
            continue;
        };
        let node_port = match accepted.contains(address) {
            true => address_flags::NODE_PORT,
            false => 0,
        };
        *addresses.entry(addr).or_default() |= address_flags::OWN | node_port;
    }
    addresses
}

/// Where the health ports of one family listen (S-140): everywhere, or on the own addresses that
/// `nodePortAddresses` names, loopback included where it is named.
pub fn health_addresses<A: IpFamily>(
    settings: &Settings,
    node: &NodeFacts,
    local: &[LocalAddress],
) -> Vec<IpAddr> {
    let Accepted::Nets(nets) = Accepted::of::<A>(settings, node) else {
        return vec![A::UNSPECIFIED.to_ip()];
    };
    let own = local.iter().map(|address| address.addr);
    let named = own.filter(|addr| nets.iter().any(|net| net.contains(addr)));
    // A link-local address alone does not say which interface it is on.
    let needs_scope = |addr: &IpAddr| matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let addresses: BTreeSet<IpAddr> = named.filter(|addr| !needs_scope(addr)).collect();
    addresses.into_iter().collect()
}

/// Which local addresses serve NodePorts.
enum Accepted {
    /// All but loopback.
    All,
    /// Those inside.
    Nets(Vec<IpNet>),
}

impl Accepted {
    fn of<A: IpFamily>(settings: &Settings, node: &NodeFacts) -> Self {
        let entries = match settings.node_port_addresses.as_slice() {
            [] => &[NodePortAddress::Primary],
            entries => entries,
        };
        let mut nets = Vec::new();
        for entry in entries {
            match entry {
                NodePortAddress::Primary => {
                    nets.extend(node.primary::<A>().map(|addr| IpNet::from(addr.to_ip())));
                }
                NodePortAddress::Localhost => {
                    nets.extend(loopback_nets().into_iter().filter(is_of_family::<A>));
                }
                NodePortAddress::All => return Self::All,
                NodePortAddress::Cidr(net) => nets.extend(Some(*net).filter(is_of_family::<A>)),
            }
        }
        // S-119a: a family that nothing is said about accepts everything, also while the primary
        // address is unknown.
        if nets.is_empty() || nets.iter().any(|net| net.prefix_len() == 0) {
            return Self::All;
        }
        Self::Nets(nets)
    }

    fn contains(&self, address: &LocalAddress) -> bool {
        if address.addr.is_loopback() {
            return false;
        }
        match self {
            Self::All => true,
            Self::Nets(nets) => nets.iter().any(|net| net.contains(&address.addr)),
        }
    }
}

fn is_of_family<A: IpFamily>(net: &IpNet) -> bool {
    A::from_ip(net.network()).is_some()
}

/// What `localhost` stands for (S-118).
fn loopback_nets() -> [IpNet; 2] {
    let v4 = IpAddr::from(std::net::Ipv4Addr::LOCALHOST);
    let v6 = IpAddr::from(std::net::Ipv6Addr::LOCALHOST);
    let v4 = IpNet::new(v4, 8)
        .expect("8 is a prefix length of IPv4")
        .trunc();
    [v4, IpNet::from(v6)]
}

/// The value of CONFIG; `service_cidrs` are covered where they are too many. What is not of
/// settings and objects ([`Config::next_hops`]) is 0.
pub fn config(settings: &Settings, node: &NodeFacts, service_cidrs: &[IpNet]) -> Config {
    let detect_local = match settings.detect_local {
        DetectLocalMode::None => DetectLocal::None,
        DetectLocalMode::ClusterCidr | DetectLocalMode::NodeCidr => DetectLocal::Cidr,
        DetectLocalMode::BridgeInterface(_) | DetectLocalMode::InterfaceNamePrefix(_) => {
            DetectLocal::Interface
        }
    };
    let pods = match settings.detect_local {
        DetectLocalMode::ClusterCidr => settings.cluster_cidrs.as_slice(),
        DetectLocalMode::NodeCidr => &node.pod_cidrs,
        _ => &[],
    };
    Config {
        host_netns_cookie: settings.host_netns_cookie,
        abi_version: ABI_VERSION,
        hz: settings.hz,
        flags: config_flags(settings),
        redirect_mark: settings.redirect_mark,
        snat_ports: settings.snat_ports,
        detect_local: detect_local as u32,
        timeouts: settings.timeouts,
        answers_per_sec: ANSWERS_PER_SEC_DEFAULT,
        new_flows_per_sec: settings.new_flows_per_sec,
        v4: family_config(node, pods, service_cidrs),
        v6: family_config(node, pods, service_cidrs),
        next_hops: 0,
    }
}

fn family_config<A: IpFamily>(
    node: &NodeFacts,
    pods: &[IpNet],
    service_cidrs: &[IpNet],
) -> FamilyConfig<A> {
    let mut cidrs: [Cidr<A>; SERVICE_CIDRS_MAX] = Zeroable::zeroed();
    let of_family = service_cidrs.iter().filter(|net| is_of_family::<A>(net));
    for (cidr, net) in cidrs.iter_mut().zip(cover(of_family.copied())) {
        *cidr = config_cidr(Some(&net));
    }
    let pods = config_cidr(pods.iter().find(|net| is_of_family::<A>(net)));
    FamilyConfig {
        pods,
        service_cidrs: cidrs,
        primary: node.primary::<A>().unwrap_or(A::UNSPECIFIED),
    }
}

/// S-119d: only an entry that is loopback itself; `all` never means it.
fn names_loopback<A: IpFamily>(settings: &Settings) -> bool {
    let mut entries = settings.node_port_addresses.iter();
    entries.any(|entry| match entry {
        NodePortAddress::Localhost => true,
        NodePortAddress::Cidr(net) => {
            net.prefix_len() != 0 && net.network().is_loopback() && is_of_family::<A>(net)
        }
        NodePortAddress::Primary | NodePortAddress::All => false,
    })
}

fn config_flags(settings: &Settings) -> u32 {
    [
        (
            settings.masquerade == Masquerade::Always,
            flags::MASQUERADE_ALWAYS,
        ),
        (settings.masquerade_all, flags::MASQUERADE_ALL),
        (
            settings.socket_udp == SocketUdp::Connected,
            flags::SOCKET_UDP_CONNECTED,
        ),
        (
            settings.socket_lb == SocketLb::Host,
            flags::SOCKET_HOST_ONLY,
        ),
        (
            names_loopback::<Addr4>(settings),
            flags::LOOPBACK_NODE_PORTS4,
        ),
        (
            names_loopback::<Addr6>(settings),
            flags::LOOPBACK_NODE_PORTS6,
        ),
        (settings.keep_unallocated, flags::KEEP_UNALLOCATED),
    ]
    .into_iter()
    .filter(|(is_set, _)| *is_set)
    .fold(0, |all, (_, flag)| all | flag)
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
