//! EVENTS and MONITORS: what programs tell of single packets and calls, while somebody listens.
//!
//! EVENTS is a ring buffer of [`Event`] with one reader; MONITORS an array of one [`Monitor`], a
//! lease that the reader renews. Whoever changes the layout of [`Event`] gives EVENTS another name:
//! programs of another build may still write what is read.

use bytemuck::{Pod, Zeroable};

use crate::{Addr6, Be16};

/// Bytes of EVENTS, a power of two and a multiple of the page size: some 10,000 events. What finds
/// no room is lost, and counted as `EventLost`.
pub const EVENTS_SIZE: u32 = 1 << 20;

/// A record of EVENTS.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Event {
    /// Nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// Who dialed; unspecified where the socket hooks do not know it. An IPv4 address is the first
    /// word, and the others are zero: so below.
    pub src: Addr6,
    /// What was dialed.
    pub dst: Addr6,
    /// The backend's address; unspecified where there is none.
    pub to: Addr6,
    /// The interface; 0 at the socket hooks.
    pub ifindex: u32,
    /// FrontendId, or 0 where it is not known.
    pub frontend: u32,
    /// BackendId, or 0.
    pub backend: u32,
    /// A [`crate::Counter`] as number: the reason.
    pub reason: u32,
    /// Port of `src`.
    pub sport: Be16,
    /// Port of `dst`.
    pub dport: Be16,
    /// Port of `to`.
    pub to_port: Be16,
    /// An [`EventKind`] as number.
    pub kind: u8,
    /// One of [`hook`].
    pub hook: u8,
    /// 4 or 6.
    pub family: u8,
    /// IP protocol.
    pub protocol: u8,
    /// TCP flags of a packet that ends here; 0 for the rest.
    pub tcp_flags: u8,
    /// Zero.
    pub pad: [u8; 5],
}
const _: () = assert!(size_of::<Event>() == 88);

/// What has happened.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EventKind {
    /// A connection begins.
    NewFlow = 0,
    /// A packet or call is refused, and its sender told.
    Reject = 1,
    /// A packet or call is dropped.
    Drop = 2,
}

impl EventKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::NewFlow, Self::Reject, Self::Drop];

    /// Its bit in [`Monitor::kinds`].
    #[inline(always)]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Values of [`Event::hook`]: the packet hooks have the numbers of the programs' own `Hook`.
pub mod hook {
    /// tc ingress.
    pub const INGRESS: u8 = 0;
    /// tc egress.
    pub const EGRESS: u8 = 1;
    /// XDP.
    pub const XDP: u8 = 2;
    /// connect().
    pub const CONNECT: u8 = 3;
    /// sendmsg().
    pub const SEND: u8 = 4;
}

/// Value of MONITORS: what is to be told, and until when.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Monitor {
    /// Seconds of the jiffies clock: from then on nothing is told.
    pub until_secs: u32,
    /// One event in so many is told, by chance; 0 and 1: each.
    pub one_in: u32,
    /// Bits of [`EventKind::bit`].
    pub kinds: u32,
    /// Zero.
    pub pad: u32,
}
const _: () = assert!(size_of::<Monitor>() == 16);

impl Monitor {
    /// True if an event of this kind is to be told at `now`. `random` is asked only where it
    /// matters.
    #[inline(always)]
    pub fn wants(
        &self,
        kind: EventKind,
        now: impl FnOnce() -> u32,
        random: impl FnOnce() -> u32,
    ) -> bool {
        self.kinds & kind.bit() != 0
            && now() < self.until_secs
            && (self.one_in <= 1 || random().is_multiple_of(self.one_in))
    }
}
