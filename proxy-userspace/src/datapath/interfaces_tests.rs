use std::net::IpAddr;

use proxy_common::interface::flags::{
    ATTACHED, BRIDGE, BRIDGE_REDIRECT, DETECTED, NO_MAC, POD_SIDE, TAKES_LARGER,
};

use super::{
    Detect, Link, LinkAddress, Plan, Route, Rules, Snapshot, XdpChoice, XdpMode, local_addresses,
    plan,
};
use crate::rules;

const ETHERNET: u16 = 1;
const NONE: u16 = 0xfffe;

/// A node under construction.
#[derive(Default)]
struct Node(Snapshot);

impl Node {
    fn link(mut self, ifindex: u32, name: &str, kind: &str) -> Self {
        let link = Link {
            name: name.to_owned(),
            kind: kind.to_owned(),
            hardware: ETHERNET,
            mtu: 1500,
            ..Link::default()
        };
        self.0.links.insert(ifindex, link);
        self
    }

    fn loopback(mut self) -> Self {
        self = self.link(1, "lo", "").address(1, "127.0.0.1/8");
        self.0.links.get_mut(&1).unwrap().is_loopback = true;
        self.0.addresses[0].is_source = false;
        self
    }

    fn port(mut self, ifindex: u32, name: &str, kind: &str, controller: u32) -> Self {
        self = self.link(ifindex, name, kind);
        self.0.links.get_mut(&ifindex).unwrap().controller = Some(controller);
        self
    }

    fn address(mut self, ifindex: u32, text: &str) -> Self {
        let (addr, prefix_len) = cidr(text);
        self.0.addresses.push(LinkAddress {
            ifindex,
            addr,
            prefix_len,
            is_source: true,
        });
        self.route(ifindex, text)
    }

    fn route(mut self, ifindex: u32, text: &str) -> Self {
        let (network, prefix_len) = cidr(text);
        self.0.routes.push(Route {
            ifindex,
            network,
            prefix_len,
            has_gateway: false,
            source: None,
            metric: 0,
        });
        self
    }

    fn gateway(mut self, ifindex: u32, text: &str, source: Option<&str>) -> Self {
        self = self.route(ifindex, text);
        let route = self.0.routes.last_mut().unwrap();
        route.has_gateway = true;
        route.source = source.map(ip);
        self
    }

    fn plan(&self, rules: &Rules) -> impl Fn(u32) -> Plan + use<> {
        let plans = plan(&self.0, rules);
        move |ifindex| plans[&ifindex].clone()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> (IpAddr, u8) {
    let (addr, len) = text.split_once('/').unwrap();
    (ip(addr), len.parse().unwrap())
}

fn flags(plan: &Plan) -> u32 {
    plan.interface.flags
}

fn addr4(plan: &Plan) -> IpAddr {
    plan.interface.addr4.into()
}

fn addr6(plan: &Plan) -> IpAddr {
    plan.interface.addr6.into()
}

fn uplink() -> Node {
    let node = Node::default().loopback().link(2, "eth0", "");
    let node = node
        .address(2, "192.168.1.10/24")
        .address(2, "fd00:1::10/64");
    node.gateway(2, "0.0.0.0/0", None).gateway(2, "::/0", None)
}

#[test]
fn uplink_with_address_is_attached_and_not_pod_side() {
    let plan = uplink().plan(&Rules::default());
    assert_eq!(flags(&plan(2)), ATTACHED);
    assert_eq!(addr4(&plan(2)), ip("192.168.1.10"));
    assert_eq!(addr6(&plan(2)), ip("fd00:1::10"));
}

#[test]
fn loopback_has_no_plan() {
    let plans = super::plan(&uplink().0, &Rules::default());
    assert_eq!(plans.keys().copied().collect::<Vec<_>>(), [2]);
}

#[test]
fn veth_uplink_is_not_pod_side() {
    let node = Node::default().loopback().link(2, "up0", "veth");
    let node = node
        .address(2, "192.168.1.10/24")
        .gateway(2, "0.0.0.0/0", None);
    assert_eq!(flags(&node.plan(&Rules::default())(2)), ATTACHED);
}

#[test]
fn routed_veth_without_address_is_pod_side_and_uses_the_main_address() {
    let node = uplink().link(5, "cali1", "veth").route(5, "10.244.1.5/32");
    let plan = node.plan(&Rules::default());
    assert_eq!(flags(&plan(5)), ATTACHED | POD_SIDE);
    assert_eq!(addr4(&plan(5)), ip("192.168.1.10"));
    assert_eq!(addr6(&plan(5)), ip("fd00:1::10"));
}

#[test]
fn routed_veth_with_host_address_is_pod_side() {
    let node = uplink().link(5, "veth5", "veth");
    let node = node.address(5, "10.244.1.1/32").route(5, "10.244.1.5/32");
    let plan = node.plan(&Rules::default());
    assert_eq!(flags(&plan(5)), ATTACHED | POD_SIDE);
    assert_eq!(addr4(&plan(5)), ip("10.244.1.1"));
}

#[test]
fn veth_without_address_and_route_is_left_alone() {
    let plan = uplink().link(5, "veth5", "veth").plan(&Rules::default());
    assert_eq!(flags(&plan(5)) & ATTACHED, 0);
}

#[test]
fn preferred_source_of_a_route_beats_the_main_address() {
    let node = uplink().link(5, "cali1", "veth");
    let node = node.gateway(5, "10.9.0.0/16", Some("10.244.1.1"));
    assert_eq!(addr4(&node.plan(&Rules::default())(5)), ip("10.244.1.1"));
}

#[test]
fn main_address_is_the_preferred_source_of_the_best_default_route() {
    let mut node = Node::default()
        .link(2, "eth0", "")
        .address(2, "192.168.1.10/24");
    node = node.link(3, "eth1", "").address(3, "172.16.0.1/24");
    node = node
        .gateway(2, "0.0.0.0/0", None)
        .gateway(3, "0.0.0.0/0", Some("10.0.0.1"));
    node.0
        .routes
        .iter_mut()
        .filter(|route| route.ifindex == 2)
        .for_each(|r| r.metric = 200);
    node = node.link(5, "cali1", "veth").route(5, "10.244.1.5/32");
    assert_eq!(addr4(&node.plan(&Rules::default())(5)), ip("10.0.0.1"));
}

fn bridged() -> Node {
    let node = uplink()
        .link(4, "cni0", "bridge")
        .address(4, "10.244.1.1/24");
    node.port(5, "veth5", "veth", 4).port(6, "eth1", "", 4)
}

#[test]
fn bridge_and_its_pods_are_attached_and_pod_side() {
    let plan = bridged().plan(&Rules::default());
    assert_eq!(flags(&plan(4)), ATTACHED | POD_SIDE | BRIDGE);
    assert_eq!(flags(&plan(5)), ATTACHED | POD_SIDE | BRIDGE_REDIRECT);
    assert_eq!(plan(5).interface.bridge, 4);
    assert_eq!(addr4(&plan(5)), ip("10.244.1.1"));
}

#[test]
fn physical_port_of_a_bridge_is_left_to_the_bridge() {
    let plan = bridged().plan(&Rules::default());
    assert_eq!(flags(&plan(6)) & (ATTACHED | POD_SIDE), 0);
}

#[test]
fn bridge_that_netfilter_sees_is_not_redirected() {
    let mut node = bridged();
    node.0.netfilter_sees_bridges = true;
    assert_eq!(flags(&node.plan(&Rules::default())(5)), ATTACHED | POD_SIDE);
}

#[test]
fn members_of_bonds_and_vrfs_are_left_to_their_controller() {
    for kind in ["bond", "team", "vrf"] {
        let node = Node::default()
            .link(2, "master0", kind)
            .address(2, "10.0.0.1/24");
        let node = node.port(3, "eth0", "", 2).route(3, "10.1.0.0/16");
        let plan = node.plan(&Rules::default());
        assert_eq!((flags(&plan(2)), flags(&plan(3))), (ATTACHED, 0), "{kind}");
    }
}

#[test]
fn tunnel_without_mac_header_is_served_at_layer_three() {
    let mut node = uplink()
        .link(7, "wg0", "wireguard")
        .address(7, "10.5.0.1/24");
    node.0.links.get_mut(&7).unwrap().hardware = NONE;
    let plan = node.plan(&Rules::default())(7);
    assert_eq!(flags(&plan), ATTACHED | NO_MAC);
    assert_eq!(plan.layer, super::Layer::Ip);
}

#[test]
fn vxlan_device_is_attached_with_its_own_address() {
    let node = uplink()
        .link(7, "flannel.1", "vxlan")
        .address(7, "10.244.1.0/32");
    let node = node.gateway(7, "10.244.2.0/24", None);
    let plan = node.plan(&Rules::default())(7);
    assert_eq!(flags(&plan), ATTACHED | TAKES_LARGER);
    assert_eq!(addr4(&plan), ip("10.244.1.0"));
}

#[test]
fn xdp_runs_on_uplinks_with_a_driver_unless_told_otherwise() {
    rules(&["P-10"]);
    let node = bridged()
        .link(7, "bond0", "bond")
        .address(7, "10.5.0.1/24")
        .link(8, "veth8", "veth")
        .address(8, "10.6.0.1/24")
        .link(9, "eth0.5", "vlan")
        .address(9, "10.7.0.1/24")
        .link(10, "bond1", "bond")
        .address(10, "10.8.0.1/24")
        .port(11, "veth11", "veth", 10)
        .port(12, "eth1", "", 7);
    // eth0, cni0, a port of it, the bond, a veth that is no pod's, a VLAN, a bond of veths, such a
    // veth, and what the first bond is of.
    let modes = |choice| {
        let rules = Rules {
            xdp: choice,
            ..Rules::default()
        };
        let plan = node.plan(&rules);
        [2, 4, 5, 7, 8, 9, 10, 11, 12].map(|ifindex| plan(ifindex).xdp)
    };
    let (native, generic) = (Some(XdpMode::Native), Some(XdpMode::Generic));
    let none = None;
    assert_eq!(
        modes(XdpChoice::Auto),
        [native, none, none, native, none, none, none, none, none]
    );
    assert_eq!(
        modes(XdpChoice::Native),
        [native, none, none, native, native, none, native, none, none]
    );
    assert_eq!(
        modes(XdpChoice::Generic),
        [
            generic, none, none, generic, generic, none, generic, none, none
        ]
    );
    assert_eq!(modes(XdpChoice::Off), [none; 9]);
}

#[test]
fn xdp_leaves_the_lower_device_of_a_vlan_to_tc() {
    rules(&["P-10"]);
    let trunk = uplink().link(9, "eth0.5", "vlan");
    for choice in [XdpChoice::Auto, XdpChoice::Native, XdpChoice::Generic] {
        let rules = Rules {
            xdp: choice,
            ..Rules::default()
        };
        let mut node = trunk.0.clone();
        // A device of that kind on another link changes nothing.
        assert!(plan(&node, &rules)[&2].xdp.is_some());
        node.links.get_mut(&9).unwrap().lower = Some(2);
        assert_eq!(plan(&node, &rules)[&2].xdp, None);
    }
}

#[test]
fn globs_override_what_is_found() {
    let rules = Rules {
        globs: vec!["veth*".to_owned(), "eth?".to_owned()],
        detect: Detect::No,
        ..Rules::default()
    };
    let plan = bridged().plan(&rules);
    let is_attached = [2, 4, 5, 6].map(|ifindex| plan(ifindex).is_attached());
    assert_eq!(is_attached, [true, false, true, true]);
}

#[test]
fn bridge_mode_detects_what_enters_by_the_bridge_and_its_ports() {
    rules(&["S-083"]);
    let rules = Rules {
        globs: Vec::new(),
        detect: Detect::Bridge("cni0".to_owned()),
        ..Rules::default()
    };
    let plan = bridged().plan(&rules);
    let is_detected = [2, 4, 5].map(|ifindex| flags(&plan(ifindex)) & DETECTED != 0);
    assert_eq!(is_detected, [false, true, true]);
}

#[test]
fn prefix_mode_detects_by_the_name_that_netfilter_sees() {
    rules(&["S-083"]);
    let rules = Rules {
        globs: Vec::new(),
        detect: Detect::Prefix("veth".to_owned()),
        ..Rules::default()
    };
    let node = bridged().link(8, "veth8", "veth").route(8, "10.244.1.8/32");
    let plan = node.plan(&rules);
    assert_eq!(flags(&plan(5)) & DETECTED, 0);
    assert_eq!(flags(&plan(8)) & DETECTED, DETECTED);
}

#[test]
fn local_addresses_are_those_of_every_link() {
    rules(&["S-119b"]);
    let mut all = local_addresses(&bridged().0);
    all.sort();
    let all: Vec<_> = all
        .iter()
        .map(|address| (address.addr, address.ifindex, address.is_on_loopback))
        .collect();
    let expected = [
        (ip("10.244.1.1"), 4, false),
        (ip("127.0.0.1"), 1, true),
        (ip("192.168.1.10"), 2, false),
        (ip("fd00:1::10"), 2, false),
    ];
    assert_eq!(all, expected);
}
