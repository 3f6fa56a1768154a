//! Lines about single packets for the agent's log, by aya-log. The loader decides with [`LOGGED`],
//! a constant for the verifier: where nothing is to be logged, programs lose all this when they are
//! loaded.
//!
//! What varies is written with words of one length, out of tables: the verifier wants to know how
//! long a line is, and would follow a line of its own for every word that a branch chooses.

use core::ptr;

use aya_log_ebpf::log;
use aya_log_ebpf::macro_support::Level;
use proxy_common::{Address, Counter, EventKind, FlowKey, Tuple, protocol};

use super::steps::Context;
use crate::pipeline::conntrack::Entries;
use crate::tell::End;
use crate::{Family, Hook};

/// Set by the loader: the last [`Level`] that is logged, 0 for none.
#[unsafe(no_mangle)]
static LOGGED: u8 = 0;

/// Bytes of the longest name of a counter.
const NAME_LEN: usize = 18;

/// Names of counters, filled up with blanks.
static NAMES: [[u8; NAME_LEN]; Counter::ALL.len()] = names();

const fn names() -> [[u8; NAME_LEN]; Counter::ALL.len()] {
    let mut names = [[b' '; NAME_LEN]; Counter::ALL.len()];
    let mut number = 0;
    while number < names.len() {
        let name = Counter::ALL[number].name().as_bytes();
        let (to, _) = names[number].split_at_mut(name.len());
        to.copy_from_slice(name);
        number += 1;
    }
    names
}

/// Words for protocols, by their number.
static PROTOCOLS: [[u8; 4]; 256] = protocols();

const fn protocols() -> [[u8; 4]; 256] {
    let mut words = [*b"IP  "; 256];
    words[protocol::TCP as usize] = *b"TCP ";
    words[protocol::UDP as usize] = *b"UDP ";
    words[protocol::SCTP as usize] = *b"SCTP";
    words[protocol::ICMP as usize] = *b"ICMP";
    words[protocol::ICMPV6 as usize] = *b"ICMP";
    words
}

/// Where a packet was seen.
#[derive(Clone, Copy)]
pub struct Seen {
    hook: Hook,
    ifindex: u32,
}

impl Seen {
    /// At `hook` as number.
    #[inline(always)]
    pub fn at<C: Context>(ctx: C, hook: u32) -> Self {
        Self {
            hook: C::hook(hook),
            // SAFETY: the kernel gave the context to this program run.
            ifindex: unsafe { ctx.ifindex() },
        }
    }
}

/// True where anything is to be logged.
#[inline(always)]
pub fn is_on() -> bool {
    last_level() != 0
}

/// True where this is to be logged.
#[inline(always)]
pub fn wants_end(end: End) -> bool {
    level(end) as u8 <= last_level()
}

#[inline(always)]
fn last_level() -> u8 {
    // SAFETY: a plain load; volatile, since the loader replaces the value.
    unsafe { ptr::addr_of!(LOGGED).read_volatile() }
}

/// Errors are what the programs themselves have failed at.
#[inline(always)]
fn level(end: End) -> Level {
    match (end.kind, end.reason) {
        (EventKind::Drop, Counter::WriteFailed | Counter::InsertFailed) => Level::Error,
        (EventKind::Drop, _) => Level::Warn,
        (EventKind::Reject, _) => Level::Info,
        (EventKind::NewFlow, _) => Level::Debug,
    }
}

/// Logs that a connection begins.
#[inline(always)]
pub fn begun<F: Family>(seen: Seen, entries: &Entries<F>) {
    if Level::Debug as u8 > last_level() {
        return;
    }
    let Seen { hook, ifindex } = seen;
    let (key, to) = (&entries.key, &entries.connection.to);
    let (protocol, hook) = (&PROTOCOLS[key.protocol as usize], hook_word(hook));
    let [sport, dport, to_port] = [key.tuple.sport, key.tuple.dport, to.dport].map(|it| it.get());
    if F::VERSION == 4 {
        let [src, dst, to] = [key.tuple.src, key.tuple.dst, to.dst].map(v4);
        log!(
            (),
            target: "bpf",
            Level::Debug,
            "bpf: NewFlow {} {:i}:{} -> {:i}:{} to {:i}:{} ({}, interface {})",
            text(protocol), src, sport, dst, dport, to, to_port, text(&hook), ifindex
        );
    } else {
        let [src, dst, to] = [key.tuple.src, key.tuple.dst, to.dst].map(v6);
        log!(
            (),
            target: "bpf",
            Level::Debug,
            "bpf: NewFlow {} [{:i}]:{} -> [{:i}]:{} to [{:i}]:{} ({}, interface {})",
            text(protocol), src, sport, dst, dport, to, to_port, text(&hook), ifindex
        );
    }
}

/// Logs how a packet of this flow ends.
#[inline(always)]
pub fn ended<F: Family>(seen: Seen, end: End, key: &FlowKey<F::Addr>) {
    let Seen { hook, ifindex } = seen;
    let Tuple {
        src,
        dst,
        sport,
        dport,
    } = key.tuple;
    let [sport, dport] = [sport, dport].map(|it| it.get());
    let (protocol, hook) = (&PROTOCOLS[key.protocol as usize], hook_word(hook));
    let reason = NAMES.get(end.reason as usize).unwrap_or(&NAMES[0]);
    if F::VERSION == 4 {
        let [src, dst] = [src, dst].map(v4);
        log!(
            (),
            target: "bpf",
            level(end),
            "bpf: {} {} {:i}:{} -> {:i}:{} ({}, interface {})",
            text(reason), text(protocol), src, sport, dst, dport, text(&hook), ifindex
        );
    } else {
        let [src, dst] = [src, dst].map(v6);
        log!(
            (),
            target: "bpf",
            level(end),
            "bpf: {} {} [{:i}]:{} -> [{:i}]:{} ({}, interface {})",
            text(reason), text(protocol), src, sport, dst, dport, text(&hook), ifindex
        );
    }
}

#[inline(always)]
fn v4<A: Address>(addr: A) -> [u8; 4] {
    addr.words()[0].0.to_ne_bytes()
}

#[inline(always)]
fn v6<A: Address>(addr: A) -> [u8; 16] {
    bytemuck::cast(addr.words())
}

#[inline(always)]
fn hook_word(hook: Hook) -> [u8; 10] {
    match hook {
        Hook::Ingress => *b"tc ingress",
        Hook::Egress => *b"tc egress ",
        Hook::Xdp => *b"xdp       ",
    }
}

#[inline(always)]
fn text(bytes: &[u8]) -> &str {
    // SAFETY: all that is given here is ASCII.
    unsafe { core::str::from_utf8_unchecked(bytes) }
}
