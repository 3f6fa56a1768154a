//! What settings and the own Node make of CONFIG and the node's addresses.

use super::*;
use crate::objects::{NodeAddress, NodeStatus};
use crate::rules;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn node(addresses: &[(&str, &str)]) -> Node {
    let address = |(type_, address): &(&str, &str)| NodeAddress {
        type_: (*type_).into(),
        address: (*address).into(),
    };
    Node {
        status: NodeStatus {
            addresses: addresses.iter().map(address).collect(),
        },
        ..Node::default()
    }
}

#[test]
fn primaries_follow_bind_address_and_node() {
    rules(&["S-118", "S-171"]);
    let of = |bind: Option<&str>, addresses: &[(&str, &str)]| {
        let settings = Settings {
            bind_address: bind.map(ip),
            ..Settings::default()
        };
        NodeFacts::of(&settings, Some(&node(addresses))).primaries
    };
    let both = [("ExternalIP", "198.51.100.1"), ("InternalIP", "192.0.2.11")];
    assert_eq!(of(None, &both), [ip("192.0.2.11")]);
    assert_eq!(of(Some("0.0.0.0"), &both), [ip("192.0.2.11")]);
    assert_eq!(of(Some("192.0.2.99"), &both), [ip("192.0.2.99")]);
    // The loopback address overrides its family too, and is left out.
    assert_eq!(of(Some("127.0.0.1"), &both), [] as [IpAddr; 0]);
    let dual = [("InternalIP", "192.0.2.11"), ("InternalIP", "fd00::11")];
    assert_eq!(of(None, &dual), [ip("192.0.2.11"), ip("fd00::11")]);
    assert_eq!(
        of(Some("fd00::99"), &dual),
        [ip("fd00::99"), ip("192.0.2.11")]
    );
}

#[test]
fn health_ports_listen_where_node_ports_are_served() {
    rules(&["S-119a", "S-140"]);
    let local = [
        "127.0.0.1",
        "192.0.2.11",
        "10.9.0.11",
        "fd00::11",
        "fe80::11",
    ];
    let local = local.map(|addr| LocalAddress {
        addr: ip(addr),
        ifindex: 1,
        is_on_loopback: false,
    });
    let of = |entries: &[NodePortAddress]| {
        let settings = Settings {
            node_port_addresses: entries.to_vec(),
            ..Settings::default()
        };
        let node = NodeFacts::default();
        let v4 = health_addresses::<Addr4>(&settings, &node, &local);
        let v6 = health_addresses::<Addr6>(&settings, &node, &local);
        [v4, v6].concat()
    };
    let net = |text: &str| NodePortAddress::Cidr(text.parse().expect("a CIDR"));
    assert_eq!(of(&[net("10.9.0.0/16")]), [ip("10.9.0.11"), ip("::")]);
    // A prefix of no length is everything, whatever else is said.
    let all = [net("10.9.0.0/16"), net("0.0.0.0/0")];
    assert_eq!(of(&all), [ip("0.0.0.0"), ip("::")]);
    let half = [net("0.0.0.0/1"), net("::/1")];
    assert_eq!(of(&half), [ip("10.9.0.11"), ip("127.0.0.1")]);
    // A link-local address is none to listen on.
    let link = [net("192.0.2.0/24"), net("fd00::/16"), net("fe80::/10")];
    assert_eq!(of(&link), [ip("192.0.2.11"), ip("fd00::11")]);
    let local_only = [NodePortAddress::Localhost];
    assert_eq!(of(&local_only), [ip("127.0.0.1")]);
}

#[test]
fn each_setting_has_its_flag() {
    rules(&["S-091", "S-119d", "S-205"]);
    let plain = Settings {
        masquerade: Masquerade::Needed,
        masquerade_all: false,
        socket_udp: SocketUdp::Unconnected,
        socket_lb: SocketLb::On,
        node_port_addresses: Vec::new(),
        keep_unallocated: false,
        ..Settings::default()
    };
    let flags_with = |change: fn(&mut Settings)| {
        let mut settings = plain.clone();
        change(&mut settings);
        config(&settings, &NodeFacts::default(), &[]).flags
    };
    assert_eq!(flags_with(|_| {}), 0);
    type Change = fn(&mut Settings);
    let cases: [(Change, u32); 9] = [
        (
            |it| it.masquerade = Masquerade::Always,
            flags::MASQUERADE_ALWAYS,
        ),
        (|it| it.masquerade_all = true, flags::MASQUERADE_ALL),
        (
            |it| it.socket_udp = SocketUdp::Connected,
            flags::SOCKET_UDP_CONNECTED,
        ),
        (|it| it.socket_lb = SocketLb::Host, flags::SOCKET_HOST_ONLY),
        (|it| it.socket_lb = SocketLb::Off, 0),
        (|it| it.keep_unallocated = true, flags::KEEP_UNALLOCATED),
        (
            |it| it.node_port_addresses = vec![NodePortAddress::Localhost],
            flags::LOOPBACK_NODE_PORTS4 | flags::LOOPBACK_NODE_PORTS6,
        ),
        (
            |it| {
                let nets = ["127.0.0.0/8", "192.0.2.0/24"];
                let nets = nets.map(|net| NodePortAddress::Cidr(net.parse().expect("a CIDR")));
                it.node_port_addresses = nets.into();
            },
            flags::LOOPBACK_NODE_PORTS4,
        ),
        (
            |it| it.node_port_addresses = vec![NodePortAddress::All, NodePortAddress::Primary],
            0,
        ),
    ];
    for (index, (change, flag)) in cases.into_iter().enumerate() {
        assert_eq!(flags_with(change), flag, "case {index}");
    }
}
