//! What monitors are told of cases. Every world has a monitor that wants all of it.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Map, MapData, RingBuf};
use proxy_common::{Address, Counter, Event, EventKind, Monitor};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Family, Verdict};

use super::Outcome;
use super::packets::L3;
use super::world::CaseFamily;

/// Every kind, each one, for the next minutes.
pub fn monitor(now: u32) -> Monitor {
    Monitor {
        until_secs: now + 600,
        one_in: 1,
        kinds: EventKind::ALL.iter().fold(0, |all, kind| all | kind.bit()),
        pad: 0,
    }
}

/// How what was told differs, in words.
pub fn differ<F: Family>(ours: &HostTables<F>, expected: &HostTables<F>) -> Option<String> {
    let (ours, expected) = (ours.written.borrow(), expected.written.borrow());
    let (ours, expected) = (&ours.events, &expected.events);
    (ours != expected).then(|| format!("\n  told is {ours:#?}\n    and not {expected:#?}"))
}

/// What is wrong with what was told of a packet, in words: it follows from what became of it.
pub fn wrong<F: CaseFamily>(
    bytes: &[u8],
    outcome: &Outcome,
    tables: &HostTables<F>,
) -> Option<String> {
    let written = tables.written.borrow();
    let told = |kind: EventKind| {
        let events = written.events.iter();
        events.filter(move |event| event.kind == kind as u8)
    };
    let has = |counter| outcome.counters.contains_key(&counter);
    // Their own reason is why they would have been answered.
    let is_unanswered = has(Counter::AnswerLimited) || has(Counter::AnswerSuppressed);
    let [rejects, drops] = match outcome.verdict {
        Verdict::Return => [1, 0],
        Verdict::Drop if is_unanswered => [1, 0],
        Verdict::Drop => [0, 1],
        Verdict::Pass | Verdict::Redirect(_) | Verdict::Deliver(_) => [0, 0],
    };
    let flows = outcome.counters.get(&Counter::NewFlow).copied();
    for (kind, expected) in [
        (EventKind::NewFlow, flows.unwrap_or_default() as usize),
        (EventKind::Reject, rejects),
        (EventKind::Drop, drops),
    ] {
        let count = told(kind).count();
        if count != expected {
            return Some(format!("\n  {count} events {kind:?}, not {expected}"));
        }
    }
    let is_readable = bytes.len() >= L3 + F::HEADER_LEN;
    written.events.iter().find_map(|event| {
        let reason = Counter::from_number(event.reason);
        if !has(reason) && !is_unanswered {
            return Some(format!("\n  {reason:?} is told, and not counted"));
        }
        (is_readable && !has_addresses::<F>(event, bytes))
            .then(|| format!("\n  {event:?} has not the addresses of the packet"))
    })
}

/// True if an event has the addresses of a packet, as it came.
fn has_addresses<F: CaseFamily>(event: &Event, bytes: &[u8]) -> bool {
    let (at, len) = match F::VERSION {
        4 => (L3 + 12, 4),
        _ => (L3 + 8, 16),
    };
    let octets = |addr: &proxy_common::Addr6| bytemuck::bytes_of(addr)[..len].to_vec();
    event.family == F::VERSION
        && octets(&event.src) == bytes[at..at + len]
        && octets(&event.dst) == bytes[at + len..at + 2 * len]
        && addr_rest(event, len)
}

/// True if what an address of the family does not fill is zero.
fn addr_rest(event: &Event, len: usize) -> bool {
    let all = [event.src, event.dst, event.to];
    let mut words = all
        .iter()
        .flat_map(|addr| addr.words().into_iter().skip(len / 4));
    words.all(|word| word.0 == 0)
}

/// EVENTS of a loaded object.
pub struct Told(RingBuf<MapData>);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

impl Told {
    /// Opens the ring.
    pub fn open(ebpf: &Ebpf) -> Result<Self> {
        let Some(Map::RingBuf(map)) = ebpf.map("EVENTS") else {
            anyhow::bail!("no map EVENTS");
        };
        let map = MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).context("EVENTS")?;
        Ok(Self(ring))
    }

    /// What was told since this was last asked, without its times.
    pub fn take(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(record) = self.0.next() {
            let event: Event = bytemuck::pod_read_unaligned(&record);
            assert!(event.time_ns > 0, "{event:?}");
            events.push(Event {
                time_ns: 0,
                ..event
            });
        }
        events
    }
}
