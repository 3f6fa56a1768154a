//! The Case table at XDP. What must come of a case is known already: XDP answers it as tc does, or
//! leaves the packet as it came, and tc ends it as if there were no XDP.

use std::collections::BTreeMap;

use proxy_common::flow::path;
use proxy_common::{Counter, interface};
use proxy_ebpf::packet::host::HostPacket;
use proxy_ebpf::pipeline::host::HostSteps;
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Hook, Verdict};

use super::flows::Flow;
use super::host::{self, HostEnvironment, NOW};
use super::packets::{Body, L3, mac_of};
use super::world::{CaseFamily, DEVICES, ROUTER_MAC};
use super::{Case, Outcome};

/// True for what a native driver hands to XDP: one frame, at an interface that runs the program.
pub fn applies(case: &Case) -> bool {
    case.hook == Hook::Ingress && case.mark == 0 && case.segment_len == 0 && runs(case.ifindex)
}

fn runs(ifindex: u32) -> bool {
    let mut devices = DEVICES.iter();
    let device = devices.find(|device| device.ifindex == ifindex);
    device.is_some_and(|device| device.flags & interface::flags::XDP != 0)
}

/// Sends the case's packet down the path at XDP; what the hook does around it included.
pub fn send<F: CaseFamily>(case: &Case, tables: &HostTables<F>, now: u32) -> Outcome {
    tables.written.borrow_mut().counters.clear();
    let bytes = case.bytes::<F>();
    if !case.packet.frame.is_ip() {
        return Outcome {
            verdict: Verdict::Pass,
            bytes,
            counters: [(Counter::XdpPassed, 1)].into(),
        };
    }
    let env = HostEnvironment::new(&case.world, Hook::Xdp, case.ifindex, now);
    let mut packet = HostPacket::new(bytes);
    let (verdict, reason) = HostSteps::<F, _, _, _>::run(&mut packet, tables, &env, L3);
    let mut counters = tables.written.borrow().counters.clone();
    match verdict {
        Verdict::Pass => {
            // tc says why.
            counters.entry(reason).and_modify(|count| *count -= 1);
            counters.retain(|_, count| *count > 0);
            counters.insert(Counter::XdpPassed, 1);
        }
        _ => {
            counters.insert(Counter::XdpAnswered, 1);
        }
    }
    Outcome::of_run(verdict, packet.bytes, counters)
}

/// True for what XDP has to answer itself: what is dropped, refused, or sent out by an interface
/// that takes frames. Not so in a flow that leaves by another one or is due to go by tc; and an
/// ICMP error takes the next hop that its flow knows, which the flows of the table do not.
fn is_due(case: &Case) -> bool {
    let is_error = matches!(case.packet.body, Body::Error { .. });
    let by_xdp = |flow: &Flow| {
        flow.idle_secs == 0
            && runs(flow.path.ifindex)
            && runs(flow.reply_path.ifindex)
            && flow.path.kind == path::INGRESS_NEIGH
    };
    match case.verdict {
        Verdict::Pass | Verdict::Deliver(_) => false,
        Verdict::Redirect(ifindex) if !runs(ifindex) => false,
        _ => !is_error && case.world.flows.iter().all(by_xdp),
    }
}

/// Runs a case at XDP, and at tc where XDP leaves it; what went wrong, in words.
pub fn run<F: CaseFamily>(case: &Case) -> Option<String> {
    compare::<F>(case, case.expected::<F>(), is_due(case))
}

/// Sends a packet by XDP, and by tc where XDP leaves it; how it differs from what tc alone makes of
/// it, in words.
pub fn compare<F: CaseFamily>(case: &Case, mut expected: Outcome, is_due: bool) -> Option<String> {
    let tables = case.world.tables::<F>(1, NOW);
    let mut outcome = send(case, &tables, NOW);
    // A flow whose next hop is still to be found is refreshed, and its lost half restored, sooner.
    outcome.counters.remove(&Counter::HalfRestored);
    expected.counters.remove(&Counter::HalfRestored);
    if outcome.verdict != Verdict::Pass {
        if let Verdict::Redirect(ifindex) = expected.verdict {
            expected.bytes[..6].copy_from_slice(&ROUTER_MAC);
            expected.bytes[6..12].copy_from_slice(&mac_of(ifindex));
        }
        expected.counters.insert(Counter::XdpAnswered, 1);
        return outcome.differs(&expected);
    }
    if is_due {
        return Some("\n  left to tc".to_owned());
    }
    if outcome.bytes != case.bytes::<F>() {
        return Some("\n  changed, and left to tc (P-10)".to_owned());
    }
    let before = std::mem::take(&mut outcome.counters);
    let mut at_tc = host::run_over(case, &tables, NOW);
    at_tc.counters.remove(&Counter::HalfRestored);
    for (counter, count) in before {
        if counter != Counter::XdpPassed {
            *at_tc.counters.entry(counter).or_default() += count;
        }
    }
    at_tc
        .differs(&expected)
        .map(|text| format!("{text}\n  at tc, after XDP"))
}

/// Runs every case that XDP may see, and returns what went wrong, in words, and how many packets
/// XDP answered.
pub fn run_all<F: CaseFamily>(cases: &[Case]) -> (Vec<String>, BTreeMap<bool, u32>) {
    let mut complaints = Vec::new();
    let mut answered = BTreeMap::new();
    let holds = |case: &&Case| case.holds_for::<F>() && applies(case);
    for case in cases.iter().filter(holds) {
        *answered.entry(is_due(case)).or_default() += 1;
        let complaint = run::<F>(case);
        complaints.extend(complaint.map(|text| format!("{} ({}): {text}", case.name, F::NAME)));
    }
    (complaints, answered)
}
