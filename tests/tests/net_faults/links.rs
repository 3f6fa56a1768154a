//! Interfaces, addresses, routes and neighbours that come and go beside traffic.

use anyhow::{Context, Result, ensure};
use tests::net::eventually;
use tests::rules;

use crate::PATIENCE;
use crate::world::World;

const ROUNDS: usize = 3;
/// Makes an interface with addresses and routes through it.
const COME: &str = "\
link add stray0 type veth peer name stray1
link set stray1 up
link set stray0 up
addr add 198.51.100.1/24 dev stray0
addr add fd00:bad::1/64 dev stray0 nodad
route add 203.0.113.0/24 via 198.51.100.2
route add fd00:bad:1::/64 via fd00:bad::2
";

/// True if the agent serves the interface.
fn is_served(world: &World) -> Result<bool> {
    let status = world.agent.status()?;
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    let mut served = interfaces.iter().filter(|it| it["attached"] == true);
    Ok(served.any(|it| it["name"] == "stray0"))
}

#[test]
fn links_addresses_routes_and_neighbours_come_and_go_under_load() -> Result<()> {
    rules(&["S-119b", "S-120"]);
    let world = World::start(&[])?;
    let mut load = world.load()?;
    let before = world.held()?;
    let netns = world.rig.cluster.nodes[0].netns.clone();
    for round in 0..ROUNDS {
        netns.ip(COME)?;
        eventually(PATIENCE, || {
            ensure!(is_served(&world)?, "stray0 is not served");
            let text = format!("{:?}", world.held()?);
            ensure!(text.contains("198.51.100.1"), "its address is not known");
            Ok(())
        })?;
        // Every neighbour has to be asked for again, those of pods and of the other node too.
        netns.ip("neigh flush all")?;
        load.ask().with_context(|| format!("round {round}"))?;
        netns.ip(match round % 2 {
            0 => "link del stray0",
            _ => "link set stray0 down\nlink del stray1",
        })?;
        world.await_held(&before)?;
        load.ask().with_context(|| format!("after round {round}"))?;
    }
    println!("{} connections", load.finish()?);
    Ok(())
}
