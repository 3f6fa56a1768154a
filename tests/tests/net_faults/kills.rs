//! SIGKILL at every map write, and at random moments.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::rules;

use crate::number;
use crate::world::{Held, World};

/// Random moments; more by hand with `SHUNT_KILLS`.
const KILLS: u64 = 100;
/// Held connections are asked each time after so many kills.
const ASKED_EVERY: u64 = 10;

/// What the maps hold in both states, and the ids that are the same in both.
struct Expected {
    held: [Held; 2],
    ids: BTreeSet<String>,
    /// Writes from the one state to the other, by the state that is left.
    writes: [u64; 2],
}

impl Expected {
    /// Goes from the first state to the second and back, without a kill.
    fn learn(world: &mut World) -> Result<Self> {
        world.agent.stop()?;
        let first = world.held()?;
        world.write(1)?;
        world.agent.run()?;
        let second = world.held()?;
        let mut writes = [0; 2];
        for (from, to, held) in [(1, 0, &first), (0, 1, &second), (1, 0, &first)] {
            let before = world.writes()?;
            world.write(to)?;
            world.await_held(held)?;
            writes[from] = world.writes()? - before;
        }
        let ids: BTreeSet<String> = first.ids.intersection(&second.ids).cloned().collect();
        ensure!(!ids.is_empty(), "nothing is the same in both states");
        Ok(Self {
            held: [first, second],
            ids,
            writes,
        })
    }

    fn check(&self, world: &World, state: usize) -> Result<()> {
        let held = world.held()?;
        held.check(&self.held[state])?;
        let lost: Vec<&String> = self.ids.difference(&held.ids).collect();
        ensure!(lost.is_empty(), "ids have changed: {lost:?}");
        Ok(())
    }
}

/// Every write of a change is the last of one agent's life. Its successor finds what it left.
#[test]
fn agent_killed_after_each_write_loses_nothing() -> Result<()> {
    rules(&["S-120", "S-178", "S-180"]);
    let mut world = World::start(&[])?;
    let expected = Expected::learn(&mut world)?;
    let mut load = world.load()?;
    let mut points = expected.writes.map(|writes| 1..=writes);
    let (mut state, mut hit) = (0, 0);
    while points.iter().any(|points| !points.is_empty()) {
        let point = points[state].next();
        match point {
            Some(point) => {
                let point = point.to_string();
                world.agent.run_with(&["--kill-after-writes", &point])?;
            }
            None => world.agent.run()?,
        }
        expected.check(&world, state)?;
        state = 1 - state;
        world.write(state)?;
        match point {
            Some(point) => {
                let status = world.agent.await_end()?;
                let is_killed = status.signal() == Some(libc::SIGKILL);
                ensure!(is_killed, "{status}: {}", world.agent.log_tail());
                hit += 1;
                if hit % ASKED_EVERY == 0 {
                    load.ask().with_context(|| format!("after write {point}"))?;
                }
            }
            None => world.await_held(&expected.held[state])?,
        }
    }
    world.agent.run()?;
    expected.check(&world, state)?;
    let connections = load.finish()?;
    let writes: u64 = expected.writes.iter().sum();
    println!("{hit} of {writes} writes were followed by a kill; {connections} connections");
    ensure!(hit == writes);
    Ok(())
}

/// What changed while no agent ran is written by a start, and each of its writes is the last one.
#[test]
fn agent_killed_after_each_write_of_its_start_loses_nothing() -> Result<()> {
    rules(&["S-120", "S-178", "S-180"]);
    let mut world = World::start(&[])?;
    let expected = Expected::learn(&mut world)?;
    let mut load = world.load()?;
    let mut hit = 0;
    let writes = loop {
        world.agent.kill()?;
        world.write(1)?;
        let point = (hit + 1).to_string();
        world.agent.begin(&["--kill-after-first-writes", &point])?;
        if world.agent.await_ready_or_end()? {
            break world.writes()?;
        }
        hit += 1;
        world.agent.run()?;
        expected.check(&world, 1)?;
        world.write(0)?;
        world.await_held(&expected.held[0])?;
        if hit % ASKED_EVERY == 0 {
            load.ask().with_context(|| format!("after write {hit}"))?;
        }
    };
    expected.check(&world, 1)?;
    let connections = load.finish()?;
    println!(
        "{hit} of {writes} writes of starts were followed by a kill; {connections} connections"
    );
    ensure!(hit == writes);
    Ok(())
}

/// At any time: while it starts, while it writes, while it waits.
#[test]
fn agent_killed_at_random_moments_loses_nothing() -> Result<()> {
    rules(&["S-120", "S-178"]);
    let mut world = World::start(&[])?;
    let expected = Expected::learn(&mut world)?;
    let mut load = world.load()?;
    let kills = number("SHUNT_KILLS").unwrap_or(KILLS);
    let mut seed = number("SHUNT_KILLS_SEED").unwrap_or(1);
    let mut random = |below: u64| {
        seed = u64::wrapping_mul(seed, 6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    // How long a start takes here and now: a random moment within is in any part of it.
    world.agent.kill()?;
    let begun = Instant::now();
    world.agent.run()?;
    let start_us = u64::try_from(begun.elapsed().as_micros())?;
    let mut state = 0;
    for kill in 0..kills {
        world.agent.begin(&[])?;
        if random(2) == 0 {
            world.agent.await_ready()?;
            expected.check(&world, state)?;
            state = 1 - state;
            world.write(state)?;
            std::thread::sleep(Duration::from_micros(random(30_000)));
        } else {
            std::thread::sleep(Duration::from_micros(random(start_us)));
        }
        world.agent.kill()?;
        if kill % ASKED_EVERY == 0 {
            load.ask().with_context(|| format!("after kill {kill}"))?;
        }
    }
    world.agent.run()?;
    expected.check(&world, state)?;
    println!("{kills} kills; {} connections", load.finish()?);
    Ok(())
}
