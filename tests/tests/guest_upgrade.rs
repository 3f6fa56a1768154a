//! An agent of another version of the map ABI takes over, and this one again, under traffic, on
//! kernels whose verifiers follow less than the running one's.

use anyhow::{Context, Result, ensure};
use tests::agent::Build;
use tests::crossing::TIMEOUT_MS;
use tests::load::Load;
use tests::rig::{Client, Rig, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::IpFamily;
use tests::traffic::{Plan, Probe, SocketKind};

/// Programs of both builds run side by side for so long after each that is swapped.
const PAUSE: [&str; 2] = ["--pause-after-swaps", "20"];
/// Between the connections of one client: an emulated machine has other things to do.
const PACE_MS: u64 = 50;

/// Who dials what all the time.
const STREAMS: [(Client, Target, SocketKind, IpFamily); 4] = [
    (
        Client::Outside,
        Target::NodePort1("far"),
        SocketKind::Tcp,
        IpFamily::V4,
    ),
    (
        Client::Outside,
        Target::NodePort1("near"),
        SocketKind::Udp,
        IpFamily::V6,
    ),
    (
        Client::PodAsPackets,
        Target::ClusterIp("all"),
        SocketKind::Tcp,
        IpFamily::V6,
    ),
    (
        Client::Pod,
        Target::ClusterIp("all"),
        SocketKind::Udp,
        IpFamily::V4,
    ),
];

#[test]
fn another_map_abi_and_back_keeps_every_connection() -> Result<()> {
    rules(&["S-178"]);
    let mut rig = Rig::new(Variant::default(), &PAUSE)?;
    let mut held = Load::hold(&rig, "all")?;
    let mut streams = Vec::new();
    for (client, target, socket, family) in STREAMS {
        let mut probe = Probe::start(&rig.place(client)?)?;
        let plan = Plan::new(socket, rig.address(target, family));
        let plan = plan.until_finish().pause_ms(PACE_MS).timeout_ms(TIMEOUT_MS);
        probe.begin(plan)?;
        streams.push((format!("{client:?} {socket:?} {family:?}"), probe));
    }
    for build in [Build::OtherAbi, Build::Own] {
        let agent = &mut rig.agents[0];
        agent.stop()?;
        agent.set_build(build);
        agent.run()?;
        held.ask().with_context(|| format!("{build:?}"))?;
        let log = agent.log()?;
        ensure!(!log.contains("with a gap"), "{build:?}: {log}");
    }
    let mut connections = 0;
    for (name, mut probe) in streams {
        let report = probe.finish()?;
        ensure!(report.failed() == 0, "{name}: {report:?}");
        ensure!(report.connections > 0, "{name}: {report:?}");
        connections += report.connections;
    }
    println!("\n@fact connections while the map ABI changed twice, none lost = {connections}");
    Ok(())
}
