//! The Case table on the host: neither root nor a kernel needed.

use std::collections::BTreeSet;

use proxy_ebpf::{V4, V6};
use tests::cases::table::table;
use tests::cases::{host, xdp};
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
fn every_case_has_a_name_and_a_rule() {
    let cases = table();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "a name is used twice");
    for case in &cases {
        assert!(!case.rules.is_empty(), "{} shows no rule", case.name);
    }
}

#[test]
fn the_cases_reach_every_counter_of_the_packet_path() {
    use proxy_common::Counter::{self, *};
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
