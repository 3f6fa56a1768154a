//! How a packet's way ends.

use proxy_common::Counter;

/// An early end of the pipeline, with its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Not ours, or not at this hook: the packet is untouched.
    Pass(Counter),
    /// The packet is discarded.
    Drop(Counter),
    /// The packet is discarded and its sender told.
    Reject(Counter, Answer),
}

/// What a sender is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A TCP reset, or ICMP port unreachable for everything but TCP (S-104).
    Refused,
    /// ICMP time exceeded (RFC 792, RFC 4443).
    TimeExceeded,
    /// ICMP fragmentation needed or packet too big, with the MTU in bytes (RFC 1191, RFC 8201).
    TooBig(u16),
}

/// What the hook does with the packet.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// To the stack, or on its way; translated or not.
    Pass,
    /// Discarded.
    Drop,
    /// The packet is an answer: back where it came from.
    Return,
    /// Out by this interface, with the neighbour resolved by the kernel.
    Redirect(u32),
    /// Into the ingress of this interface, for a process of this node (P-8).
    Deliver(u32),
}
