//! PORT_FILTER: bits for ports and for addresses, so that a foreign packet costs almost nothing.
//!
//! An mmapable array of `u64`. A bit per protocol, side and port comes first; behind them a bit for
//! each value of an address's hash, both families together: most packets from or to a port that
//! Services have too (443, 53) go somewhere else. A bit may be set without need, never missing: a
//! frontend's port as destination, a backend's port as source, and the addresses of frontends,
//! backends and this node. Written by userspace before what needs it is published, and never taken
//! back, because flows outlive what they were made for.

use crate::{Address, flow::mix, protocol};

/// Which port of a packet is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The source port: backends' ports.
    Source = 0,
    /// The destination port: frontends' ports.
    Destination = 1,
}

/// Elements for ports: three protocols, two sides, 1,024 words of 64 ports.
const PORTS_LEN: u32 = 3 * 2 * 1024;
/// Bits of an address's hash: 65,536 addresses leave 15 of 16 others without a bit.
const ADDRESS_BITS: u32 = 20;
/// Elements for addresses.
const ADDRESSES_LEN: u32 = 1 << (ADDRESS_BITS - 6);
/// Elements of PORT_FILTER.
pub const PORT_FILTER_LEN: u32 = PORTS_LEN + ADDRESSES_LEN;
/// The first element for addresses.
pub const ADDRESSES_START: u32 = PORTS_LEN;
/// The first [`ABI_VERSION`](crate::ABI_VERSION) whose writers know of addresses.
pub const ADDRESSES_SINCE: u32 = 3;

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

/// Index of the element that holds the bit of an address, and the bit.
#[inline(always)]
pub fn address<A: Address>(addr: &A) -> (u32, u64) {
    let words = addr.words();
    let mut hash = mix(0x9e37_79b9, words[0].0);
    if A::BITS > 32 {
        hash = mix(hash, words[1].0);
        hash = mix(hash, words[2].0);
        hash = mix(hash, words[3].0);
    }
    let place = hash >> (32 - ADDRESS_BITS);
    (ADDRESSES_START + (place >> 6), 1 << (place & 63))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::{Addr4, Addr6};

    #[test]
    fn neighbouring_addresses_spread_over_all_bits() {
        let mut bits = std::collections::BTreeSet::new();
        for host in 0..=u16::MAX {
            let [high, low] = host.to_be_bytes();
            let (index, bit) = address(&Addr4::from_octets([10, 244, high, low]));
            assert!(
                (ADDRESSES_START..PORT_FILTER_LEN).contains(&index),
                "{index}"
            );
            bits.insert((index, bit));
        }
        // Of a random hash, 6 % of the bits would be set; a few hundred addresses share one.
        assert!(bits.len() > 60_000, "{}", bits.len());
        let mut octets = [0; 16];
        let mut bits = std::collections::BTreeSet::new();
        for host in 0..=u16::MAX {
            octets[..4].copy_from_slice(&[0xfd, 0, 0x10, 0x10]);
            octets[14..].copy_from_slice(&host.to_be_bytes());
            bits.insert(address(&Addr6::from_octets(octets)));
        }
        assert!(bits.len() > 60_000, "{}", bits.len());
    }
}
