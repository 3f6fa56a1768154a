//! Another build takes over: other programs, other maps, the same connections.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use proxy_userspace::datapath::pin::{PinKind, Pins};
use serde_json::json;
use tests::manifests::Service;
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::addresses::IpFamily;
use tests::traffic::{Plan, SocketKind};

use crate::PATIENCE;
use crate::world::World;

/// The one server that a client of a Service with session affinity reaches.
fn bound(rig: &mut Rig) -> Result<String> {
    let to = rig.address(Target::ClusterIp("sticky"), IpFamily::V4);
    let plan = Plan::new(SocketKind::Tcp, to).times(5).max_failures(1);
    let report = rig.client(Client::Outside)?.connect(plan)?;
    ensure!(report.failed() == 0, "{report:?}");
    match *report.servers() {
        [server] => Ok(server.to_owned()),
        _ => anyhow::bail!("{report:?}"),
    }
}

fn take_over(tc: &str) -> Result<()> {
    let mut world = World::start(&["--tc", tc, "--max-services", "512"])?;
    let pods: Vec<_> = ["a", "b", "c"]
        .map(|name| world.rig.pods[name].clone())
        .into();
    let sticky = Service::new("sticky", 50)
        .port(95, 0, TARGET_PORT)
        .pods(&pods)
        .spec(json!({"sessionAffinity": "ClientIP"}));
    world.rig.add("sticky", sticky)?;
    let server = eventually(PATIENCE, || bound(&mut world.rig))?;
    let mut load = world.load()?;
    let pins = Pins::at(Path::new(&world.agent.bpffs()));
    for size in ["1024", "2048"] {
        world.agent.stop()?;
        let before = world.held()?;
        // What tells the programs of a build: without it, those that are pinned are another's.
        pins.remove(PinKind::Programs, "BUILD")?;
        world.agent.set("--max-services", size)?;
        world.agent.run()?;
        load.ask()
            .with_context(|| format!("{tc}, {size} Services"))?;
        let lost: Vec<_> = before.ids.difference(&world.held()?.ids).cloned().collect();
        ensure!(lost.is_empty(), "ids have changed: {lost:?}");
        let found = bound(&mut world.rig)?;
        ensure!(found == server, "{found} instead of {server}");
    }
    println!("{tc}: {} connections", load.finish()?);
    Ok(())
}

#[test]
fn links_are_updated_under_load() -> Result<()> {
    rules(&["S-101", "S-120", "S-178"]);
    take_over("auto")
}

#[test]
fn filters_are_replaced_under_load() -> Result<()> {
    rules(&["S-101", "S-120", "S-178"]);
    take_over("clsact")
}
