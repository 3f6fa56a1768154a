//! What somebody else does to an agent, and agents that are not alone, not there or not served.

use std::os::fd::AsFd as _;

use anyhow::{Context, Result, ensure};
use proxy_common::{Addr4, Backend};
use proxy_userspace::datapath::pin::{PinKind, Pins};
use proxy_userspace::datapath::sys;
use proxy_userspace::maps::{FamilyMaps, Maps as _};
use tests::net::eventually;
use tests::rules;

use crate::PATIENCE;
use crate::http::metric;
use crate::world::World;

const AUDITED: [&str; 2] = ["--audit-period", "300ms"];

/// Waits until the maps are what they were and audits find nothing any more.
fn await_repair(world: &World, expected: &crate::world::Held, drift: u64) -> Result<()> {
    world.await_held(expected)?;
    let netns = &world.rig.cluster.nodes[0].netns;
    eventually(PATIENCE, || {
        let counted = world.agent.status()?["drift"].as_u64();
        ensure!(counted >= Some(drift), "{counted:?} repairs");
        let entries = metric(netns, "shunt_drift_total{what=\"entries\"}")?;
        ensure!(entries > 0.0);
        Ok(())
    })?;
    let lost: Vec<_> = expected
        .ids
        .difference(&world.held()?.ids)
        .cloned()
        .collect();
    ensure!(lost.is_empty(), "ids have changed: {lost:?}");
    Ok(())
}

/// Entries of Services beside the busy one: no packet meets the damage.
#[test]
fn entries_that_a_stranger_changes_are_repaired_under_load() -> Result<()> {
    rules(&["S-010"]);
    let world = World::start(&AUDITED)?;
    let load = world.load()?;
    let expected = world.held()?;
    let mut maps = world.agent.maps()?;
    let address = Addr4::from(world.rig.services["empty"].addresses.v4);
    let key = FamilyMaps::<Addr4>::frontend_ids(&maps)
        .into_iter()
        .map(|(key, _)| key)
        .find(|key| key.addr == address)
        .context("the Service has no frontend")?;
    maps.remove_frontend_id(&key)?;
    world.await_held(&expected)?;
    let strange = Backend {
        state: 1,
        ..bytemuck::Zeroable::zeroed()
    };
    let free = maps.capacity().backends - 1;
    FamilyMaps::<Addr4>::write_backend(&mut maps, free, &strange)?;
    maps.insert_frontend_id(&proxy_common::FrontendKey { pad: 7, ..key }, 3)?;
    for prefix in FamilyMaps::<Addr4>::cluster_ips(&maps) {
        if prefix.0.addr == address {
            maps.remove_cluster_ip(&prefix.0)?;
        }
    }
    await_repair(&world, &expected, 4)?;
    println!("{} connections", load.finish()?);
    Ok(())
}

/// Its packets are lost until the audit finds out, but what was open is so again.
#[test]
fn programs_that_a_stranger_detaches_are_attached_again() -> Result<()> {
    let world = World::start(&AUDITED)?;
    let mut load = world.hold()?;
    let expected = world.held()?;
    let pins = Pins::at(std::path::Path::new(&world.agent.bpffs()));
    let links = pins.names(PinKind::Links);
    for name in &links {
        let link = pins.open(PinKind::Links, name)?.context("no link")?;
        sys::link_detach(link.as_fd())?;
    }
    eventually(PATIENCE, || {
        let attached = links.iter().all(|name| {
            let link = pins.open(PinKind::Links, name).ok().flatten();
            link.is_some_and(|link| {
                sys::link_info(link.as_fd()).is_ok_and(|info| info.target as u32 != 0)
            })
        });
        ensure!(attached, "some links lead nowhere");
        Ok(())
    })?;
    let drift = world.agent.status()?["drift"].as_u64();
    ensure!(drift >= Some(links.len() as u64 / 2), "{drift:?} repairs");
    load.ask()?;
    world.held()?.check(&expected)?;
    load.finish()?;
    Ok(())
}

/// The first goes on as if nothing were.
#[test]
fn second_agent_on_the_same_pins_is_refused() -> Result<()> {
    let mut world = World::start(&[])?;
    let load = world.load()?;
    let (expected, writes) = (world.held()?, world.writes()?);
    let refusal = world.agent.refusal()?;
    ensure!(refusal.contains("another shunt agent uses"), "{refusal}");
    ensure!(world.held()? == expected && world.writes()? == writes);
    // As soon as the first is gone there is room for another one.
    world.agent.run()?;
    world.held()?.check(&expected)?;
    load.finish()?;
    Ok(())
}

/// SIGTERM, then changes, while nobody is there to follow them.
#[test]
fn what_happens_while_no_agent_runs_is_caught_up_with() -> Result<()> {
    rules(&["S-178", "S-180"]);
    let mut world = World::start(&[])?;
    let first = world.held()?;
    world.write(1)?;
    world.agent.run()?;
    let second = world.held()?;
    let load = world.load()?;
    for (state, expected) in [(0, &first), (1, &second)] {
        world.agent.stop()?;
        let left = world.held()?;
        for passing in [state, 1 - state, state] {
            world.write(passing)?;
        }
        ensure!(world.held()? == left, "nobody writes");
        world.agent.run()?;
        world.held()?.check(expected)?;
    }
    println!("{} connections", load.finish()?);
    Ok(())
}
