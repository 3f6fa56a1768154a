//! Another build takes over: other programs, maps of another size or of another version of the map
//! ABI, the same connections.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use proxy_userspace::datapath::abi::Abi;
use proxy_userspace::datapath::pin::{PinKind, Pins};
use proxy_userspace::datapath::sys;
use serde_json::json;
use tests::agent::Build;
use tests::load::Load;
use tests::manifests::Service;
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::addresses::IpFamily;
use tests::traffic::{Plan, SocketKind};

use crate::PATIENCE;
use crate::world::World;

/// Programs of both builds run side by side for so long after each that is swapped.
const PAUSE: [&str; 2] = ["--pause-after-swaps", "20"];

/// A world with a client that a Service with session affinity has bound, and with traffic.
struct Upgrade {
    world: World,
    load: Load,
    server: String,
    ids: BTreeSet<String>,
    links: BTreeMap<String, u32>,
    programs: BTreeMap<String, u32>,
}

impl Upgrade {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut world = World::start(&[arguments, &PAUSE].concat())?;
        let pods: Vec<_> = ["a", "b", "c"]
            .map(|name| world.rig.pods[name].clone())
            .into();
        let sticky = Service::new("sticky", 50)
            .port(95, 0, TARGET_PORT)
            .pods(&pods)
            .spec(json!({"sessionAffinity": "ClientIP"}));
        world.rig.add("sticky", sticky)?;
        let server = eventually(PATIENCE, || bound(&mut world.rig))?;
        let load = world.load()?;
        let ids = world.held()?.ids;
        let pins = pins(&world);
        Ok(Self {
            load,
            server,
            ids,
            links: objects(&pins, PinKind::Links)?,
            programs: objects(&pins, PinKind::Programs)?,
            world,
        })
    }

    /// Starts the agent again, as it was changed, and fails where anything was lost.
    fn take_over(&mut self, what: &str) -> Result<()> {
        self.world.agent.run()?;
        self.load.ask().with_context(|| what.to_owned())?;
        let found = self.world.held()?.ids;
        let lost: Vec<_> = self.ids.difference(&found).collect();
        ensure!(lost.is_empty(), "{what}: ids have changed: {lost:?}");
        let found = bound(&mut self.world.rig)?;
        ensure!(found == self.server, "{what}: {found}, not {}", self.server);
        let pins = pins(&self.world);
        // The same links, and other programs on them.
        ensure!(objects(&pins, PinKind::Links)? == self.links, "{what}");
        let programs = objects(&pins, PinKind::Programs)?;
        let before = std::mem::replace(&mut self.programs, programs);
        for (name, id) in &self.programs {
            ensure!(before.get(name) != Some(id), "{what}: {name} is the same");
        }
        Ok(())
    }
}

fn pins(world: &World) -> Pins {
    Pins::at(Path::new(&world.agent.bpffs()))
}

/// The kernel's ids of what is pinned; but of no map.
fn objects(pins: &Pins, kind: PinKind) -> Result<BTreeMap<String, u32>> {
    let names = pins.names(kind).into_iter().filter(|name| name != "BUILD");
    let ids = names.map(|name| {
        let object = pins.open(kind, &name)?.context("just listed")?;
        let id = match kind {
            PinKind::Links => sys::link_info(object.as_fd())?.id,
            _ => sys::object_id(object.as_fd())?,
        };
        Ok((name, id))
    });
    ids.collect()
}

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

/// Larger maps, and programs that are not this build's.
fn grow(tc: &str) -> Result<()> {
    let mut upgrade = Upgrade::start(&["--tc", tc, "--max-services", "512"])?;
    for size in ["1024", "2048"] {
        upgrade.world.agent.stop()?;
        // What tells the programs of a build: without it, those that are pinned are another's.
        pins(&upgrade.world).remove(PinKind::Programs, "BUILD")?;
        upgrade.world.agent.set("--max-services", size)?;
        upgrade.take_over(size)?;
    }
    println!("{tc}: {} connections", upgrade.load.finish()?);
    Ok(())
}

/// To a build of another version of the map ABI, whose flows have other layouts, and back.
fn change_version(tc: &str) -> Result<()> {
    let mut upgrade = Upgrade::start(&["--tc", tc])?;
    let version = |upgrade: &Upgrade| -> Result<u32> {
        let abi = Abi::read(&pins(&upgrade.world), PinKind::Maps)?;
        Ok(abi.context("no ABI")?.version)
    };
    let ours = version(&upgrade)?;
    for (build, expected) in [(Build::OtherAbi, ours + 1), (Build::Own, ours)] {
        upgrade.world.agent.stop()?;
        upgrade.world.agent.set_build(build);
        upgrade.take_over(&format!("{tc} {build:?}"))?;
        let found = version(&upgrade)?;
        ensure!(found == expected, "map ABI {found}, not {expected}");
    }
    println!("{tc}: {} connections", upgrade.load.finish()?);
    Ok(())
}

#[test]
fn links_are_updated_under_load() -> Result<()> {
    rules(&["S-101", "S-120", "S-178"]);
    grow("auto")
}

#[test]
fn filters_are_replaced_under_load() -> Result<()> {
    rules(&["S-101", "S-120", "S-178"]);
    grow("clsact")
}

#[test]
fn another_map_abi_and_back_under_load() -> Result<()> {
    rules(&["S-101", "S-120", "S-178"]);
    change_version("auto")
}

#[test]
fn another_map_abi_and_back_with_filters_under_load() -> Result<()> {
    rules(&["S-101", "S-120", "S-178"]);
    change_version("clsact")
}
