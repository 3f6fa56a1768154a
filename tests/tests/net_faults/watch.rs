//! An API server that misbehaves before the real agent, with traffic through its node.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::fake_api::{FakeApi, Fault};
use tests::load::Load;
use tests::net::eventually;
use tests::rules;

use crate::PATIENCE;
use crate::server::fill;
use crate::world::{Held, World};

const PLURALS: [&str; 2] = ["services", "endpointslices"];

/// What goes wrong, one after the other, with the requests for each kind.
const FAULTS: [&[Fault]; 7] = [
    &[Fault::CutWatch],
    &[Fault::Twice],
    &[Fault::Gone],
    &[Fault::Gone, Fault::CutList],
    &[Fault::Gone, Fault::SlowList],
    &[Fault::Status(410)],
    &[Fault::Status(500), Fault::Status(429)],
];

/// A world behind a server, and what its maps hold in both states.
struct Served {
    world: World,
    api: FakeApi,
    load: Load,
    expected: [Held; 2],
}

impl Served {
    fn start() -> Result<Self> {
        let mut world = World::start(&[])?;
        let first = world.held()?;
        world.write(1)?;
        world.agent.run()?;
        let second = world.held()?;
        world.write(0)?;
        world.await_held(&first)?;
        let load = world.load()?;
        let node = world.rig.cluster.nodes[0].clone();
        let api = node
            .netns
            .enter(|| FakeApi::listen("127.0.0.1:7003".parse()?))??;
        fill(&api, &world)?;
        let kubeconfig = world.rig.cluster.sandbox().dir().join("fake.kubeconfig");
        api.kubeconfig(&kubeconfig)?;
        world.agent.stop()?;
        world.agent = Agent::to_watch(&world.rig.cluster, &node, &kubeconfig, &[]);
        world.agent.run()?;
        let expected = [first, second];
        world.held()?.check(&expected[0])?;
        Ok(Self {
            world,
            api,
            load,
            expected,
        })
    }

    /// Makes the objects of a state, and deletes those that only the other one has.
    fn change(&self, state: usize) {
        let name = |object: &Value| (object["kind"].clone(), object["metadata"]["name"].clone());
        let objects = self.world.objects(state);
        for object in objects {
            self.api.apply(object);
        }
        for object in self.world.objects(1 - state) {
            if !objects.iter().any(|kept| name(kept) == name(object)) {
                self.api.delete(object);
            }
        }
    }

    fn await_state(&mut self, state: usize) -> Result<()> {
        self.world.await_held(&self.expected[state])?;
        self.load.ask()
    }
}

/// While objects change each request for their kinds goes wrong: what changed comes later, and that
/// is all.
#[test]
fn faults_of_lists_and_watches_cost_no_connection() -> Result<()> {
    rules(&["S-007", "S-008", "S-179"]);
    let mut served = Served::start()?;
    let mut state = 0;
    for faults in FAULTS {
        // Who fails again and again waits longer each time: every fault has an agent of its own.
        served.world.agent.stop()?;
        served.world.agent.run()?;
        for plural in PLURALS {
            for fault in faults {
                served.api.fault(plural, *fault);
            }
        }
        served.api.end_watches();
        state = 1 - state;
        served.change(state);
        let what = || format!("{faults:?}");
        served.await_state(state).with_context(what)?;
        ensure!(served.api.has_no_faults_left(), "{faults:?} did not happen");
    }
    println!("{} connections", served.load.finish()?);
    Ok(())
}

/// Events that come twice, late or of nothing change nothing; an object of a megabyte and one that
/// nobody can read hold up nothing.
#[test]
fn strange_events_and_objects_cost_no_connection() -> Result<()> {
    rules(&["S-006", "S-179"]);
    let mut served = Served::start()?;
    for object in served.world.objects(0) {
        served.api.tell("ADDED", object);
        served.api.tell("MODIFIED", object);
    }
    let absent = served.world.objects(1).iter();
    let absent = absent.filter(|it| it["metadata"]["name"] == "go" && it["kind"] == "Service");
    for object in absent {
        served.api.tell("DELETED", object);
        served.api.tell("ADDED", object);
        served.api.tell("DELETED", object);
    }
    let service = |name: &str, address: &str| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "default", "name": name},
            "spec": {
                "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            },
        })
    };
    let mut huge = service("huge", "10.96.0.240");
    huge["metadata"]["annotations"] = json!({"note": "x".repeat(1 << 20)});
    let mut unreadable = service("unreadable", "10.96.0.241");
    unreadable["spec"]["ports"] = json!("eighty");
    for object in [&huge, &unreadable] {
        served.api.apply(object);
    }
    eventually(PATIENCE, || {
        let text = format!("{:?}", served.world.held()?);
        ensure!(text.contains("10.96.0.240:80/TCP"), "{text}");
        let status = served.world.agent.status()?.to_string();
        ensure!(status.contains("default/unreadable"), "{status}");
        Ok(())
    })?;
    // What comes behind them is not held up.
    served.change(1);
    for object in [&huge, &unreadable] {
        served.api.delete(object);
    }
    served.await_state(1)?;
    println!("{} connections", served.load.finish()?);
    Ok(())
}
