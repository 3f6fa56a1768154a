//! Datagrams larger than a link, both ways, through every kind of frontend.

use anyhow::{Context, Result, ensure};
use tests::rig::{Client, Rig, Target};
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::topology::{BridgeNetfilter, Overlay, PodNetwork, Variant};
use tests::traffic::{Plan, SocketKind};

use Client::{NodeAsPackets, Outside, Pod, PodAsPackets};
use Target::{ClusterIp, NodePort1, NodePort2};

/// Who sends to what, and which servers have to get the datagrams.
struct Row {
    rules: &'static str,
    from: Client,
    to: Target,
    servers: &'static [&'static str],
}

const fn row(
    rules: &'static str,
    from: Client,
    to: Target,
    servers: &'static [&'static str],
) -> Row {
    Row {
        rules,
        from,
        to,
        servers,
    }
}

const ROWS: &[Row] = &[
    row("S-131, S-200", Pod, ClusterIp("all"), &["a", "b", "c"]),
    row("S-131", PodAsPackets, ClusterIp("near"), &["a"]),
    row("S-131", PodAsPackets, ClusterIp("far"), &["b", "c"]),
    row("S-131, S-207", NodeAsPackets, ClusterIp("far"), &["b", "c"]),
    row("S-131, P-4", Outside, NodePort1("near"), &["a"]),
    row("S-131, S-091", Outside, NodePort1("far"), &["b", "c"]),
    row("S-131, S-091", Outside, NodePort2("near"), &["a"]),
    row("S-131, S-097", Outside, ClusterIp("all"), &["a", "b", "c"]),
];

/// Two fragments, and many.
const SIZES: [usize; 2] = [2_000, 60_000];
/// With three backends the chance that one of them gets none is below one in a million.
const DATAGRAMS: u32 = 40;

fn check(variant: Variant) -> Result<()> {
    let mut rig = Rig::new(variant, &[])?;
    let mut failures = Vec::new();
    for row in ROWS {
        for family in FAMILIES {
            for socket in [SocketKind::Udp, SocketKind::UdpConnected] {
                for size in SIZES {
                    let plan = Plan::new(socket, rig.address(row.to, family));
                    let plan = plan
                        .times(DATAGRAMS)
                        .payload(size)
                        .timeout_ms(2_000)
                        .max_failures(1);
                    let client = rig.client(row.from)?;
                    if variant.overlay != Overlay::None && family == IpFamily::V6 {
                        // No router fragments IPv6: the first datagram tells its sender the MTU.
                        client.connect(plan.clone().times(1))?;
                    }
                    let report = client.connect(plan).context("sending")?;
                    if report.failed() > 0 || report.servers() != row.servers {
                        failures.push(format!(
                            "{:?} to {:?} ({}) {family:?} {socket:?} {size} bytes: {report:?}",
                            row.from, row.to, row.rules
                        ));
                    }
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn bridge(netfilter: BridgeNetfilter) -> Variant {
    Variant {
        pods: PodNetwork::Bridge(netfilter),
        ..Variant::default()
    }
}

/// The tunnel's MTU is smaller than the network's, and fragments may be fragmented once more.
#[test]
fn fragments_through_a_tunnel() -> Result<()> {
    check(Variant {
        overlay: Overlay::Vxlan,
        ..Variant::default()
    })
}

#[test]
fn fragments_between_routed_pods() -> Result<()> {
    check(Variant::default())
}

#[test]
fn fragments_on_a_bridge_seen_by_netfilter() -> Result<()> {
    check(bridge(BridgeNetfilter::On))
}

#[test]
fn fragments_on_a_bridge_not_seen_by_netfilter() -> Result<()> {
    check(bridge(BridgeNetfilter::Off))
}
