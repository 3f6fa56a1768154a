//! What the pipeline asks the kernel for: time, chance, routes and sockets.

use proxy_common::{Be16, NextHop, Tuple};

use crate::Family;

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// tc ingress.
    Ingress,
    /// tc egress.
    Egress,
    /// XDP, before tc ingress: it answers, drops and redirects what it can, and leaves the rest to
    /// tc as it came (P-10).
    Xdp,
}

/// A question to the routing table.
#[derive(Clone, Copy, Debug)]
pub struct RouteQuery<F: Family> {
    /// Source and destination.
    pub tuple: Tuple<F::Addr>,
    /// IP protocol.
    pub protocol: u8,
}

/// The kernel around one packet.
pub trait Environment<F: Family> {
    /// The hook.
    fn hook(&self) -> Hook;
    /// The interface that the packet enters or leaves by.
    fn ifindex(&self) -> u32;
    /// Seconds of the jiffies clock: `hz` is the kernel's ticks per second.
    fn now_secs(&self, hz: u32) -> u32;
    /// 32 random bits.
    fn random(&self) -> u32;
    /// The interface of the route to `query.tuple.dst`, or `None` where there is none.
    fn route(&self, query: &RouteQuery<F>) -> Option<u32>;
    /// At XDP: where a frame goes that leaves by the interface `ifindex` for `query.tuple.dst`, or
    /// `None` where the neighbour is not known. Elsewhere the kernel finds it after a redirect.
    #[inline(always)]
    fn next_hop(&self, _query: &RouteQuery<F>, _ifindex: u32) -> Option<NextHop> {
        None
    }
    /// True if a socket of this node owns the connection whose packets to this node have `tuple`
    /// (P-13, S-119e). A listening or unconnected socket does not.
    fn socket_owns(&self, tuple: &Tuple<F::Addr>, protocol: u8) -> bool;
}

/// A port of a range of `[first, last]` ranges, by position.
#[inline(always)]
pub fn port_at(ranges: &[[u16; 2]; 2], position: u32) -> Be16 {
    let first = range_len(&ranges[0]);
    if position < first {
        Be16::new(ranges[0][0].wrapping_add(position as u16))
    } else {
        Be16::new(ranges[1][0].wrapping_add((position - first) as u16))
    }
}

/// Ports in `[first, last]`; an empty range has `last < first`.
#[inline(always)]
pub fn range_len(range: &[u16; 2]) -> u32 {
    if range[1] < range[0] {
        0
    } else {
        (range[1] - range[0]) as u32 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::range_len;

    #[test]
    fn ranges_of_ports_include_both_ends() {
        assert_eq!(range_len(&[10_000, 29_999]), 20_000);
        assert_eq!(range_len(&[5, 5]), 1);
        assert_eq!(range_len(&[1, 0]), 0);
    }
}
