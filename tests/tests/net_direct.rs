//! The harness by itself: every kind of cluster carries traffic without any Service.

use anyhow::Result;
use tests::topology::addresses::FAMILIES;
use tests::topology::{
    BridgeNetfilter, Cluster, Firewall, Offloads, Overlay, PodNetwork, Seen, Uplinks, Variant,
};
use tests::traffic::{Plan, Probe, Server, SocketKind, StreamPlan};

const PORT: u16 = 8080;

fn variants() -> Vec<(&'static str, Variant)> {
    let plain = Variant::default();
    let bridge = |netfilter| Variant {
        pods: PodNetwork::Bridge(netfilter),
        ..plain
    };
    vec![
        ("routed veths", plain),
        (
            "no firewall",
            Variant {
                firewall: Firewall::None,
                ..plain
            },
        ),
        ("bridge seen by netfilter", bridge(BridgeNetfilter::On)),
        ("bridge not seen by netfilter", bridge(BridgeNetfilter::Off)),
        (
            "vxlan",
            Variant {
                overlay: Overlay::Vxlan,
                ..plain
            },
        ),
        (
            "tunnel without MAC headers",
            Variant {
                overlay: Overlay::Tun,
                ..plain
            },
        ),
        (
            "vxlan and bridge",
            Variant {
                overlay: Overlay::Vxlan,
                ..bridge(BridgeNetfilter::On)
            },
        ),
        (
            "two uplinks",
            Variant {
                uplinks: Uplinks::Two,
                ..plain
            },
        ),
        (
            "two uplinks with a policy",
            Variant {
                uplinks: Uplinks::TwoWithPolicy,
                ..plain
            },
        ),
        (
            "small MTU",
            Variant {
                pod_mtu: 1400,
                ..plain
            },
        ),
        (
            "offloads off",
            Variant {
                offloads: Offloads::Off,
                ..plain
            },
        ),
    ]
}

#[test]
fn every_variant_carries_direct_traffic() -> Result<()> {
    for (name, variant) in variants() {
        let started = std::time::Instant::now();
        check(variant).map_err(|error| error.context(name))?;
        println!("{name}: {:?}", started.elapsed());
    }
    Ok(())
}

/// Pod to pod, on one node and across; node to pod; a stream; and the client reaches its node.
fn check(variant: Variant) -> Result<()> {
    let mut cluster = Cluster::new(variant)?;
    let client = cluster.add_pod(0, "client-pod")?;
    let near = cluster.add_pod(0, "near")?;
    let far = cluster.add_pod(1, "far")?;
    let mut servers = Vec::new();
    for pod in [&near, &far] {
        let mut probe = Probe::start(pod.place(Seen::BySocketHooks))?;
        for family in FAMILIES {
            for socket in [SocketKind::Tcp, SocketKind::Udp] {
                let listen = pod.at(family, PORT);
                probe.serve(Server {
                    name: pod.name.clone(),
                    socket,
                    listen,
                })?;
            }
        }
        servers.push(probe);
    }
    // The first datagram over a smaller link is lost to path MTU discovery, and rightly so.
    let payload = if variant.pod_mtu < 1500 { 1_000 } else { 3_000 };
    let mut from_pod = Probe::start(client.place(Seen::BySocketHooks))?;
    let mut from_node = Probe::start(&cluster.nodes[0].place(Seen::BySocketHooks))?;
    for pod in [&near, &far] {
        for family in FAMILIES {
            let to = pod.at(family, PORT);
            for socket in [
                SocketKind::Tcp,
                SocketKind::TcpBlocking,
                SocketKind::Udp,
                SocketKind::UdpConnected,
            ] {
                let plan = Plan::new(socket, to).times(20).payload(payload);
                let report = from_pod.connect(plan.clone())?;
                assert_eq!(report.count(&pod.name), 20, "{to} {socket:?}: {report:?}");
                let seen: Vec<_> = report.seen_as.keys().copied().collect();
                assert_eq!(seen, [client.addresses.of(family)], "{to} {socket:?}");
                let report = from_node.connect(plan)?;
                assert_eq!(report.count(&pod.name), 20, "{to} {socket:?}: {report:?}");
            }
            let stream = from_pod.stream(StreamPlan::new(to, 4 << 20))?;
            assert_eq!(stream.bytes, 4 << 20);
        }
    }
    outside(&cluster)
}

/// Clients reach n1 itself.
fn outside(cluster: &Cluster) -> Result<()> {
    let n1 = &cluster.nodes[0];
    let mut server = Probe::start(&n1.place(Seen::BySocketHooks))?;
    for family in FAMILIES {
        let listen = (n1.addresses.of(family), PORT).into();
        server.serve(Server {
            name: "n1".into(),
            socket: SocketKind::Tcp,
            listen,
        })?;
    }
    for client in [Some(&cluster.client), cluster.client2.as_ref()]
        .into_iter()
        .flatten()
    {
        if client.addresses != cluster.client.addresses {
            continue;
        }
        let mut probe = Probe::start(&client.place())?;
        for family in FAMILIES {
            let to = (n1.addresses.of(family), PORT).into();
            let report = probe.connect(Plan::new(SocketKind::Tcp, to).times(20))?;
            assert_eq!(report.count("n1"), 20, "{report:?}");
        }
    }
    Ok(())
}
