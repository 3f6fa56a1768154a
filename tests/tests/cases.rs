//! The Case table on the host: neither root nor a kernel needed.

use std::collections::BTreeSet;

use proxy_common::{Connection, Counter, FrontendCounts, NextHop, protocol};
use proxy_ebpf::{Hook, V4, V6, Verdict};
use tests::cases::build::internet_checksum;
use tests::cases::host::HostEnvironment;
use tests::cases::packets::mac_of;
use tests::cases::table::table;
use tests::cases::world::{
    Binding, CLIENT_PORT, CaseFamily, NODE_PORT, PORT, ROUTER_MAC, Role, SNAT_PORT, TARGET, UPLINK,
    World, backend, binding,
};
use tests::cases::{Case, case, flows, host, packets, xdp};
use tests::rules;

#[test]
fn every_case_holds_on_the_host() {
    let cases = table();
    let mut complaints = host::run_all::<V4>(&cases);
    complaints.extend(host::run_all::<V6>(&cases));
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn xdp_answers_as_tc_does_or_leaves_the_packet_as_it_came() {
    rules(&["P-10"]);
    let cases = table();
    let (mut complaints, mut answered) = xdp::run_all::<V4>(&cases);
    let (of_ipv6, answered6) = xdp::run_all::<V6>(&cases);
    complaints.extend(of_ipv6);
    for (is_due, count) in answered6 {
        *answered.entry(is_due).or_default() += count;
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    println!("answered by XDP, and left to tc: {answered:?}");
    assert!(answered.get(&true) > Some(&50), "{answered:?}");
    assert!(answered.get(&false) > Some(&50), "{answered:?}");
}

#[test]
fn one_packet_of_a_flow_in_each_turn_goes_by_tc() {
    rules(&["P-10", "S-208"]);
    let client = (Role::Client, CLIENT_PORT);
    let (node, backend) = ((Role::Node, NODE_PORT), (Role::RemoteBackend, TARGET));
    let source = (Role::Node, SNAT_PORT);
    for (now, idle_secs, verdict) in [
        // The turn ends at 1,000,000.
        (999_999, 3, Verdict::Redirect(UPLINK)),
        (1_000_000, 1, Verdict::Pass),
        (1_000_001, 1, Verdict::Redirect(UPLINK)),
        (1_000_040, 39, Verdict::Pass),
    ] {
        let mut flow = flows::snat(client, node, source, backend, [UPLINK, UPLINK]);
        flow.idle_secs = idle_secs;
        let packet = packets::tcp(client, node, packets::ACK);
        let case = case("in turn", &[], packet).ingress(UPLINK).flow(flow);
        let tables = case.world.tables::<V4>(1, now);
        let outcome = xdp::send(&case, &tables, now);
        assert_eq!(outcome.verdict, verdict, "at {now}, idle for {idle_secs} s");
    }
}

/// S-208: what a flow knows of its next hop is good until routes or neighbours change.
fn next_hop_of_a_flow<F: CaseFamily>() {
    const OLD: [u8; 6] = [2, 9, 9, 9, 9, 9];
    let (client, node) = ((Role::Client, CLIENT_PORT), (Role::Node, NODE_PORT));
    let (source, backend) = ((Role::Node, SNAT_PORT), (Role::RemoteBackend, TARGET));
    let flow = flows::snat(client, node, source, backend, [UPLINK, UPLINK]);
    let packet = packets::tcp(client, node, packets::ACK);
    let case = case("known", &[], packet).ingress(UPLINK).flow(flow);
    for (next_hops, dst) in [(7, OLD), (7 + 256, OLD), (8, ROUTER_MAC)] {
        let mut tables = case.world.tables::<F>(1, host::NOW);
        tables.config.as_mut().expect("a CONFIG").next_hops = next_hops;
        for entry in tables.written.borrow_mut().flows.values_mut() {
            entry.next_hop = NextHop { dst: OLD, src: OLD };
            entry.next_hops = 7;
        }
        let outcome = xdp::send(&case, &tables, host::NOW);
        assert_eq!(outcome.verdict, Verdict::Redirect(UPLINK), "{next_hops}");
        assert_eq!(outcome.bytes[..6], dst, "{next_hops}");
        let src = if dst == OLD { OLD } else { mac_of(UPLINK) };
        assert_eq!(outcome.bytes[6..12], src, "{next_hops}");
        let written = tables.written.borrow();
        let knows = |entry: &&Connection<F::Addr>| {
            entry.next_hop.dst == dst && entry.next_hops == next_hops as u8
        };
        assert!(
            written.flows.values().any(|entry| knows(&entry)),
            "{next_hops}"
        );
    }
}

#[test]
fn a_flow_looks_for_its_next_hop_when_routes_or_neighbours_have_changed() {
    rules(&["S-208"]);
    next_hop_of_a_flow::<V4>();
    next_hop_of_a_flow::<V6>();
}

/// The sum of the pseudo header, which the stack leaves where a device is to finish the checksum.
fn pseudo_header_sum<F: CaseFamily>([src, dst]: [Role; 2], protocol: u8, len: usize) -> [u8; 2] {
    let mut pseudo = [src, dst].map(|role| F::octets(F::address(role))).concat();
    pseudo.extend((len as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    (!internet_checksum(&pseudo)).to_be_bytes()
}

/// What XDP does with packets of a known flow: whole, and with a checksum that is not finished.
fn xdp_and_unfinished_checksums<F: CaseFamily>() {
    let (client, node) = ((Role::Client, CLIENT_PORT), (Role::Node, NODE_PORT));
    let (source, backend) = ((Role::Node, SNAT_PORT), (Role::RemoteBackend, TARGET));
    for (packet, protocol, at) in [
        (packets::tcp(client, node, packets::ACK), protocol::TCP, 16),
        (packets::udp(client, node), protocol::UDP, 6),
        (packets::sctp(client, node), protocol::SCTP, 8),
    ] {
        let mut flow = flows::snat(client, node, source, backend, [UPLINK, UPLINK]);
        flow.protocol = protocol;
        let case = case("known", &[], packet).ingress(UPLINK).flow(flow);
        let whole = case.bytes::<F>();
        let l4 = packets::L3 + if F::VERSION == 4 { 20 } else { 40 };
        let unfinished = match protocol {
            protocol::SCTP => vec![0; 4],
            _ => {
                let ends = [Role::Client, Role::Node];
                pseudo_header_sum::<F>(ends, protocol, whole.len() - l4).to_vec()
            }
        };
        let mut partial = whole.clone();
        partial[l4 + at..][..unfinished.len()].copy_from_slice(&unfinished);
        let rows = [(whole, Verdict::Redirect(UPLINK)), (partial, Verdict::Pass)];
        // Where the next hop is known the packet takes the short way.
        for ((bytes, verdict), is_known) in rows
            .into_iter()
            .flat_map(|row| [(row.clone(), false), (row, true)])
        {
            let tables = case.world.tables::<F>(1, host::NOW);
            for entry in tables.written.borrow_mut().flows.values_mut() {
                if is_known {
                    entry.next_hop.dst = ROUTER_MAC;
                    entry.next_hop.src = mac_of(UPLINK);
                }
            }
            let env = HostEnvironment::new(&case.world, Hook::Xdp, UPLINK, host::NOW);
            let outcome = host::send(&tables, &env, bytes.clone(), 0);
            assert_eq!(outcome.verdict, verdict, "{protocol} over {}", F::NAME);
            let is_same = outcome.bytes == bytes;
            assert_eq!(is_same, verdict == Verdict::Pass, "{protocol}");
        }
    }
}

#[test]
fn xdp_leaves_what_a_device_is_to_finish() {
    rules(&["P-10"]);
    xdp_and_unfinished_checksums::<V4>();
    xdp_and_unfinished_checksums::<V6>();
}

/// Where a client goes with this binding to each of two backends.
fn destinations(change: fn(&mut Binding)) -> [Vec<u8>; 2] {
    let vip = (Role::ClusterIp, PORT);
    [0, 1].map(|position| {
        let mut bound = binding(Role::Pod, position);
        change(&mut bound);
        let world = World {
            backends: vec![backend(Role::LocalBackend), backend(Role::RemoteBackend)],
            affinity_secs: 100,
            bindings: vec![bound],
            ..World::default()
        };
        let packet = packets::syn((Role::Pod, CLIENT_PORT), vip);
        let case = case("bound", &[], packet).world(world);
        host::run::<V4>(&case, 1, host::NOW).0.bytes
    })
}

#[test]
fn a_binding_that_holds_no_more_decides_nothing() {
    rules(&["S-102", "S-103"]);
    let changes: [fn(&mut Binding); 3] = [
        |bound| bound.idle_secs = 101,
        |bound| bound.generation -= 1,
        |bound| bound.departures += 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let [first, second] = destinations(change);
        assert_eq!(first, second, "change {number}");
    }
    let [first, second] = destinations(|bound| bound.idle_secs = 100);
    assert_ne!(first, second);
}

#[test]
fn a_later_fragment_follows_the_first_one() {
    rules(&["S-131"]);
    let (pod, vip) = ((Role::Pod, CLIENT_PORT), (Role::ClusterIp, PORT));
    let target = (Role::LocalBackend, TARGET);
    let first = packets::udp(pod, vip).len(1400).part(0, true);
    let later = packets::udp(pod, vip).len(64).later(protocol::UDP, 176);
    let whole = case("first", &[], first);
    let tables = whole.world.tables::<V4>(1, host::NOW);
    host::run_over(&whole, &tables, host::NOW);
    let rest = case("later", &[], later.clone());
    let outcome = host::run_over(&rest, &tables, host::NOW);
    assert_eq!(outcome.bytes, later.dst(target).bytes::<V4>());
}

#[test]
fn every_case_has_a_name_and_a_rule() {
    let cases = table();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "a name is used twice");
    for case in &cases {
        assert!(!case.rules.is_empty(), "{} shows no rule", case.name);
    }
}

/// What a case counts for its frontends and backends follows from its reason.
fn counts_follow<F: CaseFamily>(case: &Case) {
    use proxy_common::Counter::*;
    let (outcome, tables) = host::run::<F>(case, 1, host::NOW);
    let written = tables.written.borrow();
    let sum = |count: fn(&FrontendCounts) -> u64| {
        let counts = written.frontend_counts.values();
        counts.map(count).sum::<u64>()
    };
    let counted = |reasons: &[Counter]| {
        let counts = reasons.iter().filter_map(|it| outcome.counters.get(it));
        counts.sum::<u64>()
    };
    let to_backends: u64 = written
        .backend_counts
        .values()
        .map(|it| it.connections)
        .sum();
    let name = format!("{} ({})", case.name, F::NAME);
    assert_eq!(sum(|it| it.connections), counted(&[NewFlow]), "{name}");
    assert_eq!(to_backends, counted(&[NewFlow]), "{name}");
    // A reset is refused without an answer; what was to be refused or dropped is counted whether or
    // not its sender hears of it, and some of it is no frontend's.
    let (dropped, refused) = (sum(|it| it.dropped), sum(|it| it.refused));
    let of_drops = counted(&[NoLocalEndpoint, SourceRange, BackendGone]);
    let of_refusals = counted(&[RejectNoEndpoint]);
    let all = of_drops + of_refusals + counted(&[RejectMidStream]);
    let silent = counted(&[AnswerLimited, AnswerSuppressed, FrontendFragment]);
    assert!(dropped >= of_drops && refused >= of_refusals, "{name}");
    assert!(
        (all..=all + silent).contains(&(dropped + refused)),
        "{name}"
    );
}

#[test]
fn every_connection_is_counted_once_for_its_frontend() {
    for case in &table() {
        if case.holds_for::<V4>() {
            counts_follow::<V4>(case);
        }
        if case.holds_for::<V6>() {
            counts_follow::<V6>(case);
        }
    }
}

#[test]
fn the_cases_reach_every_counter_of_the_packet_path() {
    use proxy_common::Counter::*;
    // Nothing leads there in one packet, or not without a kernel that fails, or not by tc.
    let others = [
        NewFlowLost,
        InsertFailed,
        WriteFailed,
        SocketConnected,
        SocketSent,
        SocketReceived,
        SocketPeerName,
        SocketRefused,
        SocketSteppedAside,
        SocketDropped,
        XdpPassed,
        XdpAnswered,
        Tagged,
        EventLost,
    ];
    let cases = table();
    let reached: BTreeSet<Counter> = cases
        .iter()
        .flat_map(|case| case.counters.clone())
        .collect();
    let is_missing = |counter: &&Counter| !reached.contains(*counter) && !others.contains(*counter);
    let missing: Vec<&Counter> = Counter::ALL.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
