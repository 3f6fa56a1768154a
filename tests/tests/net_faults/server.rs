//! An agent whose API server is away: what an earlier agent pinned serves on.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::agent::Agent;
use tests::fake_api::FakeApi;
use tests::net::eventually;
use tests::rules;

use crate::PATIENCE;
use crate::http::get;
use crate::world::World;

const HEALTH: &str = "127.0.0.1:10256";

/// Everything that lies in the manifests, but Nodes that the watch would not ask for.
pub fn fill(api: &FakeApi, world: &World) -> Result<()> {
    for entry in fs::read_dir(world.rig.manifests.dir())? {
        let list: Value = serde_json::from_str(&fs::read_to_string(entry?.path())?)?;
        for object in list["items"].as_array().context("no list")? {
            if object["kind"] != "Node" || object["metadata"]["name"] == "n1" {
                api.apply(object);
            }
        }
    }
    Ok(())
}

fn await_health(world: &World, expected: [u16; 2]) -> Result<()> {
    let netns = &world.rig.cluster.nodes[0].netns;
    eventually(PATIENCE, || {
        let found = [
            get(netns, HEALTH, "/healthz")?.0,
            get(netns, HEALTH, "/livez")?.0,
        ];
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
}

#[test]
fn agent_without_its_api_server_lets_the_pinned_state_serve() -> Result<()> {
    rules(&["S-007", "S-170", "S-172", "S-178", "S-179", "S-183"]);
    let mut world = World::start(&[])?;
    let mut load = world.load()?;
    let expected = world.held()?;
    let node = world.rig.cluster.nodes[0].clone();
    let listen = |port| {
        let address = format!("127.0.0.1:{port}");
        node.netns.enter(|| FakeApi::listen(address.parse()?))?
    };
    let apis = [listen(7001)?, listen(7002)?];
    for api in &apis {
        fill(api, &world)?;
        api.set_down(true);
    }
    let kubeconfig = world.rig.cluster.sandbox().dir().join("fake.kubeconfig");
    apis[0].kubeconfig(&kubeconfig)?;
    let servers = format!("{},{}", apis[0].url(), apis[1].url());
    let arguments = ["--apiserver", &servers];
    world.agent.stop()?;
    world.agent = Agent::to_watch(&world.rig.cluster, &node, &kubeconfig, &arguments);
    world.agent.begin(&[])?;
    // The Node was never seen, so load balancers are told; nothing is wrong with the agent.
    await_health(&world, [503, 200])?;
    world.held()?.check(&expected)?;
    load.ask()?;
    // The second of the servers comes first.
    apis[1].set_down(false);
    world.agent.await_ready()?;
    await_health(&world, [200, 200])?;
    world.held()?.check(&expected)?;
    apis[1].set_down(true);
    load.ask()?;
    await_health(&world, [200, 200])?;
    // What happens meanwhile comes from the other one.
    for object in world.objects(1) {
        apis[0].apply(object);
    }
    apis[0].delete(world.gone());
    apis[0].set_down(false);
    eventually(PATIENCE, || {
        let text = format!("{:?}", world.held()?);
        ensure!(text.contains("10.96.0.43:93/TCP") && !text.contains("10.96.0.42:92/TCP"));
        Ok(())
    })?;
    println!("{} connections", load.finish()?);
    Ok(())
}
