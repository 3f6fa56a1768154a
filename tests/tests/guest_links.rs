//! Links and addresses that need modules which the running kernel may lack: these tests run in the
//! machines that `cargo xtask kernels` boots.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::crossing::{
    Counted, FAR, N1, N2, PACKETS, REDIRECTED, SOCKETS, TIMEOUT_MS, all_paths, attach_type,
    dialled, served,
};
use tests::manifests::{Port, Service};
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::addresses::{FAMILIES, IpFamily, balanced};
use tests::topology::{Device, Variant};
use tests::traffic::{Held, Plan, Server, SocketKind, StreamPlan};

use Client::{Node, Outside, Pod, PodAsPackets};
use Target::{At, ClusterIp, Direct, NodePort1, NodePort2};

/// For a change to take effect there.
const PATIENCE: Duration = Duration::from_secs(120);
/// More than a window.
const STREAM_BYTES: u64 = 1 << 20;
/// Each way: no packet is larger, nor are more of them acknowledged at once.
const STREAM_PACKETS: u64 = STREAM_BYTES >> 16;
/// Of the load balancer.
const PORT: u16 = 86;

fn with_uplinks(device: Device) -> Result<Rig> {
    let variant = Variant {
        device,
        ..Variant::default()
    };
    let rig = Rig::new(variant, &[])?;
    for (agent, node) in rig.agents.iter().zip(&rig.cluster.nodes) {
        attach_type(agent, node, "up0").with_context(|| node.name.clone())?;
    }
    Ok(rig)
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
    served(&mut rig, FAR, (N1, REDIRECTED))
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
            let before = Counted::by(&rig.agents[N1])?;
            let report = rig.client(client)?.stream(plan);
            let report = report.with_context(|| format!("{client:?} {family:?}"))?;
            ensure!(report.bytes == STREAM_BYTES, "{report:?}");
            for names in PACKETS {
                before.ensure_risen(&rig.agents[N1], names, STREAM_PACKETS)?;
            }
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
    let plan = Plan::new(SocketKind::Tcp, to).timeout_ms(TIMEOUT_MS);
    published(&mut rig, Outside, &plan)?;
    let by = |client| (client, At(address, PORT), &["a", "b"][..]);
    served(&mut rig, by(Outside), (N1, PACKETS))?;
    served(&mut rig, by(PodAsPackets), (N1, PACKETS))?;
    served(&mut rig, by(Pod), (N1, PACKETS))?;
    if knows_its_processes(&rig)? {
        served(&mut rig, by(Node), (N1, SOCKETS))?;
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
    for (client, target, node) in [
        (PodAsPackets, ClusterIp("sctp"), N1),
        (Pod, ClusterIp("sctp"), N1),
        (Node, ClusterIp("sctp"), N1),
        (Outside, NodePort1("sctp"), N1),
        (Outside, NodePort2("sctp"), N2),
    ] {
        for family in FAMILIES {
            let plan = sctp(rig.address(target, family));
            published(&mut rig, client, &plan)?;
            let dialled = dialled(&mut rig, client, plan, &["a", "b", "c"], (node, PACKETS));
            dialled.with_context(|| format!("{client:?} to {target:?} {family:?}"))?;
        }
    }
    for pod in ["a", "b"] {
        for family in FAMILIES {
            let plan = sctp(rig.address(Direct(pod), family));
            let before = Counted::by(&rig.agents[N1])?;
            dialled(&mut rig, PodAsPackets, plan, &[pod], (N1, &[]))?;
            let risen = before.since(&rig.agents[N1])?;
            let translated = PACKETS
                .concat()
                .into_iter()
                .find(|name| risen.contains_key(*name));
            ensure!(translated.is_none(), "{pod} {family:?}: {risen:?}");
        }
    }
    Ok(())
}

/// Messages of several segments.
fn sctp(to: SocketAddr) -> Plan {
    let plan = Plan::new(SocketKind::Sctp, to);
    plan.payload(3_000).timeout_ms(TIMEOUT_MS)
}

/// Waits until a Service that was just written is served.
fn published(rig: &mut Rig, client: Client, plan: &Plan) -> Result<()> {
    eventually(PATIENCE, || {
        let report = rig.client(client)?.connect(plan.clone())?;
        ensure!(report.failed() == 0, "{report:?}");
        Ok(())
    })
    .with_context(|| format!("{client:?} to {}", plan.to))
}
