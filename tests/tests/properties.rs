//! What holds for any packet in any world, on the host.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use proxy_common::{BackendState, Counter};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Hook, V4, V6, Verdict};
use tests::cases::host::{self, HostEnvironment, NOW};
use tests::cases::packets::{PacketSpec, echo, syn, udp};
use tests::cases::verify::{Ends, ends, wrong_checksum};
use tests::cases::world::*;
use tests::cases::{Case, Outcome, events, random, xdp};
use tests::fuzz::check::NOTES;
use tests::rules;

fn settings() -> ProptestConfig {
    ProptestConfig {
        cases: 2048,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// End reasons among the counters.
fn reasons(counters: &BTreeMap<Counter, u64>) -> Vec<(Counter, u64)> {
    let ends = counters
        .iter()
        .filter(|(counter, _)| !NOTES.contains(counter));
    ends.map(|(counter, count)| (*counter, *count)).collect()
}

fn check_end(outcome: &Outcome, came: &[u8]) -> Result<(), TestCaseError> {
    let reasons = reasons(&outcome.counters);
    prop_assert_eq!(reasons.len(), 1, "{:?}", &outcome);
    prop_assert_eq!(reasons[0].1, 1, "{:?}", &outcome);
    let reason = reasons[0].0;
    let translated = [
        Counter::OriginalStack,
        Counter::ReplyStack,
        Counter::Related,
        Counter::Fragment,
    ];
    if outcome.verdict == Verdict::Pass && !translated.contains(&reason) {
        prop_assert_eq!(&outcome.bytes, came, "changed, but {:?}", reason);
    }
    Ok(())
}

fn any_bytes<F: CaseFamily>(case: &Case, bytes: &[u8]) -> Result<(), TestCaseError> {
    let tables = case.world.tables::<F>(1, NOW);
    let env = HostEnvironment::new(&case.world, case.hook, case.ifindex, NOW);
    let outcome = host::send(&tables, &env, bytes.to_vec(), case.segment_len);
    prop_assert_eq!(events::wrong(bytes, &outcome, &tables), None);
    check_end(&outcome, bytes)
}

fn right_checksums<F: CaseFamily>(case: &Case) -> Result<(), TestCaseError> {
    let came = case.bytes::<F>();
    prop_assert_eq!(wrong_checksum::<F>(&came), None);
    let (outcome, _) = host::run::<F>(case, 1, NOW);
    check_end(&outcome, &came)?;
    if outcome.verdict != Verdict::Drop {
        prop_assert_eq!(wrong_checksum::<F>(&outcome.bytes), None, "{:?}", &outcome);
    }
    Ok(())
}

fn foreign<F: CaseFamily>(case: &Case) -> Result<(), TestCaseError> {
    let came = case.bytes::<F>();
    let before = case.world.tables::<F>(1, NOW);
    let (outcome, after) = host::run::<F>(case, 1, NOW);
    prop_assert_eq!(outcome.verdict, Verdict::Pass);
    prop_assert_eq!(outcome.bytes, came);
    prop_assert_eq!(host::flows_differ(&after, &before), None);
    Ok(())
}

/// The flow that `packet` starts: what leaves, and the tables that know it.
fn started<F: CaseFamily>(
    world: &World,
    packet: &PacketSpec,
    (hook, ifindex): (Hook, u32),
) -> Option<(Outcome, HostTables<F>)> {
    let tables = world.tables::<F>(1, NOW);
    let env = HostEnvironment::new(world, hook, ifindex, NOW);
    let outcome = host::send(&tables, &env, packet.bytes::<F>(), 0);
    let is_started = outcome.counters.contains_key(&Counter::NewFlow)
        && matches!(outcome.verdict, Verdict::Pass | Verdict::Redirect(_));
    is_started.then_some((outcome, tables))
}

/// A packet of the same protocol with these ends.
fn answer<F: CaseFamily>(packet: &PacketSpec, sent: &Ends) -> Vec<u8> {
    let role = |octets: &[u8]| {
        let known = ALL_ROLES
            .iter()
            .find(|role| F::octets(F::address(**role)) == octets);
        *known.expect("an address of the world")
    };
    let mut answer = packet.clone();
    answer.src = (role(&sent.dst), sent.dport);
    answer.dst = (role(&sent.src), sent.sport);
    answer.bytes::<F>()
}

const ALL_ROLES: [Role; 16] = [
    Role::Client,
    Role::DarkClient,
    Role::Pod,
    Role::LocalBackend,
    Role::RemoteBackend,
    Role::OverlayBackend,
    Role::BridgedPod,
    Role::BridgedBackend,
    Role::Node,
    Role::PodGateway,
    Role::OverlayGateway,
    Role::BridgeGateway,
    Role::ClusterIp,
    Role::Unallocated,
    Role::Router,
    Role::Foreign,
];

fn reply_restores<F: CaseFamily>(
    world: &World,
    packet: &PacketSpec,
    hook: (Hook, u32),
) -> Result<(), TestCaseError> {
    let Some((outcome, tables)) = started::<F>(world, packet, hook) else {
        return Ok(());
    };
    let asked = ends::<F>(&packet.bytes::<F>());
    let reply = answer::<F>(packet, &ends::<F>(&outcome.bytes));
    let mut seen = Vec::new();
    for hook in [Hook::Ingress, Hook::Egress] {
        let env = HostEnvironment::new(world, hook, LOCAL, NOW);
        let outcome = host::send(&tables, &env, reply.clone(), 0);
        if !outcome.counters.contains_key(&Counter::OtherHook) {
            seen.push(outcome);
        }
    }
    // At exactly one of the hooks it becomes the answer to what was asked.
    prop_assert_eq!(seen.len(), 1, "{:?}", &seen);
    let got = ends::<F>(&seen[0].bytes);
    prop_assert_eq!((got.src, got.sport), (asked.dst, asked.dport));
    prop_assert_eq!((got.dst, got.dport), (asked.src, asked.sport));
    Ok(())
}

fn one_backend<F: CaseFamily>(
    world: &World,
    other: &World,
    packet: &PacketSpec,
    hook: (Hook, u32),
) -> Result<(), TestCaseError> {
    let Some((first, mut tables)) = started::<F>(world, packet, hook) else {
        return Ok(());
    };
    // Another list of backends is published; the flow's own is still there.
    let next = other.tables::<F>(1, NOW);
    let backends = std::mem::take(&mut tables.backends);
    tables.slots = next.slots;
    tables.backends = next.backends;
    tables.backends.extend(backends);
    for later in [0, 1, 20] {
        let env = HostEnvironment::new(world, hook.0, hook.1, NOW + later);
        let again = host::send(&tables, &env, packet.bytes::<F>(), 0);
        prop_assert_eq!(&again.bytes, &first.bytes);
        prop_assert_eq!(again.verdict, first.verdict);
    }
    Ok(())
}

fn usable_backend<F: CaseFamily>(
    world: &World,
    packet: &PacketSpec,
    hook: (Hook, u32),
) -> Result<(), TestCaseError> {
    let Some((outcome, _)) = started::<F>(world, packet, hook) else {
        return Ok(());
    };
    let reached = ends::<F>(&outcome.bytes).dst;
    let usable = [BackendState::Active as u8, BackendState::Terminating as u8];
    let is_usable = world
        .backends
        .iter()
        .any(|spec| F::octets(F::address(spec.role)) == reached && usable.contains(&spec.state));
    prop_assert!(is_usable, "{:?} of {:?}", reached, world.backends);
    Ok(())
}

fn first_packet() -> impl Strategy<Value = PacketSpec> {
    let dialed = select(&[(Role::ClusterIp, PORT), (Role::Node, NODE_PORT)][..]);
    (random::client(), dialed, any::<bool>()).prop_map(|(client, dialed, is_udp)| {
        if is_udp {
            udp(client, dialed)
        } else {
            syn(client, dialed)
        }
    })
}

fn empty_world() -> impl Strategy<Value = World> {
    random::world(Just(Vec::new()))
}

fn foreign_case() -> impl Strategy<Value = Case> {
    let at = || {
        (
            select(&[Role::Foreign, Role::Client, Role::Pod][..]),
            1024_u16..4096,
        )
    };
    let packet = (at(), at(), 0..3, 0_usize..100).prop_map(|(src, dst, kind, len)| match kind {
        0 => syn(src, dst),
        1 => udp(src, dst).len(len),
        _ => echo(src, dst).len(len),
    });
    let flows = vec(random::flow(), 0..3);
    (random::world(flows), packet, random::hook()).prop_map(|(world, packet, (hook, ifindex))| {
        Case {
            hook,
            ifindex,
            ..tests::cases::case("a foreign packet", &["P-14"], packet).world(world)
        }
    })
}

/// The random worlds and packets are worth something: they come to nearly every end there is.
#[test]
fn random_cases_reach_the_ends() {
    let mut runner = TestRunner::deterministic();
    let strategy = random::any_case();
    let mut seen = BTreeSet::new();
    for _ in 0..20_000 {
        let case = strategy.new_tree(&mut runner).expect("a case").current();
        seen.extend(host::run::<V4>(&case, 1, NOW).0.counters.into_keys());
        seen.extend(host::run::<V6>(&case, 1, NOW).0.counters.into_keys());
        if xdp::applies(&case) {
            let tables = case.world.tables::<V4>(1, NOW);
            seen.extend(xdp::send(&case, &tables, NOW).counters.into_keys());
        }
    }
    let missing: Vec<&Counter> = packet_counters()
        .filter(|counter| !seen.contains(*counter))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Counters that well-formed random packets reach on the host; the others are for the Case table.
fn packet_counters() -> impl Iterator<Item = &'static Counter> {
    use Counter::*;
    let others = [
        NotIp,
        Tagged,
        Truncated,
        BadHeader,
        Redirected,
        Unconfigured,
        SocketOwner,
        NewFlowLost,
        InsertFailed,
        TupleClash,
        NoSnatAddress,
        NoRoute,
        Unparsable,
        WriteFailed,
        SctpFragment,
        SocketConnected,
        SocketSent,
        SocketReceived,
        SocketPeerName,
        SocketRefused,
        SocketDropped,
        SocketSteppedAside,
        AnswerLimited,
        NewFlowLimited,
        EventLost,
    ];
    Counter::ALL
        .iter()
        .filter(move |counter| !others.contains(counter))
}

/// How a packet by XDP, and by tc where XDP leaves it, differs from the same by tc alone.
fn by_xdp<F: CaseFamily>(case: &Case) -> Option<String> {
    let (at_tc, _) = host::run::<F>(case, 1, NOW);
    xdp::compare::<F>(case, at_tc, false)
}

proptest! {
    #![proptest_config(settings())]

    /// Whatever comes: XDP answers it as tc does, or leaves it as it came.
    #[test]
    fn xdp_changes_nothing_but_the_way(
        case in random::any_damaged_case(),
    ) {
        rules(&["P-10"]);
        let case = Case { segment_len: 0, mark: 0, ..case }.ingress(UPLINK);
        prop_assert_eq!(by_xdp::<V4>(&case), None);
        prop_assert_eq!(by_xdp::<V6>(&case), None);
    }

    /// Whatever comes: the short way ends as the long one does.
    #[test]
    fn the_short_way_ends_as_the_long_one(case in random::any_damaged_case()) {
        rules(&["P-14"]);
        for hook in [Hook::Ingress, Hook::Egress, Hook::Xdp] {
            let case = match hook {
                Hook::Xdp => Case { segment_len: 0, ..case.clone() }.ingress(UPLINK),
                _ => case.clone(),
            };
            prop_assert_eq!(host::compare_ways::<V4>(&case, hook), None);
            prop_assert_eq!(host::compare_ways::<V6>(&case, hook), None);
        }
    }

    /// Properties 1 and 7: the path ends on any bytes, with exactly one reason, and never reads
    /// behind the packet.
    #[test]
    fn any_bytes_end_with_one_reason(
        case in random::any_case(),
        bytes in vec(any::<u8>(), 0..200),
    ) {
        any_bytes::<V4>(&case, &bytes)?;
        any_bytes::<V6>(&case, &bytes)?;
    }

    /// The same with packets that are almost right.
    #[test]
    fn damaged_packets_end_with_one_reason(case in random::any_damaged_case()) {
        any_bytes::<V4>(&case, &case.bytes::<V4>())?;
        any_bytes::<V6>(&case, &case.bytes::<V6>())?;
    }

    /// Property 2.
    #[test]
    fn a_foreign_packet_leaves_byte_identical(case in foreign_case()) {
        rules(&["P-14"]);
        foreign::<V4>(&case)?;
        foreign::<V6>(&case)?;
    }

    /// Property 3.
    #[test]
    fn right_checksums_stay_right(case in random::any_case()) {
        rules(&["S-136"]);
        right_checksums::<V4>(&case)?;
        right_checksums::<V6>(&case)?;
    }

    /// Property 4.
    #[test]
    fn a_reply_restores_what_the_client_sent_to(
        world in empty_world(),
        packet in first_packet(),
        hook in random::hook(),
    ) {
        reply_restores::<V4>(&world, &packet, hook)?;
        reply_restores::<V6>(&world, &packet, hook)?;
    }

    /// Property 5.
    #[test]
    fn a_flow_keeps_its_backend(
        world in empty_world(),
        other in empty_world(),
        packet in first_packet(),
        hook in random::hook(),
    ) {
        rules(&["S-120"]);
        one_backend::<V4>(&world, &other, &packet, hook)?;
        one_backend::<V6>(&world, &other, &packet, hook)?;
    }

    /// Property 6.
    #[test]
    fn a_new_flow_gets_a_usable_backend(
        world in empty_world(),
        packet in first_packet(),
        hook in random::hook(),
    ) {
        rules(&["S-068", "S-071"]);
        usable_backend::<V4>(&world, &packet, hook)?;
        usable_backend::<V6>(&world, &packet, hook)?;
    }
}
