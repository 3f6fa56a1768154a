//! Maps that are full, and maps that grow.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_userspace::datapath::pin::{PinKind, Pins};
use serde_json::Value;
use tests::manifests::{Port, Service};
use tests::net::eventually;
use tests::rig::TARGET_PORT;
use tests::rules;

use crate::PATIENCE;
use crate::http::metric;
use crate::world::World;

/// Sizes that the Services of the world fit in, but not the others of this test.
const SMALL: [&str; 4] = ["--max-services", "64", "--max-endpoints", "128"];
/// More Services than fit, of one frontend and one backend each.
const FILLERS: std::ops::Range<u8> = 100..200;
const HELD_UP: &str = "shunt_service_ports_held_up{ip_family=\"IPv4\"}";

fn fillers(world: &World, numbers: std::ops::Range<u8>) -> Result<()> {
    let mut objects: Vec<Value> = Vec::new();
    for number in numbers {
        let mut service = Service::new(&format!("filler-{number}"), number);
        service.ports.push(Port {
            protocol: "TCP",
            port: 80,
            node_port: 0,
            target_port: TARGET_PORT,
        });
        objects.extend(service.pods([&world.rig.pods["a"]]).objects());
    }
    world.rig.manifests.write("fillers", &objects)?;
    Ok(())
}

/// Waits until so many of the node's problems are that a map is full.
fn await_full(world: &World, is_expected: impl Fn(usize) -> bool) -> Result<()> {
    let netns = &world.rig.cluster.nodes[0].netns;
    eventually(PATIENCE, || {
        let status = world.agent.status()?;
        let problems = status["problems"].as_array().context("no problems")?;
        let text = |problem: &&Value| {
            problem["problem"]
                .as_str()
                .unwrap_or("")
                .contains("is full")
        };
        let full = problems.iter().filter(text).count();
        ensure!(is_expected(full), "{status}");
        ensure!(is_expected(metric(netns, HELD_UP)? as usize));
        Ok(())
    })
    .with_context(|| world.agent.log_tail())
}

/// What is served goes on, what does not fit is told and waits, and a restart makes room.
#[test]
fn full_maps_keep_what_they_hold_and_grow_at_a_restart() -> Result<()> {
    rules(&["S-011", "S-178"]);
    let mut world = World::start(&SMALL)?;
    let mut load = world.load()?;
    fillers(&world, FILLERS)?;
    await_full(&world, |full| full > 0)?;
    ensure!(world.agent.log()?.contains("reason=\"NoRoom\""));
    // What goes makes room for what waits.
    fillers(&world, FILLERS.start..FILLERS.start + 5)?;
    await_full(&world, |full| full == 0)?;
    ensure!(world.agent.log()?.contains("reason=\"RoomFound\""));
    fillers(&world, FILLERS)?;
    await_full(&world, |full| full > 0)?;
    load.ask()?;
    world.agent.stop()?;
    let before = world.held()?;
    world.agent.set("--max-services", "512")?;
    world.agent.set("--max-endpoints", "512")?;
    world.agent.run()?;
    await_full(&world, |full| full == 0)?;
    let lost: Vec<_> = before.ids.difference(&world.held()?.ids).cloned().collect();
    ensure!(lost.is_empty(), "ids have changed: {lost:?}");
    println!("{} connections", load.finish()?);
    Ok(())
}

/// The flow tables too: what is open stays open, and what begins meanwhile gets all its answers.
#[test]
fn flow_tables_that_grow_keep_their_flows() -> Result<()> {
    rules(&["S-120", "S-178"]);
    let mut world = World::start(&["--max-flows", "2048", "--pause-after-swaps", "20"])?;
    let mut load = world.load()?;
    for flows in ["4096", "16384", "1024"] {
        world.agent.stop()?;
        world.agent.set("--max-flows", flows)?;
        world.agent.run()?;
        load.ask().with_context(|| format!("with {flows} flows"))?;
    }
    println!("{} connections", load.finish()?);
    Ok(())
}

/// Some hooks run old programs then, some transitional ones, some those of the new tables.
#[test]
fn agent_killed_while_flow_tables_are_exchanged_loses_nothing() -> Result<()> {
    rules(&["S-120", "S-178"]);
    let mut world = World::start(&["--max-flows", "2048", "--pause-after-swaps", "25"])?;
    let mut load = world.load()?;
    let pins = Pins::at(Path::new(&world.agent.bpffs()));
    for (flows, after_ms) in [("4096", 0), ("8192", 200), ("16384", 500), ("32768", 900)] {
        world.agent.stop()?;
        world.agent.set("--max-flows", flows)?;
        world.agent.begin(&[])?;
        eventually(PATIENCE, || {
            let is_exchanging = !pins.names(PinKind::OldMaps).is_empty();
            ensure!(is_exchanging, "the maps are not exchanged");
            Ok(())
        })
        .with_context(|| world.agent.log_tail())?;
        std::thread::sleep(Duration::from_millis(after_ms));
        world.agent.kill()?;
        load.ask()
            .with_context(|| format!("{after_ms} ms into an exchange"))?;
        world.agent.run()?;
        ensure!(pins.names(PinKind::OldMaps).is_empty());
        load.ask().with_context(|| format!("with {flows} flows"))?;
    }
    println!("{} connections", load.finish()?);
    Ok(())
}
