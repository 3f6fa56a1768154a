//! What holds for the small parts that the packet's path is made of.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proxy_common::{
    BackendState, Be16, Be32, FlowKey, FrontendKind, PICK_TRIES_MAX, RegionHeader, RegionTail,
    Tuple, Word, protocol,
};
use proxy_ebpf::environment::{port_at, range_len};
use proxy_ebpf::packet::{L4Change, L4Checksum};
use proxy_ebpf::pipeline::frontend::Found;
use proxy_ebpf::pipeline::select::{Part, Takers, pick};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::wire::checksum::{Delta, fold, replaced, updated};
use proxy_ebpf::{Hook, V4, V6};
use tests::cases::build::internet_checksum;
use tests::cases::host::{HostEnvironment, NOW, send};
use tests::cases::packets::syn;
use tests::cases::tables::backend_id;
use tests::cases::verify::ends;
use tests::cases::world::{CaseFamily, NODE_PORT, PORT, Role, UPLINK, World};
use tests::rules;

const BACKENDS: u32 = 7;

/// A frontend of so many backends, in the maps and as it is found.
fn frontend<F: CaseFamily>(backends: u32) -> (HostTables<F>, Found) {
    let world = tests::cases::world::World {
        backends: vec![tests::cases::world::backend(Role::RemoteBackend); backends as usize],
        ..Default::default()
    };
    let tables = world.tables::<F>(1, 0);
    let (_, first) = tables.frontends.first_key_value().expect("a frontend");
    let region = Word::unpack(first.word).region;
    let found = Found {
        id: 1,
        region,
        header: RegionHeader::unpack(tables.slots[&region]),
        tail: RegionTail::unpack(tables.slots[&(region + 1)]),
    };
    (tables, found)
}

/// How many of the flows get each backend.
fn spread<F: CaseFamily>(
    backends: u32,
    flows: impl Iterator<Item = (u32, u16)>,
    protocol: u8,
) -> BTreeMap<u32, u32> {
    let (tables, found) = frontend::<F>(backends);
    let mut counts = BTreeMap::new();
    for (client, port) in flows {
        let mut src = F::address(Role::Client);
        let bytes = bytemuck::bytes_of_mut(&mut src);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&client.to_be_bytes());
        let tuple = Tuple {
            src,
            dst: F::address(Role::ClusterIp),
            sport: Be16::new(port),
            dport: Be16::new(PORT),
        };
        let hash = FlowKey::new(tuple, protocol).tag();
        let (id, _) = pick(&tables, &found, Part::Cluster, hash, Takers::All).expect("a backend");
        *counts.entry(id).or_default() += 1;
    }
    counts
}

fn check_spread<F: CaseFamily>(name: &str, flows: impl Iterator<Item = (u32, u16)>, protocol: u8) {
    let counts = spread::<F>(BACKENDS, flows, protocol);
    let total: u32 = counts.values().sum();
    let fair = total / BACKENDS;
    assert_eq!(counts.len() as u32, BACKENDS, "{name}: {counts:?}");
    for count in counts.values() {
        let off = count.abs_diff(fair) * 100 / fair;
        assert!(off < 10, "{name} ({}): {off} % off: {counts:?}", F::NAME);
    }
}

/// The patterns that real clients make: each backend gets its share of each.
#[test]
fn new_flows_are_spread_evenly() {
    rules(&["S-069"]);
    for protocol in [protocol::TCP, protocol::UDP] {
        let one_client = || (0..14_000).map(|flow| (0x0a00_0001, 32_768 + flow));
        check_spread::<V4>("ports in a row", one_client(), protocol);
        check_spread::<V6>("ports in a row", one_client(), protocol);
        let even = || (0..14_000).map(|flow| (0x0a00_0001, 32_768 + 2 * flow));
        check_spread::<V4>("even ports", even(), protocol);
        check_spread::<V6>("even ports", even(), protocol);
        let many = || (0..14_000).map(|flow| (0x0a00_0000 + flow, 40_000));
        check_spread::<V4>("clients in a row", many(), protocol);
        check_spread::<V6>("clients in a row", many(), protocol);
        let both =
            || (0..14_000).map(|flow| (0x0a00_0000 + flow % 50, 30_000 + (flow / 50) as u16));
        check_spread::<V4>("fifty clients", both(), protocol);
        check_spread::<V6>("fifty clients", both(), protocol);
    }
}

/// Three backends, 3000 flows: about 1000 each, and all of them within a few dozen.
#[test]
fn three_backends_share_three_thousand_flows() {
    rules(&["S-069"]);
    let flows = |count: u16| (0..count).map(|flow| (0x0a00_0001, 32_768 + flow));
    let shares = spread::<V4>(3, flows(3000), protocol::TCP);
    assert_eq!(shares.len(), 3);
    for count in shares.values() {
        assert!(count.abs_diff(1000) < 100, "{shares:?}");
    }
    assert_eq!(spread::<V6>(3, flows(36), protocol::UDP).len(), 3);
}

/// In how many positions the only backend that takes new flows would be found by a flow.
fn places_found(count: u32, hash: u32) -> usize {
    let of = |position: u32| backend_id(protocol::TCP, position as usize);
    let is_found = |usable: &u32| {
        let (mut tables, found) = frontend::<V4>(count);
        for position in (0..count).filter(|position| position != usable) {
            let backend = tables.backends.get_mut(&of(position));
            backend.expect("a backend of the frontend").state = BackendState::Free as u8;
        }
        let picked = pick(&tables, &found, Part::Cluster, hash, Takers::All);
        picked.is_ok_and(|(id, _)| id == of(*usable))
    };
    (0..count).filter(is_found).count()
}

/// Each flow looks at so many backends that at most one look is in vain.
#[test]
fn flows_look_at_other_backends_where_one_takes_none() {
    rules(&["S-069"]);
    for count in 1..=2 * PICK_TRIES_MAX {
        for step in 0..64 {
            let hash = step * (u32::MAX / 64) + 7 * step;
            let least = count.min(PICK_TRIES_MAX - 1) as usize;
            let found = places_found(count, hash);
            assert!(found >= least, "{found} of {count} by {hash:#x}");
        }
    }
}

/// 0 and 0xffff are the same sum.
fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a.min(b) == 0 && a.max(b) == 0xffff)
}

/// A UDP checksum that comes out as 0 is sent as 0xffff, since 0 says that there is none; a TCP
/// checksum may be 0.
#[test]
fn udp_checksum_of_zero_is_sent_as_ones() {
    rules(&["S-136"]);
    let change = L4Change {
        addresses: Delta::word(Be32(0x0100_600a), Be32(0x0501_040a)),
        payload: Delta::half(Be16(80), Be16(8080)),
    };
    let mut zeros = 0;
    for old in 1..=0xffff {
        let plain = updated(Be16(old), change, L4Checksum::Plain);
        let udp = updated(Be16(old), change, L4Checksum::Udp);
        let expected = if plain.0 == 0 { 0xffff } else { plain.0 };
        assert_eq!(udp.0, expected, "{old:#x}");
        zeros += u32::from(plain.0 == 0);
    }
    assert!(zeros > 0);
    assert_eq!(updated(Be16(0), change, L4Checksum::Udp).0, 0);
}

/// Flows to one backend: ports of the whole range, in no order, and none twice.
fn check_snat_ports<F: CaseFamily>() {
    const RANGES: [[u16; 2]; 2] = [[30_000, 33_999], [40_000, 43_999]];
    const FLOWS: u16 = 400;
    let world = World {
        snat_ports: RANGES,
        backends: vec![tests::cases::world::backend(Role::RemoteBackend)],
        ..World::default()
    };
    let tables = world.tables::<F>(1, NOW);
    let env = HostEnvironment::new(&world, Hook::Ingress, UPLINK, NOW);
    let of = |number: u16| {
        let packet = syn((Role::Client, 50_000 + number), (Role::Node, NODE_PORT));
        let outcome = send(&tables, &env, packet.bytes::<F>(), 0);
        assert!(!outcome.bytes.is_empty(), "{:?}", outcome.counters);
        ends::<F>(&outcome.bytes).sport
    };
    let ports: Vec<u16> = (0..FLOWS).map(of).collect();
    let different: BTreeSet<&u16> = ports.iter().collect();
    assert_eq!(
        different.len(),
        usize::from(FLOWS),
        "{}: {ports:?}",
        F::NAME
    );
    let mut quarters = BTreeMap::<u16, u16>::new();
    for port in &ports {
        let is_in = |range: &&[u16; 2]| (range[0]..=range[1]).contains(port);
        let range = RANGES.iter().find(is_in).expect("a port of the ranges");
        *quarters
            .entry(range[0] + (port - range[0]) / 2_000 * 2_000)
            .or_default() += 1;
    }
    let is_fair = quarters.values().all(|count| *count > FLOWS / 8);
    assert!(quarters.len() == 4 && is_fair, "{}: {quarters:?}", F::NAME);
    assert!(!ports.is_sorted());
}

#[test]
fn masqueraded_flows_get_ports_of_the_whole_range() {
    rules(&["S-095"]);
    check_snat_ports::<V4>();
    check_snat_ports::<V6>();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_checksum_is_a_recomputed_one(
        words in vec(any::<[u8; 4]>(), 1..20),
        changes in vec((any::<prop::sample::Index>(), any::<[u8; 4]>()), 1..6),
    ) {
        let mut changed = words.clone();
        let mut delta = Delta::default();
        for (index, value) in changes {
            let word = &mut changed[index.index(words.len())];
            let (old, new) = (u32::from_ne_bytes(*word), u32::from_ne_bytes(value));
            delta = delta.plus(Delta::word(Be32(old), Be32(new)));
            *word = value;
        }
        let before = internet_checksum(&words.concat());
        let after = internet_checksum(&changed.concat());
        let updated = replaced(Be16::new(before), delta).get();
        prop_assert!(same_sum(updated, after), "{updated:#x}, not {after:#x}");
        prop_assert!(same_sum(fold(u64::from(delta.folded_32())), fold(delta.0)));
    }

    #[test]
    fn a_changed_half_is_a_recomputed_one(
        halves in vec(any::<[u8; 2]>(), 1..40),
        index in any::<prop::sample::Index>(),
        value in any::<[u8; 2]>(),
    ) {
        let mut changed = halves.clone();
        let half = &mut changed[index.index(halves.len())];
        let (old, new) = (u16::from_ne_bytes(*half), u16::from_ne_bytes(value));
        *half = value;
        let before = internet_checksum(&halves.concat());
        let after = internet_checksum(&changed.concat());
        let updated = replaced(Be16::new(before), Delta::half(Be16(old), Be16(new))).get();
        prop_assert!(same_sum(updated, after), "{updated:#x}, not {after:#x}");
    }

    #[test]
    fn fold_is_the_plain_sum(sum in any::<u64>()) {
        let bytes = sum.to_be_bytes();
        prop_assert!(same_sum(fold(sum), !internet_checksum(&bytes)));
    }

    #[test]
    fn every_position_is_a_port_of_a_range(
        first in any::<[u16; 2]>(),
        second in any::<[u16; 2]>(),
        position in any::<prop::sample::Index>(),
    ) {
        let ranges = [first, second];
        let len = range_len(&first) + range_len(&second);
        prop_assume!(len > 0);
        let position = position.index(len as usize) as u32;
        let port = port_at(&ranges, position).get();
        let is_in = |range: &[u16; 2]| (range[0]..=range[1]).contains(&port);
        prop_assert!(is_in(&first) || is_in(&second), "{port}");
        let (lowest, highest) = (port_at(&ranges, 0).get(), port_at(&ranges, len - 1).get());
        prop_assert_eq!(lowest, if range_len(&first) > 0 { first[0] } else { second[0] });
        prop_assert_eq!(highest, if range_len(&second) > 0 { second[1] } else { first[1] });
    }

    #[test]
    fn a_region_header_survives_packing(
        cluster_count in 0_u32..1 << 20,
        local_count in 0_u32..1 << 20,
        flags in any::<u16>(),
        kind in 1_u8..5,
    ) {
        let header = RegionHeader { cluster_count, local_count, flags, kind };
        prop_assert_eq!(RegionHeader::unpack(header.pack()), header);
        prop_assert!(FrontendKind::from_number(header.kind).is_some());
        prop_assert!(header.region_len() >= header.local_start());
    }

    #[test]
    fn a_word_and_a_tail_survive_packing(low in any::<u32>(), high in any::<u32>()) {
        let word = Word { region: low, generation: high };
        prop_assert_eq!(Word::unpack(word.pack()), word);
        let tail = RegionTail { service_port: low, affinity_timeout_secs: high };
        prop_assert_eq!(RegionTail::unpack(tail.pack()), tail);
    }
}
