//! How full the SNAT ports towards one backend may be before new flows are refused.

use proxy_common::{Counter, SNAT_LOOKS_MAX, SNAT_TRIES_MAX};
use proxy_ebpf::{Hook, V4, V6};
use tests::cases::flows::snat;
use tests::cases::host::{self, HostEnvironment, NOW};
use tests::cases::packets::syn;
use tests::cases::world::{CaseFamily, NODE_PORT, Role, TARGET, UPLINK, World, with_backend};

/// First of the SNAT ports.
const FIRST: u16 = 20_000;
/// New flows of one look.
const NEW: u32 = 400;

/// How many of [`NEW`] flows get a port where so many of so many are those of live connections.
fn given<F: CaseFamily>(ports: u16, taken: u16) -> u32 {
    let node = (Role::Node, NODE_PORT);
    let backend = (Role::RemoteBackend, TARGET);
    // One after the other: an order does not matter to the search.
    let flows = (0..taken).map(|index| {
        let source = (Role::Node, FIRST + index);
        snat(
            (Role::Client, 1_000 + index),
            node,
            source,
            backend,
            [UPLINK, UPLINK],
        )
    });
    let world = World {
        snat_ports: [[FIRST, FIRST + ports - 1], [1, 0]],
        flows: flows.collect(),
        ..with_backend(Role::RemoteBackend)
    };
    let tables = world.tables::<F>(1, NOW);
    let env = HostEnvironment::new(&world, Hook::Ingress, UPLINK, NOW);
    let mut count = 0;
    for index in 0..NEW {
        let packet = syn((Role::DarkClient, 1_000 + index as u16), node);
        let outcome = host::send(&tables, &env, packet.bytes::<F>(), 0);
        let is_refused = outcome.counters.contains_key(&Counter::SnatPortsExhausted);
        let is_new = outcome.counters.contains_key(&Counter::NewFlow);
        assert!(is_refused != is_new, "{outcome:?}");
        count += u32::from(is_new);
        tables.written.borrow_mut().handshakes.clear();
    }
    count
}

/// A look at `SNAT_TRIES_MAX * SNAT_LOOKS_MAX` ports fails rarely before nearly all are taken.
#[test]
fn new_flows_find_one_of_few_free_ports() {
    for (taken, least) in [
        (1_000, 400),
        (1_500, 399),
        (1_800, 370),
        (1_900, 280),
        (1_980, 60),
    ] {
        for count in [given::<V4>(2_000, taken), given::<V6>(2_000, taken)] {
            println!("{count} of {NEW} where {taken} of 2000 ports are taken");
            assert!(count >= least, "{count} of {NEW} with {taken} ports taken");
        }
    }
}

/// Of a range with no more ports than are looked at, each is found.
#[test]
fn new_flows_find_the_last_port_of_a_small_range() {
    for ports in [1, 2, 3, 7, (SNAT_TRIES_MAX * SNAT_LOOKS_MAX) as u16] {
        assert_eq!(given::<V4>(ports, ports - 1), NEW, "{ports} ports");
        assert_eq!(given::<V6>(ports, ports - 1), NEW, "{ports} ports");
        assert_eq!(given::<V4>(ports, ports), 0, "{ports} ports");
    }
}
