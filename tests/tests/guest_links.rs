//! Links and addresses that need modules which the running kernel may lack: these tests run in the
//! machines that `cargo xtask kernels` boots.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::manifests::{Port, Service};
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::addresses::{FAMILIES, IpFamily, balanced};
use tests::topology::{Device, Variant};
use tests::traffic::{Held, Plan, Server, SocketKind, StreamPlan};

use Client::{Node, Outside, Pod, PodAsPackets};
use Target::{At, ClusterIp, Direct, NodePort1, NodePort2};

/// For a connection on an emulated machine.
const TIMEOUT_MS: u64 = 60_000;
/// For a change to take effect there.
const PATIENCE: Duration = Duration::from_secs(120);
/// Enough for three backends to show: all miss one in a run of 10,000.
const CONNECTIONS: u32 = 24;
/// More than a window.
const STREAM_BYTES: u64 = 1 << 20;
/// Of the load balancer.
const PORT: u16 = 86;

/// Who dials what over an uplink, and who answers.
const PATHS: [(Client, Target, &[&str]); 4] = [
    (PodAsPackets, ClusterIp("all"), &["a", "b", "c"]),
    (Outside, NodePort1("near"), &["a"]),
    (Outside, NodePort1("far"), &["b", "c"]),
    (Outside, NodePort2("near"), &["a"]),
];

fn with_uplinks(device: Device) -> Result<Rig> {
    let variant = Variant {
        device,
        ..Variant::default()
    };
    Rig::new(variant, &[])
}

/// All of `servers` answer, and nobody else.
fn served(rig: &mut Rig, client: Client, target: Target, servers: &[&str]) -> Result<()> {
    for family in FAMILIES {
        let to = rig.address(target, family);
        for socket in [SocketKind::Tcp, SocketKind::Udp] {
            let plan = Plan::new(socket, to)
                .times(CONNECTIONS)
                .timeout_ms(TIMEOUT_MS);
            let report = rig.client(client)?.connect(plan)?;
            ensure!(
                report.failed() == 0 && report.servers() == servers,
                "{client:?} to {target:?} ({to}) by {socket:?}: {report:?}"
            );
        }
    }
    Ok(())
}

fn all_paths(rig: &mut Rig) -> Result<()> {
    for (client, target, servers) in PATHS {
        served(rig, client, target, servers)?;
    }
    Ok(())
}

#[test]
fn uplinks_that_are_vlan_devices() -> Result<()> {
    rules(&["S-091", "S-178"]);
    all_paths(&mut with_uplinks(Device::Vlan)?)
}

/// And the other half of the bond takes over what is open.
#[test]
fn uplinks_that_are_bonds() -> Result<()> {
    rules(&["S-091", "S-120", "S-178"]);
    let mut rig = with_uplinks(Device::Bond)?;
    all_paths(&mut rig)?;
    let mut held = Vec::new();
    for family in FAMILIES {
        let to = rig.address(NodePort1("far"), family);
        let open = Held::new(SocketKind::Tcp, to);
        let (number, answer) = rig.client(Outside)?.open(open)?;
        held.push((family, number, answer.server));
    }
    rig.cluster.nodes[0].netns.ip("link set up0-0 down\n")?;
    for (family, number, server) in held {
        let answer = rig.client(Outside)?.ask(number, 1_000);
        let answer = answer.with_context(|| format!("{family:?} after the change"))?;
        ensure!(answer.server == server, "{family:?}: {answer:?}");
    }
    served(&mut rig, Outside, NodePort1("far"), &["b", "c"])
}

/// What is lost is sent again, and comes to the same backend.
#[test]
fn streams_over_links_that_lose_and_reorder() -> Result<()> {
    rules(&["S-120"]);
    let mut rig = with_uplinks(Device::Veth)?;
    for port in ["n1", "n2"] {
        let words = "delay 3ms 1ms reorder 10% 50% loss 1%".split(' ');
        let netem = ["tc", "qdisc", "add", "dev", port, "root", "netem"];
        let words: Vec<&str> = netem.into_iter().chain(words).collect();
        rig.cluster.net.run(&words)?;
    }
    for (client, target) in [
        (Outside, NodePort1("far")),
        (PodAsPackets, ClusterIp("far")),
    ] {
        for family in FAMILIES {
            let to = rig.address(target, family);
            let plan = StreamPlan {
                timeout_ms: TIMEOUT_MS,
                ..StreamPlan::new(to, STREAM_BYTES)
            };
            let report = rig.client(client)?.stream(plan);
            let report = report.with_context(|| format!("{client:?} {family:?}"))?;
            ensure!(report.bytes == STREAM_BYTES, "{report:?}");
        }
    }
    let dropped = rig
        .cluster
        .net
        .run(&["tc", "-s", "qdisc", "show", "dev", "n2"])?;
    ensure!(
        !dropped.contains("(dropped 0,"),
        "nothing was lost: {dropped}"
    );
    Ok(())
}

/// As load balancers without a cloud hold it: the node answers for the address, and so do we.
#[test]
fn address_of_a_load_balancer_on_a_dummy_device() -> Result<()> {
    rules(&["S-024", "S-087"]);
    let mut rig = with_uplinks(Device::Veth)?;
    let address = balanced(9);
    rig.cluster.nodes[0].netns.ip(&format!(
        "link add lb0 type dummy\nlink set lb0 up\n\
         addr add {}/32 dev lb0\naddr add {}/128 dev lb0 nodad\n",
        address.v4, address.v6,
    ))?;
    let service = Service::new("held", 60)
        .port(PORT, 30_086, TARGET_PORT)
        .balanced(address)
        .pods(["a", "b"].map(|pod| &rig.pods[pod]));
    rig.add("held", service)?;
    let to = rig.address(At(address, PORT), IpFamily::V6);
    eventually(PATIENCE, || {
        let plan = Plan::new(SocketKind::Tcp, to).timeout_ms(TIMEOUT_MS);
        let report = rig.client(Outside)?.connect(plan)?;
        ensure!(report.failed() == 0, "{report:?}");
        Ok(())
    })?;
    for client in [Outside, Pod, PodAsPackets] {
        served(&mut rig, client, At(address, PORT), &["a", "b"])?;
    }
    if knows_its_processes(&rig)? {
        served(&mut rig, Node, At(address, PORT), &["a", "b"])?;
    }
    Ok(())
}

/// False before 5.14, where an agent in a namespace that is not the machine's own takes the
/// processes there for those of pods: only sockets serve them at an own address.
fn knows_its_processes(rig: &Rig) -> Result<bool> {
    Ok(rig.agents[0].kernel()? >= (5, 14))
}

/// Associations of real sockets: ports and CRC32c change both ways, with SNAT and without; and
/// messages of several segments, which are no concern of ours between pods.
#[test]
fn sctp_through_every_kind_of_frontend() -> Result<()> {
    rules(&["S-129"]);
    let mut rig = with_uplinks(Device::Veth)?;
    for pod in ["a", "b", "c"] {
        let addresses = rig.pods[pod].addresses;
        let probe = rig.servers.get_mut(pod).context("a server")?;
        for family in FAMILIES {
            probe.serve(Server {
                name: pod.to_owned(),
                socket: SocketKind::Sctp,
                listen: (addresses.of(family), TARGET_PORT).into(),
            })?;
        }
    }
    let port = Port {
        protocol: "SCTP",
        port: 88,
        node_port: 30_088,
        target_port: TARGET_PORT,
    };
    let mut service = Service::new("sctp", 62);
    service.ports.push(port);
    let service = service.pods(["a", "b", "c"].map(|pod| &rig.pods[pod]));
    rig.add("sctp", service)?;
    let frontends = [
        (PodAsPackets, Direct("a")),
        (PodAsPackets, Direct("b")),
        (PodAsPackets, ClusterIp("sctp")),
        (Pod, ClusterIp("sctp")),
        (Node, ClusterIp("sctp")),
        (Outside, NodePort1("sctp")),
        (Outside, NodePort2("sctp")),
    ];
    for (client, target) in frontends {
        for family in FAMILIES {
            let to = rig.address(target, family);
            let plan = Plan::new(SocketKind::Sctp, to).payload(3_000);
            let plan = plan.timeout_ms(TIMEOUT_MS);
            eventually(PATIENCE, || {
                let report = rig.client(client)?.connect(plan.clone())?;
                ensure!(report.failed() == 0, "{report:?}");
                Ok(())
            })
            .with_context(|| format!("{client:?} to {to}"))?;
            let servers = match target {
                Direct(pod) => vec![pod],
                _ => vec!["a", "b", "c"],
            };
            let report = rig.client(client)?.connect(plan.times(CONNECTIONS))?;
            ensure!(
                report.failed() == 0 && report.servers() == servers,
                "{client:?} to {to}: {report:?}"
            );
        }
    }
    Ok(())
}
