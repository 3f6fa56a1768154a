//! The Case table on the host: neither root nor a kernel needed.

use std::collections::BTreeSet;

use proxy_common::{Counter, FrontendCounts};
use proxy_ebpf::{V4, V6, Verdict};
use tests::cases::table::table;
use tests::cases::world::{CLIENT_PORT, CaseFamily, NODE_PORT, Role, SNAT_PORT, TARGET, UPLINK};
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
