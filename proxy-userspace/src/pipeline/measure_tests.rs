//! How long a large cluster takes, on maps in memory. Run in release, with `--ignored --nocapture`.

use std::time::Instant;

use super::*;

const SERVICES: u32 = 10_000;
const ENDPOINTS_EACH: u32 = 10;

const LARGE: Capacity = Capacity {
    frontends: 1 << 16,
    backends: 1 << 18,
    slots: 1 << 20,
};

fn events() -> Vec<ObjectEvent> {
    let both = (0..SERVICES).flat_map(|index| {
        let [_, _, high, low] = index.to_be_bytes();
        let name = format!("s{index}");
        let pods = (0..ENDPOINTS_EACH)
            .map(|pod| endpoint(&format!("10.{pod}.{high}.{low}")))
            .collect();
        [
            applied(service(&name, &format!("10.96.{high}.{low}"))),
            applied_slice(slice(&name, &name, pods, 8080)),
        ]
    });
    both.collect()
}

fn measure(agent: &mut Reconciler, maps: &mut FakeMaps, events: Vec<ObjectEvent>, what: &str) {
    let start = Instant::now();
    tell(agent, events);
    let told = start.elapsed();
    let report = agent.reconcile(maps, start);
    let whole = start.elapsed();
    println!("{what}: {whole:?}, of it {told:?} in the store; {report:?}");
}

#[test]
#[ignore = "a measurement"]
fn large_cluster() {
    let mut world = World::with_capacity(LARGE);
    let World { maps, agent, .. } = &mut world;
    measure(agent, maps, events(), "cold start");
    measure(agent, maps, Vec::new(), "nothing");
    let removed = slice("s7", "s7", vec![endpoint("10.0.0.7")], 8080);
    measure(agent, maps, vec![applied_slice(removed)], "one change");
    let start = Instant::now();
    let mut agent = Reconciler::restore(settings(), maps);
    println!("restore: {:?}", start.elapsed());
    let first = KINDS.map(ObjectEvent::Restarted).into_iter();
    let list: Vec<_> = first.chain(events()).collect();
    measure(&mut agent, maps, list, "list before the barrier");
    let listed = KINDS.map(ObjectEvent::Listed).to_vec();
    measure(&mut agent, maps, listed, "first reconcile after a restart");
}
