//! Cases on the host: the pipeline library over plain collections.

use std::cell::Cell;

use proxy_common::{Be16, NextHop, Tuple};
use proxy_ebpf::environment::RouteQuery;
use proxy_ebpf::packet::host::HostPacket;
use proxy_ebpf::pipeline::host::HostSteps;
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Environment, Hook, Tables, Verdict};

use super::packets::{L3, mac_of};
use super::world::{At, CaseFamily, MARK, ROUTER_MAC, UPLINK, World, route};
use super::{Case, Outcome, events};

/// Where the random numbers of host runs begin.
const SEED: u32 = 0x2545_f491;

/// Seconds of the clock in host runs.
pub const NOW: u32 = 1_000_000;

/// The kernel around a packet, as the world says it is.
#[derive(Clone, Debug)]
pub struct HostEnvironment {
    /// The hook.
    pub hook: Hook,
    /// Its interface.
    pub ifindex: u32,
    /// Seconds of the clock.
    pub now: u32,
    /// State of the random numbers.
    pub seed: Cell<u32>,
    /// Connected sockets: own address, peer, IP protocol.
    pub sockets: Vec<(At, At, u8)>,
}

impl HostEnvironment {
    /// At a hook of the world's node.
    pub fn new(world: &World, hook: Hook, ifindex: u32, now: u32) -> Self {
        Self {
            hook,
            ifindex,
            now,
            seed: Cell::new(SEED),
            sockets: world.sockets.clone(),
        }
    }
}

impl<F: CaseFamily> Environment<F> for HostEnvironment {
    fn hook(&self) -> Hook {
        self.hook
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn now_secs(&self, _hz: u32) -> u32 {
        self.now
    }

    fn random(&self) -> u32 {
        // xorshift32 (Marsaglia).
        let mut state = self.seed.get();
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        self.seed.set(state);
        state
    }

    fn route(&self, query: &RouteQuery<F>) -> Option<u32> {
        route::<F>(&query.tuple.dst)
    }

    fn next_hop(&self, _query: &RouteQuery<F>, ifindex: u32) -> Option<NextHop> {
        (self.hook == Hook::Xdp && ifindex == UPLINK).then_some(NextHop {
            dst: ROUTER_MAC,
            src: mac_of(ifindex),
        })
    }

    fn socket_owns(&self, tuple: &Tuple<F::Addr>, protocol: u8) -> bool {
        self.sockets.iter().any(|(own, peer, its_protocol)| {
            *its_protocol == protocol
                && *tuple
                    == Tuple {
                        src: F::address(peer.0),
                        dst: F::address(own.0),
                        sport: Be16::new(peer.1),
                        dport: Be16::new(own.1),
                    }
        })
    }
}

/// Sends bytes down the path over `tables`; what the hook does around it included.
pub fn send<F: CaseFamily>(
    tables: &HostTables<F>,
    env: &HostEnvironment,
    bytes: Vec<u8>,
    segment_len: u32,
) -> Outcome {
    tables.written.borrow_mut().counters.clear();
    let mut packet = HostPacket::new(bytes);
    packet.segment_len = segment_len;
    let (verdict, _) = HostSteps::<F, _, _, _>::run(&mut packet, tables, env, L3);
    let counters = tables.written.borrow().counters.clone();
    Outcome::of_run(verdict, packet.bytes, counters)
}

/// What comes of a case at `hook` by the short way, where that is for it, and by the long one
/// alone: how they differ, in words.
pub fn compare_ways<F: CaseFamily>(case: &Case, hook: Hook) -> Option<String> {
    let env = HostEnvironment::new(&case.world, hook, case.ifindex, NOW);
    let [short, long] = [
        HostSteps::<F, _, _, _>::run,
        HostSteps::<F, _, _, _>::run_long,
    ]
    .map(
        |run: fn(&mut HostPacket, &HostTables<F>, &HostEnvironment, usize) -> _| {
            env.seed.set(SEED);
            let tables = case.world.tables::<F>(1, NOW);
            let mut packet = HostPacket::new(case.bytes::<F>());
            packet.segment_len = case.segment_len;
            let (verdict, _) = run(&mut packet, &tables, &env, L3);
            let outcome = Outcome {
                verdict,
                bytes: packet.bytes,
                counters: tables.written.borrow().counters.clone(),
            };
            (outcome, tables)
        },
    );
    let flows = flows_differ(&short.1, &long.1);
    let told = events::differ(&short.1, &long.1);
    short.0.differs(&long.0).or(flows).or(told)
}

/// Runs a case and returns what came of it, and the tables after it.
pub fn run<F: CaseFamily>(case: &Case, hz: u32, now: u32) -> (Outcome, HostTables<F>) {
    let tables = case.world.tables::<F>(hz, now);
    let outcome = run_over(case, &tables, now);
    (outcome, tables)
}

/// The same over tables that are there.
pub fn run_over<F: CaseFamily>(case: &Case, tables: &HostTables<F>, now: u32) -> Outcome {
    let env = HostEnvironment::new(&case.world, case.hook, case.ifindex, now);
    let is_marked = case.mark & MARK != 0 && Tables::<F>::config(tables).is_some();
    // The hook's own part: what does not come down the path.
    let reason = match case.packet.frame.is_ip() {
        _ if is_marked => Some(proxy_common::Counter::Redirected),
        true => None,
        false => Some(proxy_common::Counter::NotIp),
    };
    if let Some(reason) = reason {
        let counters = [(reason, 1)].into();
        return Outcome {
            verdict: Verdict::Pass,
            bytes: case.bytes::<F>(),
            counters,
        };
    }
    send(tables, &env, case.bytes::<F>(), case.segment_len)
}

/// Runs every case on the host and returns what went wrong, in words.
pub fn run_all<F: CaseFamily>(cases: &[Case]) -> Vec<String> {
    let mut complaints = Vec::new();
    for case in cases.iter().filter(|case| case.holds_for::<F>()) {
        let (outcome, tables) = run::<F>(case, 1, NOW);
        let told = events::wrong(&case.bytes::<F>(), &outcome, &tables);
        let mut complaint = outcome.differs(&case.expected::<F>()).or(told);
        if let Some(bindings) = &case.bindings_after {
            let world = World {
                bindings: bindings.clone(),
                ..case.world.clone()
            };
            let expected = world.tables::<F>(1, NOW);
            let difference = bindings_differ(&tables, &expected);
            complaint = complaint
                .into_iter()
                .chain(difference)
                .reduce(|a, b| a + &b);
        }
        if let Some(flows) = &case.flows_after {
            let world = World {
                flows: flows.clone(),
                ..case.world.clone()
            };
            let expected = world.tables::<F>(1, NOW);
            forget_counts(&tables);
            let difference = flows_differ(&tables, &expected);
            complaint = complaint
                .into_iter()
                .chain(difference)
                .reduce(|a, b| a + &b);
        }
        complaints.extend(complaint.map(|text| format!("{} ({}): {text}", case.name, F::NAME)));
    }
    complaints
}

/// Takes out of entries what a Flow does not say: how much they have carried, and since when.
fn forget_counts<F: CaseFamily>(tables: &HostTables<F>) {
    let written = &mut *tables.written.borrow_mut();
    let handshakes = written.handshakes.values_mut();
    for entry in handshakes.chain(written.flows.values_mut()) {
        (entry.carried, entry.packets, entry.bytes) = (0, 0, 0);
        entry.began_secs = 0;
    }
}

/// How the bindings differ, in words.
pub fn bindings_differ<F: CaseFamily>(
    ours: &HostTables<F>,
    expected: &HostTables<F>,
) -> Option<String> {
    let (ours, expected) = (ours.written.borrow(), expected.written.borrow());
    let (ours, expected) = (&ours.affinity, &expected.affinity);
    (ours != expected).then(|| format!("\n  AFFINITY has {ours:?}\n    and not {expected:?}"))
}

/// How the counts of frontends and backends differ, in words.
pub fn counts_differ<F: CaseFamily>(
    ours: &HostTables<F>,
    expected: &HostTables<F>,
) -> Option<String> {
    let (ours, expected) = (ours.written.borrow(), expected.written.borrow());
    let ours = (&ours.frontend_counts, &ours.backend_counts);
    let expected = (&expected.frontend_counts, &expected.backend_counts);
    (ours != expected).then(|| format!("\n  counted is {ours:?}\n    and not {expected:?}"))
}

/// How the known flows differ, in words.
pub fn flows_differ<F: CaseFamily>(
    ours: &HostTables<F>,
    expected: &HostTables<F>,
) -> Option<String> {
    let (ours, expected) = (ours.written.borrow(), expected.written.borrow());
    let mut text = String::new();
    for (name, ours, expected) in [
        ("HANDSHAKES", &ours.handshakes, &expected.handshakes),
        ("FLOWS", &ours.flows, &expected.flows),
    ] {
        for (key, value) in ours
            .iter()
            .filter(|entry| expected.get(entry.0) != Some(entry.1))
        {
            text += &format!("\n  {name} has {key:?}\n    {value:?}");
        }
        for (key, value) in expected
            .iter()
            .filter(|entry| ours.get(entry.0) != Some(entry.1))
        {
            text += &format!("\n  {name} should have {key:?}\n    {value:?}");
        }
    }
    (!text.is_empty()).then_some(text)
}
