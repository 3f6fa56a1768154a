//! What holds for the small parts that the packet's path is made of.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proxy_common::{
    AffinityKey, BackendState, Be16, Be32, Counter, FlowKey, FrontendKind, PICK_TRIES_MAX,
    RegionHeader, RegionTail, Tuple, Word, protocol,
};
use proxy_ebpf::environment::{port_at, range_len};
use proxy_ebpf::packet::{L4Change, L4Checksum};
use proxy_ebpf::pipeline::affinity::Client;
use proxy_ebpf::pipeline::frontend::{Found, by_key};
use proxy_ebpf::pipeline::select::{Part, Takers, pick};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::wire::checksum::{Delta, fold, replaced, updated};
use proxy_ebpf::{Hook, V4, V6, Verdict};
use tests::cases::build::internet_checksum;
use tests::cases::flows::{Flow, snat, stack};
use tests::cases::host::{HostEnvironment, NOW, send};
use tests::cases::packets::{ACK, PacketSpec, SYN, syn, tcp};
use tests::cases::tables::backend_id;
use tests::cases::verify::ends;
use tests::cases::world::{At, CaseFamily, NODE_PORT, POD, PORT, Role, TARGET, UPLINK, World};
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

/// How many of the clients without a binding get each backend, each at its moment.
fn bound<F: CaseFamily>(clients: impl Iterator<Item = (u32, u32)>) -> BTreeMap<u32, u32> {
    let (tables, found) = frontend::<F>(BACKENDS);
    let mut counts = BTreeMap::new();
    for (client, now) in clients {
        let mut addr = F::address(Role::Client);
        let bytes = bytemuck::bytes_of_mut(&mut addr);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&client.to_be_bytes());
        let key = AffinityKey {
            client: addr,
            service_port: found.tail.service_port,
        };
        let hash = Client::<F> { key, now }.hash();
        let (id, _) = pick(&tables, &found, Part::Cluster, hash, Takers::All).expect("a backend");
        *counts.entry(id).or_default() += 1;
    }
    counts
}

/// Clients that are bound to nothing get each backend alike; and one client, at other moments.
#[test]
fn clients_without_a_binding_are_spread_evenly() {
    rules(&["S-069", "S-101"]);
    let all = || (0..14_000).map(|client| (0x0a00_0000 + client, 5));
    let one = || (0..14_000).map(|secs| (0x0a00_0001, secs));
    for counts in [
        bound::<V4>(all()),
        bound::<V6>(all()),
        bound::<V4>(one()),
        bound::<V6>(one()),
    ] {
        assert_eq!(counts.len() as u32, BACKENDS, "{counts:?}");
        let is_fair = |count: &u32| count.abs_diff(2_000) < 200;
        assert!(counts.values().all(is_fair), "{counts:?}");
    }
}

const CLIENT_AT: At = (Role::Client, 50_000);
const NODE_AT: At = (Role::Node, NODE_PORT);
const REMOTE_AT: At = (Role::RemoteBackend, TARGET);

/// An element of an LRU map may be another connection's by the time that it is copied: its tag
/// says so.
fn check_reused<F: CaseFamily>(flow: Flow) {
    let world = World {
        flows: vec![flow],
        ..World::default()
    };
    let tables = world.tables::<F>(1, NOW);
    {
        let written = &mut *tables.written.borrow_mut();
        let all = written
            .flows
            .values_mut()
            .chain(written.handshakes.values_mut());
        all.for_each(|entry| entry.tag ^= 1);
    }
    let env = HostEnvironment::new(&world, Hook::Ingress, POD, NOW);
    let packet = tcp(flow.client, flow.dialed, ACK);
    let outcome = send(&tables, &env, packet.bytes::<F>(), 0);
    assert_eq!(outcome.counters.get(&Counter::RejectMidStream), Some(&1));
}

#[test]
fn entry_of_another_connection_is_none() {
    rules(&["S-120", "S-214"]);
    let flow = stack(
        (Role::Pod, 40_000),
        (Role::ClusterIp, PORT),
        (Role::LocalBackend, TARGET),
    );
    check_reused::<V4>(flow);
    check_reused::<V6>(flow);
    check_reused::<V4>(flow.unanswered());
    check_reused::<V6>(flow.unanswered());
}

/// A frontend's element says whose it is and whether it is published.
#[test]
fn frontend_of_another_key_or_without_a_region_is_none() {
    rules(&["S-216"]);
    let (tables, _) = frontend::<V4>(1);
    let (id, element) = tables.frontends.first_key_value().expect("a frontend");
    let (id, key) = (*id, element.key);
    assert_eq!(by_key(&tables, &key).map(|found| found.id), Some(id));
    let with = |change: fn(&mut proxy_common::Frontend<_>)| {
        let (mut tables, _) = frontend::<V4>(1);
        change(tables.frontends.get_mut(&id).expect("the frontend"));
        by_key(&tables, &key).is_some()
    };
    assert!(!with(|found| found.word = 0));
    assert!(!with(|found| found.key.port = Be16::new(9)));
}

/// A process or a pod dials a backend itself, from the port of a flow to it: the connection gets
/// another port, and the answers find their way back.
fn check_direct<F: CaseFamily>(client: At, backend: At, [there, back]: [(Hook, u32); 2]) {
    let world = World {
        flows: vec![stack(client, (Role::ClusterIp, PORT), backend)],
        ..World::default()
    };
    let tables = world.tables::<F>(1, NOW);
    let sent = |(hook, ifindex), packet: PacketSpec| {
        let env = HostEnvironment::new(&world, hook, ifindex, NOW);
        send(&tables, &env, packet.bytes::<F>(), 0)
    };
    let out = sent(there, syn(client, backend));
    let port = ends::<F>(&out.bytes).sport;
    assert_ne!(port, client.1);
    let written = tables.written.borrow();
    let mut entries = written.handshakes.values();
    assert!(entries.all(|entry| entry.flags & proxy_common::flow::flags::SNAT != 0));
    drop(written);
    let answer = |port| tcp(backend, (client.0, port), SYN | ACK);
    let other = match back.0 {
        Hook::Egress => (Hook::Ingress, back.1),
        _ => (Hook::Egress, back.1),
    };
    assert_eq!(sent(other, answer(port)).bytes, answer(port).bytes::<F>());
    assert_eq!(
        sent(back, answer(port)).bytes,
        answer(client.1).bytes::<F>()
    );
}

#[test]
fn answers_to_a_connection_past_every_frontend_come_back() {
    rules(&["S-099"]);
    let pod = (Role::Pod, 50_000);
    let ways = [(Hook::Ingress, POD), (Hook::Egress, POD)];
    check_direct::<V4>(pod, (Role::LocalBackend, TARGET), ways);
    check_direct::<V6>(pod, (Role::LocalBackend, TARGET), ways);
    let process = (Role::Node, 50_000);
    let ways = [(Hook::Egress, UPLINK), (Hook::Ingress, UPLINK)];
    check_direct::<V4>(process, REMOTE_AT, ways);
    check_direct::<V6>(process, REMOTE_AT, ways);
}

/// External policy Local: what has one of this node's addresses uses all endpoints, at any hook.
#[test]
fn own_addresses_use_all_endpoints() {
    rules(&["S-081"]);
    let flags = proxy_common::frontend::flags::HAS_ENDPOINTS;
    let world = World {
        frontend_flags: flags | proxy_common::frontend::flags::LOCAL_POLICY,
        backends: vec![tests::cases::world::backend(Role::RemoteBackend)],
        ..World::default()
    };
    let tables = world.tables::<V4>(1, NOW);
    let env = HostEnvironment::new(&world, Hook::Ingress, UPLINK, NOW);
    let from = |role| {
        let packet = syn((role, 40_000), NODE_AT);
        send(&tables, &env, packet.bytes::<V4>(), 0).verdict
    };
    assert_eq!(from(Role::Client), Verdict::Drop);
    assert_eq!(from(Role::Node), Verdict::Redirect(UPLINK));
}

/// A backend that has left the set since it was picked would be found again when it comes back.
#[test]
fn nobody_is_bound_to_a_backend_that_has_left_the_set() {
    rules(&["S-103"]);
    let world = World {
        affinity_secs: 100,
        backends: vec![tests::cases::world::backend(Role::RemoteBackend)],
        ..World::default()
    };
    let bound = |is_member: bool| {
        let mut tables = world.tables::<V4>(1, NOW);
        if !is_member {
            let backends = tables.backends.values_mut();
            backends.for_each(|it| it.flags &= !proxy_common::backend::flags::IN_CLUSTER);
        }
        let env = HostEnvironment::new(&world, Hook::Ingress, POD, NOW);
        let packet = syn((Role::Pod, 50_000), (Role::ClusterIp, PORT));
        let outcome = send(&tables, &env, packet.bytes::<V4>(), 0);
        assert_eq!(outcome.counters.get(&Counter::NewFlow), Some(&1));
        let written = tables.written.borrow();
        !written.affinity.is_empty()
    };
    assert!(bound(true));
    assert!(!bound(false));
}

/// Which directions of the only flow know their next hop: Original, Reply.
fn known_hops<F: CaseFamily>(tables: &HostTables<F>) -> [bool; 2] {
    let written = &mut *tables.written.borrow_mut();
    let all = written.flows.values().chain(written.handshakes.values());
    let mut known = [false; 2];
    for entry in all {
        let direction = usize::from(entry.flags & proxy_common::flow::flags::REPLY);
        known[direction] = entry.next_hop.is_known();
    }
    known
}

fn check_next_hop<F: CaseFamily>() {
    let source = (Role::Node, 40_000);
    let flow = snat(CLIENT_AT, NODE_AT, source, REMOTE_AT, [UPLINK, UPLINK]);
    for (flow, packet) in [
        (None, syn(CLIENT_AT, NODE_AT)),
        (Some(flow), tcp(CLIENT_AT, NODE_AT, ACK)),
    ] {
        let world = World {
            backends: vec![tests::cases::world::backend(Role::RemoteBackend)],
            flows: flow.into_iter().collect(),
            ..World::default()
        };
        let tables = world.tables::<F>(1, NOW);
        assert_eq!(known_hops(&tables), [false, false]);
        let env = HostEnvironment::new(&world, Hook::Xdp, UPLINK, NOW);
        let outcome = send(&tables, &env, packet.bytes::<F>(), 0);
        assert_eq!(outcome.verdict, Verdict::Redirect(UPLINK));
        // The way back has another one, which its first packet finds.
        assert_eq!(known_hops(&tables), [true, false]);
    }
}

#[test]
fn each_direction_remembers_its_own_next_hop() {
    rules(&["P-10"]);
    check_next_hop::<V4>();
    check_next_hop::<V6>();
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

/// The flows of a backend that takes none go to all others alike.
#[test]
fn flows_of_a_backend_that_takes_none_are_spread_evenly() {
    rules(&["S-069"]);
    let (mut tables, found) = frontend::<V4>(BACKENDS);
    let gone = backend_id(protocol::TCP, 3);
    let backend = tables.backends.get_mut(&gone);
    backend.expect("a backend of the frontend").state = BackendState::Free as u8;
    let mut counts = BTreeMap::<u32, u32>::new();
    for flow in 0..12_000_u32 {
        let hash = flow.wrapping_mul(0x9e37_79b9).rotate_left(7) ^ flow;
        let (id, _) = pick(&tables, &found, Part::Cluster, hash, Takers::All).expect("a backend");
        *counts.entry(id).or_default() += 1;
    }
    assert_eq!(counts.len() as u32, BACKENDS - 1, "{counts:?}");
    let is_fair = |count: &u32| count.abs_diff(2_000) < 200;
    assert!(counts.values().all(is_fair), "{counts:?}");
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
