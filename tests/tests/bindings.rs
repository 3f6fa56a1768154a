//! Whom a client stays bound to: each reason of section 8 for and against, by itself.

use proxy_common::{BackendState, RegionHeader, RegionTail, Word, protocol};
use proxy_ebpf::pipeline::affinity::{Client, bound};
use proxy_ebpf::pipeline::frontend::Found;
use proxy_ebpf::pipeline::select::Part;
use proxy_ebpf::{V4, V6};
use tests::cases::tables::backend_id;
use tests::cases::world::{
    BackendSpec, Binding, CaseFamily, GENERATION, Membership, Role, World, backend, binding,
};
use tests::rules;

const NOW: u32 = 5_000;
/// The Service's affinity timeout.
const SECS: u32 = 10;

/// A pod that is bound to the second backend, which is on this node.
fn world() -> World {
    World {
        backends: vec![backend(Role::RemoteBackend), backend(Role::LocalBackend)],
        affinity_secs: SECS,
        bindings: vec![binding(Role::Pod, 1)],
        ..World::default()
    }
}

fn with_backend(change: impl Fn(&mut BackendSpec)) -> World {
    let mut world = world();
    change(&mut world.backends[1]);
    world
}

fn with_binding(change: impl Fn(&mut Binding)) -> World {
    let mut world = world();
    change(&mut world.bindings[0]);
    world
}

/// Whether the pod stays with the backend for a flow to this part of the first frontend.
fn stays_in<F: CaseFamily>(world: &World, part: Part) -> bool {
    let tables = world.tables::<F>(1, NOW);
    let (id, frontend) = tables.frontends.first_key_value().expect("a frontend");
    let region = Word::unpack(frontend.word).region;
    let found = Found {
        id: *id,
        region,
        header: RegionHeader::unpack(tables.slots[&region]),
        tail: RegionTail::unpack(tables.slots[&(region + 1)]),
    };
    let client = Client::<F>::of(F::address(Role::Pod), &found, NOW).expect("affinity");
    let found = bound(&tables, &client, &found, part);
    let expected = backend_id(protocol::TCP, 1);
    found.is_some_and(|(id, _)| id == expected)
}

fn stays(world: &World) -> bool {
    let stays = stays_in::<V4>(world, Part::Cluster);
    assert_eq!(stays, stays_in::<V6>(world, Part::Cluster));
    stays
}

/// The example: a timeout of 10 s, a flow every 8 s, then a pause of 12 s.
#[test]
fn binding_holds_for_the_timeout() {
    rules(&["S-102"]);
    let idle = |secs| with_binding(|bound| bound.idle_secs = secs);
    assert!(stays(&idle(8)));
    assert!(stays(&idle(SECS)));
    assert!(!stays(&idle(SECS + 1)));
    assert!(!stays(&idle(12)));
    let shorter = World {
        affinity_secs: 5,
        ..idle(8)
    };
    assert!(!stays(&shorter));
}

#[test]
fn binding_is_to_a_backend_of_the_set_that_takes_flows() {
    rules(&["S-103"]);
    let state = |state: BackendState| with_backend(|found| found.state = state as u8);
    assert!(stays(&state(BackendState::Active)));
    assert!(stays(&state(BackendState::Terminating)));
    assert!(!stays(&state(BackendState::Quarantined)));
    assert!(!stays(&state(BackendState::Free)));
    assert!(!stays(&with_backend(
        |found| found.in_cluster = Membership::Out
    )));
    // Each set for itself.
    assert!(stays_in::<V4>(&world(), Part::Local));
    let remote = with_backend(|found| found.role = Role::RemoteBackend);
    assert!(stays(&remote));
    assert!(!stays_in::<V4>(&remote, Part::Local));
}

#[test]
fn binding_is_to_one_stay_of_one_use_of_a_backend() {
    rules(&["S-103"]);
    assert!(!stays(&with_binding(
        |bound| bound.generation = GENERATION - 1
    )));
    let mut returned = with_backend(|found| found.departures = 3);
    returned.bindings[0].departures = 2;
    assert!(!stays(&returned));
    returned.bindings[0].departures = 3;
    assert!(stays(&returned));
}

#[test]
fn binding_is_one_clients_of_one_service_port() {
    rules(&["S-020", "S-101"]);
    assert!(stays(&world()));
    assert!(!stays(&with_binding(|bound| bound.client = Role::Client)));
    assert!(!stays(
        &with_binding(|bound| bound.protocol = protocol::UDP)
    ));
}
