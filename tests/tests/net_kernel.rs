//! What the running kernel gives: the features that its release has, the fallback where it lacks
//! one, and traffic that really takes that way. `cargo xtask kernels` runs this on other kernels.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::crossing::{Counted, attach_type};
use tests::rig::{Client, Rig, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Held, Plan, SocketKind};

use Client::{Node, Outside, Pod, PodAsPackets};
use Target::{ClusterIp, NodePort1, NodePort2};

/// For a connection on an emulated machine.
const TIMEOUT_MS: u64 = 30_000;
/// Enough for three backends to show: all miss one in a run of 10,000.
const CONNECTIONS: u32 = 24;

/// A feature as `shunt status` names it, and the release that brought it.
const FEATURES: [(&str, (u32, u32)); 5] = [
    ("ringBuffer", (5, 8)),
    ("btf", (5, 10)),
    ("udpDestroy", (5, 10)),
    ("setRetval", (5, 18)),
    ("tcx", (6, 6)),
];

/// Who dials what, and which counters say that it went the way it should.
const PATHS: [(Client, Target, &[&str], &[&str]); 5] = [
    (
        Pod,
        ClusterIp("all"),
        &["a", "b", "c"],
        &["SocketConnected", "SocketSent"],
    ),
    (
        PodAsPackets,
        ClusterIp("all"),
        &["a", "b", "c"],
        &["OriginalStack"],
    ),
    (
        Node,
        ClusterIp("all"),
        &["a", "b", "c"],
        &["SocketConnected", "SocketSent"],
    ),
    (Outside, NodePort1("near"), &["a"], &["ReplyStack"]),
    (
        Outside,
        NodePort1("far"),
        &["b", "c"],
        &["OriginalRedirect", "ReplyRedirect"],
    ),
];

#[test]
fn this_kernel_serves_every_path() -> Result<()> {
    rules(&["S-104", "S-178"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    let status = rig.agents[0].status()?;
    println!("\n@features {}", status["features"]);
    features(&status, rig.agents[0].kernel()?)?;
    let by = attach_type(&rig.agents[0], &rig.cluster.nodes[0], "up0")?;
    println!("\n@fact programs at interfaces by = {by}");
    for path in PATHS {
        for family in FAMILIES {
            served(&mut rig, path, family).with_context(|| format!("{path:?} {family:?}"))?;
        }
    }
    refused(&mut rig)?;
    restarted(&mut rig)
}

/// Every feature is there exactly where its release says so.
fn features(status: &Value, release: (u32, u32)) -> Result<()> {
    let found = &status["features"];
    for (name, since) in FEATURES {
        let expected = release >= since;
        ensure!(found[name] == expected, "{name}: {found}");
    }
    let interfaces = status["interfaces"].as_array().context("interfaces")?;
    let attached = |interface: &Value| interface["attached"] == true;
    let all = interfaces.iter().filter(|found| attached(found)).count();
    ensure!(all >= 3, "programs on {all} of {interfaces:?}");
    Ok(())
}

/// All backends answer, and the counters of n1 say that it was our programs' doing.
fn served(
    rig: &mut Rig,
    (client, target, servers, counters): (Client, Target, &[&str], &[&str]),
    family: IpFamily,
) -> Result<()> {
    let before = Counted::by(&rig.agents[0])?;
    let to = rig.address(target, family);
    for socket in [SocketKind::Tcp, SocketKind::Udp] {
        let plan = Plan::new(socket, to)
            .times(CONNECTIONS)
            .timeout_ms(TIMEOUT_MS);
        let report = rig.client(client)?.connect(plan)?;
        ensure!(report.failed() == 0, "{socket:?}: {report:?}");
        ensure!(report.servers() == servers, "{socket:?}: {report:?}");
    }
    for name in counters {
        before.ensure_risen(&rig.agents[0], &[name], u64::from(CONNECTIONS))?;
    }
    Ok(())
}

/// ECONNREFUSED everywhere, with and without `bpf_set_retval` (P-12).
fn refused(rig: &mut Rig) -> Result<()> {
    for (client, target) in [
        (Pod, ClusterIp("empty")),
        (PodAsPackets, ClusterIp("empty")),
        (Node, ClusterIp("empty")),
        (Outside, NodePort2("empty")),
    ] {
        for family in FAMILIES {
            let plan = Plan::new(SocketKind::Tcp, rig.address(target, family))
                .times(2)
                .timeout_ms(TIMEOUT_MS);
            let report = rig.client(client)?.connect(plan)?;
            let refused = report.failures.get("ECONNREFUSED");
            ensure!(refused == Some(&2), "{client:?} {family:?}: {report:?}");
        }
    }
    Ok(())
}

/// A connection outlives the agent, and the next agent adopts what is pinned.
fn restarted(rig: &mut Rig) -> Result<()> {
    let mut held = Vec::new();
    for (client, target) in [
        (PodAsPackets, ClusterIp("all")),
        (Outside, NodePort1("far")),
    ] {
        for family in FAMILIES {
            let to = rig.address(target, family);
            let opened = rig.client(client)?.open(Held::new(SocketKind::Tcp, to));
            let (number, answer) = opened.with_context(|| format!("{client:?} to {to}"))?;
            held.push((client, number, answer.server));
        }
    }
    let before = Counted::by(&rig.agents[0])?;
    let clock = rig.agents[0].status()?["datapath"]["hz"].take();
    rig.agents[0].kill()?;
    rig.agents[0].run()?;
    // At another rate all flows would be of another time.
    let found = rig.agents[0].status()?["datapath"]["hz"].take();
    ensure!(found == clock, "{found} ticks per second, not {clock}");
    for (client, number, server) in held {
        let answer = rig.client(client)?.ask(number, 1_000);
        let counted = before.since(&rig.agents[0])?;
        let answer = answer.with_context(|| format!("{client:?} of {server}: {counted:?}"))?;
        ensure!(answer.server == server, "{client:?}: {answer:?}");
    }
    let path = (
        PodAsPackets,
        ClusterIp("all"),
        &["a", "b", "c"][..],
        &[][..],
    );
    served(rig, path, IpFamily::V6)
}
