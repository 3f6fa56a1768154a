//! The behaviours that upstream's end-to-end suite demands of a Service proxy, rebuilt over real
//! sockets: a real API server with its controllers, an agent on each of two nodes, and traffic.
//!
//! All share one cluster, because starting one is the slow part. Each has Services and pods of its
//! own.

mod affinity;
mod endpoints;
mod lifecycle;
mod load_balancers;
mod networking;
mod policies;
mod services;
mod udp;
mod world;

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use world::World;

/// One behaviour.
struct Behaviour {
    /// The upstream test's name; where there is none, what it is about.
    upstream: &'static str,
    /// The rules that say the same.
    rules: &'static str,
    /// What happens, and what traffic has to show.
    run: fn(&mut World) -> Result<()>,
}

/// One entry of a table of behaviours.
const fn behaviour(
    upstream: &'static str,
    rules: &'static str,
    run: fn(&mut World) -> Result<()>,
) -> Behaviour {
    Behaviour {
        upstream,
        rules,
        run,
    }
}

#[test]
fn behaviours_of_upstream_hold() -> Result<()> {
    let mut world = World::new().context("building the cluster")?;
    let tables = [
        services::BEHAVIOURS,
        endpoints::BEHAVIOURS,
        policies::BEHAVIOURS,
        affinity::BEHAVIOURS,
        udp::BEHAVIOURS,
        load_balancers::BEHAVIOURS,
        networking::BEHAVIOURS,
        lifecycle::BEHAVIOURS,
    ];
    let mut failures = Vec::new();
    for behaviour in tables.into_iter().flatten() {
        let start = Instant::now();
        let result = (behaviour.run)(&mut world);
        let took = start.elapsed();
        println!("{:>6.1} s {}", took.as_secs_f32(), behaviour.upstream);
        if let Err(error) = result {
            println!("         failed: {error:#}");
            let (upstream, rules) = (behaviour.upstream, behaviour.rules);
            failures.push(format!("{upstream} ({rules}): {error:#}"));
        }
    }
    let (count, log) = (failures.len(), world.agents[0].log_tail());
    ensure!(
        count == 0,
        "{count} failed:\n{}\n--- agent of n1\n{log}",
        failures.join("\n")
    );
    Ok(())
}
