//! The headers of the packets that take the short way.

use proxy_common::{Be16, Tuple, protocol};

use super::{Fragment, Fragmenting, Headers, Transport};
use crate::packet::{Bytes, Offset};
use crate::wire::{ipv4, ipv6, tcp, udp};
use crate::{Family, Packet};

/// The headers of a whole TCP or UDP packet without IP options or extension headers, as
/// [`parse`](super::parse()) reads them; `None` for any other, and where they are not all there.
#[inline(always)]
pub fn plain<F: Family, P: Packet>(packet: &mut P, l3: usize) -> Option<Headers<F>> {
    const NO_OPTIONS: u8 = 0x45;
    let len = packet.len();
    let bytes = packet.bytes();
    // Constants, which the verifier need not follow.
    let (l4, src_at) = if F::VERSION == 4 {
        (l3 + ipv4::LEN, l3 + ipv4::SRC)
    } else {
        (l3 + ipv6::LEN, l3 + ipv6::SRC)
    };
    if !bytes.holds(l4 + udp::LEN) {
        return None;
    }
    let first: u8 = bytes.get(l3);
    let mut fragment_id = 0;
    let mut fragmenting = Fragmenting::Forbidden;
    let [protocol, ttl]: [u8; 2] = if F::VERSION == 4 {
        let fragment: Be16 = bytes.get(l3 + ipv4::FRAGMENT);
        if first != NO_OPTIONS || fragment.get() & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0 {
            return None;
        }
        let id: Be16 = bytes.get(l3 + ipv4::ID);
        fragment_id = id.0 as u32;
        if fragment.get() & ipv4::DONT_FRAGMENT == 0 {
            fragmenting = Fragmenting::Allowed;
        }
        let [ttl, protocol] = bytes.get(l3 + ipv4::TTL);
        [protocol, ttl]
    } else {
        if first >> 4 != 6 {
            return None;
        }
        bytes.get(l3 + ipv6::NEXT_HEADER)
    };
    let tcp_flags = match protocol {
        protocol::TCP if bytes.holds(l4 + tcp::LEN) => bytes.get(l4 + tcp::FLAGS),
        protocol::UDP => 0,
        _ => return None,
    };
    let [src, dst] = bytes.get(src_at);
    let [sport, dport] = bytes.get(l4);
    Some(Headers {
        tuple: Tuple {
            src,
            dst,
            sport,
            dport,
        },
        l3: Offset::new(l3).ok()?,
        l4: Offset::new(l4).ok()?,
        quoted: Offset::ZERO,
        quoted_l4: Offset::ZERO,
        len: (len - l3) as u32,
        fragment_id,
        protocol,
        tcp_flags,
        ttl,
        transport: Transport::Ports,
        fragment: Fragment::No,
        fragmenting,
    })
}
