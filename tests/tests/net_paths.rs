//! Every path to a Service, over real sockets, in every kind of cluster.
//!
//! One table of rows says who dials what and who has to answer; every variant runs all of it, for
//! both families and for each kind of socket.

use anyhow::{Context, Result, ensure};
use tests::rig::{Client, Rig, Target, contains, node_addresses};
use tests::rules;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::topology::{BridgeNetfilter, Firewall, Offloads, Overlay, PodNetwork, Uplinks, Variant};
use tests::traffic::{Plan, Report, SocketKind, StreamPlan};

use Client::{Node, NodeAsPackets, OtherNode, Outside, Outside2, Pod, PodAsPackets};
use Expect::{Answered, Refused};
use SeenAs::{Anyone, Itself, NodeOf};
use Target::{ClusterIp, NodePort1, NodePort2, Uplink2};

/// Connections of one row, family and kind of socket. With three backends the chance that one of
/// them gets none of 60 is below one in ten thousand million.
const CONNECTIONS: u32 = 60;
/// Many windows and many GSO packets.
const STREAM_BYTES: u64 = 8 << 20;

/// One path.
struct Row {
    name: &'static str,
    rules: &'static str,
    from: Client,
    to: Target,
    expect: Expect,
}

/// What has to come of it.
#[derive(Clone, Copy)]
enum Expect {
    /// Exactly these servers, who see the client so.
    Answered(&'static [&'static str], SeenAs),
    /// ECONNREFUSED.
    Refused,
}

/// The client's address at the server.
#[derive(Clone, Copy)]
enum SeenAs {
    /// One of its own.
    Itself,
    /// One of node n's.
    NodeOf(u8),
    /// Not specified.
    Anyone,
}

const fn row(
    name: &'static str,
    rules: &'static str,
    from: Client,
    to: Target,
    expect: Expect,
) -> Row {
    Row {
        name,
        rules,
        from,
        to,
        expect,
    }
}

/// The paths of every cluster, with the socket hooks on or off.
const ROWS: &[Row] = &[
    row(
        "a pod reaches all backends",
        "S-090",
        Pod,
        ClusterIp("all"),
        Answered(&["a", "b", "c"], Itself),
    ),
    row(
        "a pod's packets reach all backends",
        "S-206",
        PodAsPackets,
        ClusterIp("all"),
        Answered(&["a", "b", "c"], Itself),
    ),
    row(
        "a pod's packets reach a backend beside it",
        "S-090",
        PodAsPackets,
        ClusterIp("near"),
        Answered(&["a"], Itself),
    ),
    row(
        "a pod's packets reach remote backends",
        "S-090",
        PodAsPackets,
        ClusterIp("far"),
        Answered(&["b", "c"], Itself),
    ),
    row(
        "a node's process reaches all backends",
        "S-200",
        Node,
        ClusterIp("all"),
        Answered(&["a", "b", "c"], Itself),
    ),
    row(
        "a node's packets reach a local backend",
        "P-8",
        NodeAsPackets,
        ClusterIp("near"),
        Answered(&["a"], Itself),
    ),
    row(
        "a node's packets reach remote backends",
        "S-207",
        NodeAsPackets,
        ClusterIp("far"),
        Answered(&["b", "c"], Itself),
    ),
    row(
        "outside to a node with a local backend",
        "P-4",
        Outside,
        NodePort1("near"),
        Answered(&["a"], Itself),
    ),
    row(
        "outside to a node with remote backends",
        "S-091",
        Outside,
        NodePort1("far"),
        Answered(&["b", "c"], NodeOf(1)),
    ),
    row(
        "outside to the node without a backend",
        "S-091",
        Outside,
        NodePort2("near"),
        Answered(&["a"], NodeOf(2)),
    ),
    row(
        "outside to all backends",
        "S-091",
        Outside,
        NodePort1("all"),
        Answered(&["a", "b", "c"], Anyone),
    ),
    row(
        "outside to a ClusterIP with a local backend",
        "S-097",
        Outside,
        ClusterIp("near"),
        Answered(&["a"], Itself),
    ),
    row(
        "outside to a ClusterIP with remote backends",
        "S-097",
        Outside,
        ClusterIp("far"),
        Answered(&["b", "c"], NodeOf(1)),
    ),
    row(
        "a pod reaches a node port of its own node",
        "S-091",
        PodAsPackets,
        NodePort1("near"),
        Answered(&["a"], Anyone),
    ),
    row(
        "a pod reaches a node port of another node",
        "S-091",
        PodAsPackets,
        NodePort2("far"),
        Answered(&["b", "c"], Anyone),
    ),
    row(
        "a node's process reaches a node port of another node",
        "S-204",
        OtherNode,
        NodePort1("near"),
        Answered(&["a"], Anyone),
    ),
    row(
        "a pod reaches itself",
        "S-094",
        Pod,
        ClusterIp("self"),
        Answered(&["client"], Anyone),
    ),
    row(
        "a pod's packets reach itself",
        "P-7",
        PodAsPackets,
        ClusterIp("self"),
        Answered(&["client"], NodeOf(1)),
    ),
    row(
        "a pod's socket is refused without endpoints",
        "S-104",
        Pod,
        ClusterIp("empty"),
        Refused,
    ),
    row(
        "a pod's packets are refused without endpoints",
        "S-104",
        PodAsPackets,
        ClusterIp("empty"),
        Refused,
    ),
    row(
        "a node's socket is refused without endpoints",
        "S-104",
        Node,
        ClusterIp("empty"),
        Refused,
    ),
    row(
        "a node's packets are refused without endpoints",
        "P-8",
        NodeAsPackets,
        ClusterIp("empty"),
        Refused,
    ),
    row(
        "outside is refused without endpoints",
        "S-105",
        Outside,
        NodePort1("empty"),
        Refused,
    ),
    row(
        "outside is refused at a ClusterIP without endpoints",
        "S-105",
        Outside,
        ClusterIp("empty"),
        Refused,
    ),
];

/// What only the socket hooks serve (P-8).
const OWN_ADDRESS_ROWS: &[Row] = &[
    row(
        "a node reaches its own node port, local",
        "P-8",
        Node,
        NodePort1("near"),
        Answered(&["a"], Itself),
    ),
    row(
        "a node reaches its own node port, remote",
        "P-8",
        Node,
        NodePort1("far"),
        Answered(&["b", "c"], Itself),
    ),
    row(
        "a node is refused at its own node port",
        "S-105",
        Node,
        NodePort1("empty"),
        Refused,
    ),
];

/// With a second uplink.
const UPLINK_ROWS: &[Row] = &[
    row(
        "the second uplink's client reaches a local backend",
        "P-4",
        Outside2,
        Uplink2("near"),
        Answered(&["a"], Anyone),
    ),
    row(
        "the second uplink's client reaches remote backends",
        "P-2",
        Outside2,
        Uplink2("far"),
        Answered(&["b", "c"], NodeOf(1)),
    ),
];

/// With a second uplink whose client every route leads back to. A policy route for the uplink's own
/// address says nothing of a ClusterIP's answers.
const UPLINK_CLUSTER_IP_ROWS: &[Row] = &[row(
    "the second uplink's client reaches a ClusterIP",
    "S-097",
    Outside2,
    ClusterIp("all"),
    Answered(&["a", "b", "c"], Anyone),
)];

const SOCKET_HOOKS_OFF: &[&str] = &["--socket-lb", "off"];

fn bridge(netfilter: BridgeNetfilter) -> Variant {
    Variant {
        pods: PodNetwork::Bridge(netfilter),
        ..Variant::default()
    }
}

#[test]
fn routed_pods() -> Result<()> {
    rules(&["S-211", "S-212"]);
    check(Variant::default(), &[], &[ROWS, OWN_ADDRESS_ROWS])
}

#[test]
fn routed_pods_without_firewall() -> Result<()> {
    let variant = Variant {
        firewall: Firewall::None,
        ..Variant::default()
    };
    check(variant, &[], &[ROWS, OWN_ADDRESS_ROWS])
}

#[test]
fn routed_pods_with_socket_hooks_off() -> Result<()> {
    check(Variant::default(), SOCKET_HOOKS_OFF, &[ROWS])
}

#[test]
fn routed_pods_with_connected_udp_at_the_socket() -> Result<()> {
    check(
        Variant::default(),
        &["--socket-udp", "connected"],
        &[ROWS, OWN_ADDRESS_ROWS],
    )
}

#[test]
fn bridged_pods_seen_by_netfilter() -> Result<()> {
    check(bridge(BridgeNetfilter::On), &[], &[ROWS, OWN_ADDRESS_ROWS])
}

#[test]
fn bridged_pods_not_seen_by_netfilter() -> Result<()> {
    check(bridge(BridgeNetfilter::Off), &[], &[ROWS, OWN_ADDRESS_ROWS])
}

#[test]
fn bridged_pods_with_socket_hooks_off() -> Result<()> {
    check(bridge(BridgeNetfilter::Off), SOCKET_HOOKS_OFF, &[ROWS])
}

#[test]
fn vxlan_overlay() -> Result<()> {
    let variant = Variant {
        overlay: Overlay::Vxlan,
        ..Variant::default()
    };
    check(variant, &[], &[ROWS, OWN_ADDRESS_ROWS])
}

#[test]
fn vxlan_overlay_with_bridged_pods_and_socket_hooks_off() -> Result<()> {
    let variant = Variant {
        overlay: Overlay::Vxlan,
        ..bridge(BridgeNetfilter::On)
    };
    check(variant, SOCKET_HOOKS_OFF, &[ROWS])
}

/// P-9: the packets of the other node's pods have no MAC header.
#[test]
fn overlay_without_mac_headers() -> Result<()> {
    let variant = Variant {
        overlay: Overlay::Tun,
        ..Variant::default()
    };
    check(variant, &[], &[ROWS, OWN_ADDRESS_ROWS])
}

/// As above, with the bridge's packets seen by netfilter and no socket hooks.
#[test]
fn overlay_without_mac_headers_with_socket_hooks_off() -> Result<()> {
    let variant = Variant {
        overlay: Overlay::Tun,
        ..bridge(BridgeNetfilter::On)
    };
    check(variant, SOCKET_HOOKS_OFF, &[ROWS])
}

#[test]
fn two_uplinks() -> Result<()> {
    rules(&["S-212"]);
    let variant = Variant {
        uplinks: Uplinks::Two,
        ..Variant::default()
    };
    check(
        variant,
        &["--nodeport-addresses", "all"],
        &[ROWS, UPLINK_ROWS, UPLINK_CLUSTER_IP_ROWS],
    )
}

#[test]
fn two_uplinks_with_a_policy_route() -> Result<()> {
    rules(&["S-212"]);
    let variant = Variant {
        uplinks: Uplinks::TwoWithPolicy,
        ..Variant::default()
    };
    check(
        variant,
        &["--nodeport-addresses", "all"],
        &[ROWS, UPLINK_ROWS],
    )
}

#[test]
fn smaller_mtu_at_the_pods() -> Result<()> {
    check(
        Variant {
            pod_mtu: 1400,
            ..Variant::default()
        },
        &[],
        &[ROWS, OWN_ADDRESS_ROWS],
    )
}

#[test]
fn offloads_off() -> Result<()> {
    let variant = Variant {
        offloads: Offloads::Off,
        ..Variant::default()
    };
    check(variant, &[], &[ROWS, OWN_ADDRESS_ROWS])
}

/// Runs all rows and reports every one that fails.
fn check(variant: Variant, arguments: &[&str], tables: &[&[Row]]) -> Result<()> {
    let mut rig = Rig::new(variant, arguments)?;
    let mut failures = Vec::new();
    let mut slices = 0..;
    for row in tables.iter().copied().flatten() {
        for family in FAMILIES {
            if let Err(error) = check_row(&mut rig, row, family, &mut slices) {
                let (name, rules) = (row.name, row.rules);
                failures.push(format!("{name} ({rules}) {family:?}: {error:#}"));
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} rows failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    Ok(())
}

fn check_row(
    rig: &mut Rig,
    row: &Row,
    family: IpFamily,
    slices: &mut impl Iterator<Item = u16>,
) -> Result<()> {
    let mut ports = |rig: &Rig| {
        slices
            .next()
            .map_or(Ok(()), |slice| rig.use_ports(row.from, slice))
    };
    let to = rig.address(row.to, family);
    match row.expect {
        Refused => {
            for socket in [
                SocketKind::Tcp,
                SocketKind::TcpBlocking,
                SocketKind::UdpConnected,
            ] {
                ports(rig)?;
                let plan = Plan::new(socket, to).times(3).timeout_ms(1_000);
                let report = rig.client(row.from)?.connect(plan)?;
                let refused = report.failures.get("ECONNREFUSED");
                ensure!(refused == Some(&3), "{socket:?}: {report:?}");
            }
        }
        Answered(servers, seen_as) => {
            for socket in [SocketKind::Tcp, SocketKind::Udp, SocketKind::UdpConnected] {
                ports(rig)?;
                let plan = Plan::new(socket, to)
                    .times(CONNECTIONS)
                    .timeout_ms(1_000)
                    .payload(700);
                let report = rig.client(row.from)?.connect(plan)?;
                check_answers(&report, servers).with_context(|| format!("{socket:?}"))?;
                check_addresses(rig, row.from, seen_as, &report)
                    .with_context(|| format!("{socket:?}"))?;
                let asked = report.from.keys().all(|from| *from == to);
                ensure!(asked, "{socket:?}: {to} answered as {:?}", report.from);
            }
            let stream = rig
                .client(row.from)?
                .stream(StreamPlan::new(to, STREAM_BYTES))?;
            ensure!(stream.bytes == STREAM_BYTES, "{stream:?}");
        }
    }
    Ok(())
}

fn check_answers(report: &Report, servers: &[&str]) -> Result<()> {
    ensure!(report.failed() == 0, "failures: {report:?}");
    ensure!(report.servers() == servers, "other servers: {report:?}");
    Ok(())
}

fn check_addresses(rig: &Rig, client: Client, seen_as: SeenAs, report: &Report) -> Result<()> {
    let allowed = match seen_as {
        Anyone => return Ok(()),
        Itself => rig.own_addresses(client),
        NodeOf(node) => node_addresses(node),
    };
    let wrong = report.seen_as.keys().find(|&&ip| !contains(&allowed, ip));
    ensure!(wrong.is_none(), "servers saw {:?}", report.seen_as);
    Ok(())
}
