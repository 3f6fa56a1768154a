//! PORT_FILTER: a bit per protocol, side and port, so that a foreign packet costs almost nothing.
//!
//! An mmapable array of `u64`. A bit may be set without need, never missing: a frontend's port as
//! destination, a backend's port as source. Written by userspace before what needs it is published.

use crate::protocol;

/// Which port of a packet is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The source port: backends' ports.
    Source = 0,
    /// The destination port: frontends' ports.
    Destination = 1,
}

/// Elements of PORT_FILTER: three protocols, two sides, 1,024 words of 64 ports.
pub const PORT_FILTER_LEN: u32 = 3 * 2 * 1024;

/// Index of the element that holds the bit of `port` (host order), or `None` for a protocol
/// without ports.
#[inline(always)]
pub const fn index(protocol: u8, side: Side, port: u16) -> Option<u32> {
    let row = match protocol {
        protocol::TCP => 0,
        protocol::UDP => 1,
        protocol::SCTP => 2,
        _ => return None,
    };
    Some((row * 2 + side as u32) << 10 | port as u32 >> 6)
}

/// The bit of `port` (host order) in its element.
#[inline(always)]
pub const fn bit(port: u16) -> u64 {
    1 << (port & 63)
}
