//! The headers of the packets that take the short way.

use proxy_common::{Be16, Tuple, protocol};

use super::{Fragment, Headers, Transport, network};
use crate::packet::Offset;
use crate::wire::{ipv4, ipv6, tcp, udp};
use crate::{Family, Packet};

/// The headers of a whole TCP or UDP packet without IP options or extension headers, as
/// [`parse`](super::parse()) reads them; `None` for any other, and where they cannot all be read.
#[inline(always)]
pub fn plain<F: Family, P: Packet>(packet: &P, l3: usize) -> Option<Headers<F>> {
    let network = network::<F, P, 0>(packet, l3).ok()?;
    let header_len = if F::VERSION == 4 {
        ipv4::LEN
    } else {
        ipv6::LEN
    };
    if network.l4 != l3 + header_len || !matches!(network.fragment, Fragment::No) {
        return None;
    }
    // A constant, which the verifier need not follow.
    let l4 = l3 + header_len;
    let checksum_at = match network.protocol {
        protocol::TCP => tcp::CHECKSUM,
        protocol::UDP => udp::CHECKSUM,
        _ => return None,
    };
    packet.read::<Be16>(l4 + checksum_at).ok()?;
    let tcp_flags = if network.protocol == protocol::TCP {
        packet.read(l4 + tcp::FLAGS).ok()?
    } else {
        0
    };
    let [sport, dport] = packet.read(l4).ok()?;
    Some(Headers {
        tuple: Tuple {
            src: network.src,
            dst: network.dst,
            sport,
            dport,
        },
        l3: Offset::new(l3).ok()?,
        l4: Offset::new(l4).ok()?,
        quoted: Offset::ZERO,
        quoted_l4: Offset::ZERO,
        len: (packet.len() - l3) as u32,
        fragment_id: network.fragment_id,
        protocol: network.protocol,
        tcp_flags,
        ttl: network.ttl,
        transport: Transport::Ports,
        fragment: Fragment::No,
        fragmenting: network.fragmenting,
    })
}
