//! Roles of the node's interfaces: which get programs, and what INTERFACES says of each.
//!
//! A pure function of what netlink showed ([`Snapshot`]) and of the options ([`Rules`]).

mod uplink_xdp;

use std::collections::BTreeMap;
use std::net::IpAddr;

use proxy_common::interface::{Interface, flags};
use proxy_common::{Addr4, Addr6};

use super::attach::Layer;
use super::glob::matches;
use super::left_alone::LeftAlone;
use super::xdp::{XdpChoice, XdpMode};
use crate::pipeline::LocalAddress;
use crate::settings::DetectLocalMode;

pub use self::uplink_xdp::NoXdp;

/// What netlink showed at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Links by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses, in the kernel's order.
    pub addresses: Vec<LinkAddress>,
    /// Unicast routes outside of the local table.
    pub routes: Vec<Route>,
    /// True if netfilter sees what bridges forward (br_netfilter).
    pub netfilter_sees_bridges: bool,
}

/// One link.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// Name.
    pub name: String,
    /// Kind as `ip -details link` names it; empty for a physical device.
    pub kind: String,
    /// ARPHRD type.
    pub hardware: u16,
    /// True for the loopback device.
    pub is_loopback: bool,
    /// MTU.
    pub mtu: u32,
    /// MAC address, where it has one.
    pub mac: [u8; 6],
    /// Id of its XDP program, whoever's it is.
    pub xdp_program: Option<u32>,
    /// Index of its bridge, bond or other controller.
    pub controller: Option<u32>,
    /// Index of the link that it is made on, as a VLAN device is.
    pub lower: Option<u32>,
}

/// One address of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkAddress {
    /// The link.
    pub ifindex: u32,
    /// The address.
    pub addr: IpAddr,
    /// Length of the prefix that it brings along.
    pub prefix_len: u8,
    /// True if it may be a source towards others: global, neither tentative nor deprecated.
    pub is_source: bool,
}

/// One next hop of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The link it leads over.
    pub ifindex: u32,
    /// Family and network.
    pub network: IpAddr,
    /// Length of the network's prefix; 0: a default route.
    pub prefix_len: u8,
    /// True if it leads to a router.
    pub has_gateway: bool,
    /// Preferred source.
    pub source: Option<IpAddr>,
    /// Metric: the lowest wins.
    pub metric: u32,
}

/// Who counts as a pod by the interface (S-083).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Detect {
    /// The interface does not matter.
    #[default]
    No,
    /// Exactly this interface.
    Bridge(String),
    /// Interfaces whose name starts so.
    Prefix(String),
}

impl Detect {
    /// True if packets that netfilter sees entering by this interface are pods'.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::No => false,
            Self::Bridge(bridge) => name == bridge,
            Self::Prefix(prefix) => name.starts_with(prefix),
        }
    }
}

impl From<&DetectLocalMode> for Detect {
    fn from(mode: &DetectLocalMode) -> Self {
        match mode {
            DetectLocalMode::BridgeInterface(name) => Self::Bridge(name.clone()),
            DetectLocalMode::InterfaceNamePrefix(prefix) => Self::Prefix(prefix.clone()),
            DetectLocalMode::None | DetectLocalMode::ClusterCidr | DetectLocalMode::NodeCidr => {
                Self::No
            }
        }
    }
}

/// What the options say of interfaces.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Names with `*` and `?`; empty: found from links, addresses and routes.
    pub globs: Vec<String>,
    /// Detector.
    pub detect: Detect,
    /// Where XDP is wanted.
    pub xdp: XdpChoice,
}

/// What is to be done with one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// How its packets begin.
    pub layer: Layer,
    /// Its entry in INTERFACES; `ATTACHED` says that programs belong on it. `XDP` follows what its
    /// driver takes.
    pub interface: Interface,
    /// How the XDP program is to run on it, if at all.
    pub xdp: Option<XdpMode>,
    /// Why it is not to run on an uplink.
    pub no_xdp: Option<NoXdp>,
    /// Why no program belongs on it, where none does.
    pub left_alone: Option<LeftAlone>,
}

impl Plan {
    /// True if programs belong on it.
    pub fn is_attached(&self) -> bool {
        self.interface.flags & flags::ATTACHED != 0
    }
}

/// Decides on every link.
pub fn plan(snapshot: &Snapshot, rules: &Rules) -> BTreeMap<u32, Plan> {
    let view = View { snapshot, rules };
    let links = snapshot.links.iter().filter(|(_, link)| !link.is_loopback);
    links
        .map(|(&ifindex, link)| (ifindex, view.plan(ifindex, link)))
        .collect()
}

/// All addresses of the node.
pub fn local_addresses(snapshot: &Snapshot) -> Vec<LocalAddress> {
    let is_loopback = |ifindex| {
        let link = snapshot.links.get(&ifindex);
        link.is_some_and(|link| link.is_loopback)
    };
    let addresses = snapshot.addresses.iter();
    addresses
        .map(|address| LocalAddress {
            addr: address.addr,
            ifindex: address.ifindex,
            is_on_loopback: is_loopback(address.ifindex),
        })
        .collect()
}

/// ARPHRD_ETHER.
const ETHERNET: u16 = 1;

struct View<'a> {
    snapshot: &'a Snapshot,
    rules: &'a Rules,
}

impl View<'_> {
    fn plan(&self, ifindex: u32, link: &Link) -> Plan {
        let bridge = self.bridge_of(link);
        let mut bits = 0;
        let mut set = |flag, is_set| bits |= if is_set { flag } else { 0 };
        let role = self.role(ifindex, link);
        set(flags::ATTACHED, role.is_ok());
        set(flags::POD_SIDE, self.is_pod_side(ifindex, link));
        set(flags::DETECTED, self.is_detected(link));
        let is_port = bridge.is_some();
        let netfilter_sees_bridges = self.snapshot.netfilter_sees_bridges;
        set(flags::BRIDGE_REDIRECT, is_port && !netfilter_sees_bridges);
        set(flags::NO_MAC, link.hardware != ETHERNET);
        set(flags::BRIDGE, link.kind == "bridge");
        let is_udp_tunnel = matches!(link.kind.as_str(), "vxlan" | "geneve");
        set(flags::TAKES_LARGER, is_udp_tunnel);
        let xdp = self.xdp(ifindex, link, bits);
        // A port has no address and no route of its own: its bridge has.
        let source = bridge.unwrap_or(ifindex);
        Plan {
            name: link.name.clone(),
            layer: match link.hardware {
                ETHERNET => Layer::Ethernet,
                _ => Layer::Ip,
            },
            xdp: xdp.and_then(Result::ok),
            no_xdp: xdp.and_then(Result::err),
            left_alone: role.err(),
            interface: Interface {
                flags: bits,
                mtu: link.mtu,
                bridge: bridge.unwrap_or(0),
                mac: link.mac,
                pad: [0; 2],
                addr4: self
                    .source(source, IpAddr::is_ipv4)
                    .map_or(Addr4::default(), addr4),
                addr6: self
                    .source(source, IpAddr::is_ipv6)
                    .map_or(Addr6::default(), addr6),
            },
        }
    }

    /// Whether programs belong on a link, and why not.
    fn role(&self, ifindex: u32, link: &Link) -> Result<(), LeftAlone> {
        let globs = &self.rules.globs;
        if !globs.is_empty() {
            let is_named = globs.iter().any(|glob| matches(glob, &link.name));
            return is_named.then_some(()).ok_or(LeftAlone::NotNamed);
        }
        match self.controller_kind(link) {
            Some("bridge") if is_pod_device(link) => Ok(()),
            Some("bridge") => Err(LeftAlone::BridgePort(self.controller_name(link))),
            // Its controller is the interface that routes know.
            Some(_) => Err(LeftAlone::Controlled(self.controller_name(link))),
            None if self.has_address(ifindex) => Ok(()),
            None if self.routes_over(ifindex).next().is_some() => Ok(()),
            None => Err(LeftAlone::NoAddressOrRoute),
        }
    }

    /// A pod's end of the wire: a bridge port that leads to a container or VM, the bridge over
    /// it, or a wire of its own that carries routes to single hosts only.
    fn is_pod_side(&self, ifindex: u32, link: &Link) -> bool {
        if link.kind == "bridge" {
            let mut links = self.snapshot.links.values();
            return links.any(|port| port.controller == Some(ifindex) && is_pod_device(port));
        }
        if !is_pod_device(link) {
            return false;
        }
        match self.controller_kind(link) {
            Some("bridge") => true,
            Some(_) => false,
            None => self.is_pod_wire(ifindex),
        }
    }

    fn is_pod_wire(&self, ifindex: u32) -> bool {
        let is_host = |addr: &IpAddr, len| len == if addr.is_ipv4() { 32 } else { 128 };
        let mut addresses = self.addresses_of(ifindex);
        let mut routes = self.routes_over(ifindex).peekable();
        routes.peek().is_some()
            && addresses.all(|address| is_host(&address.addr, address.prefix_len))
            && routes.all(|route| !route.has_gateway && route.prefix_len != 0)
    }

    /// Netfilter's input interface of what enters by a port is the bridge.
    fn is_detected(&self, link: &Link) -> bool {
        let bridge = self
            .bridge_of(link)
            .and_then(|index| self.snapshot.links.get(&index));
        self.rules.detect.matches(&bridge.unwrap_or(link).name)
    }

    fn controller_kind(&self, link: &Link) -> Option<&str> {
        let controller = self.snapshot.links.get(&link.controller?);
        Some(controller.map_or("", |link| link.kind.as_str()))
    }

    fn controller_name(&self, link: &Link) -> String {
        let index = link.controller.unwrap_or_default();
        let controller = self.snapshot.links.get(&index);
        controller.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }

    fn bridge_of(&self, link: &Link) -> Option<u32> {
        link.controller
            .filter(|_| self.controller_kind(link) == Some("bridge"))
    }

    fn addresses_of(&self, ifindex: u32) -> impl Iterator<Item = &LinkAddress> {
        let addresses = self.snapshot.addresses.iter();
        addresses.filter(move |address| address.ifindex == ifindex && address.is_source)
    }

    fn has_address(&self, ifindex: u32) -> bool {
        self.addresses_of(ifindex).next().is_some()
    }

    fn routes_over(&self, ifindex: u32) -> impl Iterator<Item = &Route> {
        let routes = self.snapshot.routes.iter();
        routes.filter(move |route| route.ifindex == ifindex)
    }

    /// The address that masquerading would use on an interface (S-095).
    fn source(&self, ifindex: u32, family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let own = self.own_address(ifindex, family);
        let preferred = || {
            let mut sources = self.routes_over(ifindex).filter_map(|route| route.source);
            sources.find(family)
        };
        own.or_else(preferred).or_else(|| self.main_address(family))
    }

    fn own_address(&self, ifindex: u32, family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let mut addresses = self.addresses_of(ifindex).map(|address| address.addr);
        addresses.find(family)
    }

    /// The node's main address: that of its default route, else the first one at all.
    fn main_address(&self, family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let routes = self.snapshot.routes.iter();
        let defaults = routes.filter(|route| route.prefix_len == 0 && family(&route.network));
        let default = defaults.min_by_key(|route| route.metric);
        let by_default = default.and_then(|route| {
            route
                .source
                .or_else(|| self.own_address(route.ifindex, family))
        });
        let mut all = self
            .snapshot
            .addresses
            .iter()
            .filter(|address| address.is_source);
        let any = || {
            all.find(|address| family(&address.addr))
                .map(|address| address.addr)
        };
        by_default.or_else(any)
    }
}

/// Devices that container runtimes and virtual machines put at a pod's end of the wire.
fn is_pod_device(link: &Link) -> bool {
    matches!(link.kind.as_str(), "veth" | "tun" | "netkit" | "macvtap")
}

fn addr4(ip: IpAddr) -> Addr4 {
    match ip {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(_) => Addr4::default(),
    }
}

fn addr6(ip: IpAddr) -> Addr6 {
    match ip {
        IpAddr::V6(ip) => ip.into(),
        IpAddr::V4(_) => Addr6::default(),
    }
}

#[cfg(test)]
#[path = "interfaces_tests.rs"]
mod tests;
