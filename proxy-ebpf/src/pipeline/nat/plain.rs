//! The rewriting of most packets: what the short way has read the headers of, and nothing else has
//! to be done to.

use proxy_common::flow::path;
use proxy_common::{Be16, Connection, protocol};

use super::{changes, ttl_change};
use crate::packet::{Bytes, L4Checksum};
use crate::pipeline::parse::{Headers, folded_pseudo_header};
use crate::wire::checksum;
use crate::wire::{ethernet, ipv4, ipv6, tcp, udp};
use crate::{Environment, Family, Hook, Packet};

/// Writes the translation into a packet that [`plain`](crate::pipeline::parse::plain) has read.
/// False, and nothing is written, where there is more to think of: several segments, a checksum
/// that a device may have to finish, a redirect that would lose the packet.
#[inline(always)]
pub fn rewrite_plain<F, P, E>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> bool
where
    F: Family,
    P: Packet,
    E: Environment<F>,
{
    let is_forwarded = connection.path.kind == path::INGRESS_NEIGH;
    let is_redirected = is_forwarded || connection.path.kind == path::EGRESS_NEIGH;
    let mtu = connection.path.mtu as u32;
    if is_forwarded && headers.ttl <= 1
        || is_redirected && mtu != 0 && headers.len > mtu
        || packet.segment_len() != 0
    {
        return false;
    }
    let (old, new) = (&headers.tuple, &connection.to);
    let change = changes(old, new);
    let addresses = change.addresses;
    let mut bytes = packet.bytes();
    let (l3, l4) = (headers.l3.get(), headers.l4.get());
    if !bytes.holds(l4 + udp::LEN) {
        return false;
    }
    let (sum_at, kind) = if headers.protocol == protocol::TCP {
        if !bytes.holds(l4 + tcp::LEN) {
            return false;
        }
        (l4 + tcp::CHECKSUM, L4Checksum::Plain)
    } else {
        (l4 + udp::CHECKSUM, L4Checksum::Udp)
    };
    let sum: Be16 = bytes.get(sum_at);
    if sum == unfinished(&bytes, headers) {
        return false;
    }
    bytes.put(sum_at, checksum::updated(sum, change, kind));
    bytes.put(l4, [new.sport, new.dport]);
    let ttl = headers.ttl.wrapping_sub(is_forwarded as u8);
    if F::VERSION == 4 {
        let header = addresses.plus(ttl_change(headers.ttl, ttl));
        let sum: Be16 = bytes.get(l3 + ipv4::CHECKSUM);
        bytes.put(l3 + ipv4::CHECKSUM, checksum::replaced(sum, header));
        bytes.put(l3 + ipv4::SRC, [new.src, new.dst]);
        bytes.put(l3 + ipv4::TTL, ttl);
    } else {
        bytes.put(l3 + ipv6::SRC, [new.src, new.dst]);
        bytes.put(l3 + ipv6::HOP_LIMIT, ttl);
    }
    if matches!(env.hook(), Hook::Xdp) {
        bytes.put(ethernet::DST, connection.next_hop.dst);
        bytes.put(ethernet::SRC, connection.next_hop.src);
    }
    drop(bytes);
    packet.told_addresses(addresses);
    true
}

/// What the transport checksum is where the stack has left it to a device
/// ([`partial_checksum`](crate::pipeline::parse::partial_checksum)).
#[inline(always)]
fn unfinished<F: Family, B: Bytes>(bytes: &B, headers: &Headers<F>) -> Be16 {
    let l3 = headers.l3.get();
    let len = if F::VERSION == 4 {
        let total: Be16 = bytes.get(l3 + ipv4::TOTAL_LEN);
        total.get().wrapping_sub(ipv4::LEN as u16)
    } else {
        let payload: Be16 = bytes.get(l3 + ipv6::PAYLOAD_LEN);
        payload.get()
    };
    folded_pseudo_header(headers, len)
}
