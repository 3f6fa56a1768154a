//! What properties ask of a packet: its addresses, and whether its checksums are right, by full
//! recomputation.

use proxy_common::protocol;

use super::build::{internet_checksum, transport_checksum};
use super::packets::L3;
use super::world::CaseFamily;

/// Addresses and ports in a packet, as bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ends {
    /// Source.
    pub src: Vec<u8>,
    /// Destination.
    pub dst: Vec<u8>,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// Where the parts of a packet are.
struct Parts {
    src: Vec<u8>,
    dst: Vec<u8>,
    protocol: u8,
    l4: usize,
    end: usize,
    is_fragment: bool,
}

/// Addresses and ports of a well-formed TCP or UDP packet.
pub fn ends<F: CaseFamily>(bytes: &[u8]) -> Ends {
    let parts = parts::<F>(bytes);
    let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    Ends {
        src: parts.src,
        dst: parts.dst,
        sport: half(parts.l4),
        dport: half(parts.l4 + 2),
    }
}

/// What is wrong with the checksums of a well-formed packet, in words.
pub fn wrong_checksum<F: CaseFamily>(bytes: &[u8]) -> Option<String> {
    let parts = parts::<F>(bytes);
    if F::VERSION == 4 {
        let header_len = usize::from(bytes[L3] & 0xf) * 4;
        if internet_checksum(&bytes[L3..L3 + header_len]) != 0 {
            return Some("the IPv4 header's checksum".to_owned());
        }
    }
    let transport = &bytes[parts.l4..parts.end];
    let is_without = parts.protocol == protocol::UDP && transport.get(6..8) == Some(&[0, 0]);
    if parts.is_fragment || is_without {
        return None;
    }
    let rest = match parts.protocol {
        protocol::ICMP => internet_checksum(transport),
        protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
            transport_checksum(&parts.src, &parts.dst, parts.protocol, transport)
        }
        _ => 0,
    };
    (rest != 0).then(|| {
        format!(
            "the checksum of protocol {}: off by {rest:#x}",
            parts.protocol
        )
    })
}

fn parts<F: CaseFamily>(bytes: &[u8]) -> Parts {
    let half = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    if F::VERSION == 4 {
        return Parts {
            src: bytes[L3 + 12..L3 + 16].to_vec(),
            dst: bytes[L3 + 16..L3 + 20].to_vec(),
            protocol: bytes[L3 + 9],
            l4: L3 + usize::from(bytes[L3] & 0xf) * 4,
            end: L3 + half(L3 + 2),
            is_fragment: half(L3 + 6) & 0x3fff != 0,
        };
    }
    let mut protocol = bytes[L3 + 6];
    let mut l4 = L3 + 40;
    let mut is_fragment = false;
    while matches!(protocol, 0 | 43 | 44 | 60) {
        is_fragment |= protocol == 44;
        protocol = bytes[l4];
        // All extension headers that the tests build are eight bytes long.
        l4 += 8;
    }
    Parts {
        src: bytes[L3 + 8..L3 + 24].to_vec(),
        dst: bytes[L3 + 24..L3 + 40].to_vec(),
        protocol,
        l4,
        end: L3 + 40 + half(L3 + 4),
        is_fragment,
    }
}
