//! Maglev: connections outlive the tables that remember them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::manifests::Service;
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::{FAMILIES, balanced};
use tests::traffic::{Held, Plan, SocketKind};

/// Far longer than anything here takes, with all processors busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the load balancer.
const PORT: u16 = 87;
/// In each family: all of them on one of two backends once in 2,000 runs.
const CONNECTIONS: usize = 12;

/// A load balancer over both pods of n1, whose answers come back through n1 by themselves: no
/// source port has to be remembered.
struct World {
    rig: Rig,
    held: Vec<(usize, String)>,
}

impl World {
    fn start(algorithm: &str) -> Result<Self> {
        let mut rig = Rig::new(Variant::default(), &[])?;
        let service = Service::new("spread", 61)
            .port(PORT, 30_087, TARGET_PORT)
            .balanced(balanced(8))
            .pods(["a", "client"].map(|pod| &rig.pods[pod]));
        let mut objects = service.objects();
        objects[0]["metadata"]["annotations"] = json!({"shunt.io/algorithm": algorithm});
        rig.manifests.write("spread", &objects)?;
        let mut held = Vec::new();
        for family in FAMILIES {
            let to = rig.address(Target::At(balanced(8), PORT), family);
            let client = rig.client(Client::Outside)?;
            eventually(PATIENCE, || {
                let report = client.connect(Plan::new(SocketKind::Tcp, to))?;
                ensure!(report.failed() == 0, "{report:?}");
                Ok(())
            })?;
            for _ in 0..CONNECTIONS {
                let (number, answer) = client.open(Held::new(SocketKind::Tcp, to))?;
                held.push((number, answer.server));
            }
        }
        Ok(Self { rig, held })
    }

    /// Everything of ours goes from n1, and an agent starts anew.
    fn forget_everything(&mut self) -> Result<()> {
        let agent = &mut self.rig.agents[0];
        agent.stop()?;
        agent.cleanup()?;
        agent.run()
    }
}

#[test]
fn connections_outlive_the_loss_of_all_tables() -> Result<()> {
    rules(&["S-120"]);
    let mut world = World::start("maglev")?;
    let servers: Vec<&String> = world.held.iter().map(|(_, server)| server).collect();
    for server in ["a", "client"] {
        ensure!(servers.iter().any(|it| *it == server), "{servers:?}");
    }
    for round in 0..2 {
        world.forget_everything()?;
        let client = world.rig.client(Client::Outside)?;
        for (number, server) in &world.held {
            let answer = client.ask(*number, 1_000);
            let answer = answer.with_context(|| format!("connection {number}, loss {round}"))?;
            ensure!(answer.server == *server, "{answer:?} instead of {server}");
        }
    }
    Ok(())
}

/// What S-214 says where nobody asked for Maglev: this is what the other test would see.
#[test]
fn connections_without_maglev_are_reset() -> Result<()> {
    rules(&["S-214"]);
    let mut world = World::start("random")?;
    world.forget_everything()?;
    let client = world.rig.client(Client::Outside)?;
    for (number, _) in &world.held {
        let answer = client.ask(*number, 1_000);
        let error = format!("{:#}", answer.err().context("it was answered")?);
        ensure!(error.contains("ECONNRESET"), "{error}");
    }
    Ok(())
}
