//! Stage 7: what the hook does with the packet.

use proxy_common::flow::{flags, path, path_flags};
use proxy_common::{Address, Be16, Connection, Counter, NextHop, protocol};

use super::conntrack;
use super::parse::{self, Fragment, Fragmenting, Headers, Transport};
use crate::packet::SEGMENTS_DIFFER;
use crate::wire::{ethernet, sctp, tcp, udp};
use crate::{Answer, Environment, Family, Hook, Packet, Stop, Verdict};

/// Stops a packet whose flow is translated at the other hook.
#[inline(always)]
pub fn at_this_hook<F: Family, E: Environment<F>>(
    env: &E,
    connection: &Connection<F::Addr>,
) -> Result<(), Stop> {
    let kind = connection.path.kind;
    let is_egress = kind == path::EGRESS_STACK || kind == path::EGRESS_NEIGH;
    let is_here = match env.hook() {
        Hook::Ingress => !is_egress,
        Hook::Egress => is_egress,
        Hook::Xdp => kind == path::INGRESS_NEIGH && connection.path.flags & path_flags::XDP != 0,
    };
    if is_here {
        Ok(())
    } else {
        Err(Stop::Pass(Counter::OtherHook))
    }
}

/// Seconds after which a packet of a flow goes by tc instead of XDP: there the kernel uses the
/// neighbour, and so asks it whether it is still there. A power of two.
pub const TURN_SECS: u32 = 32;
// The short way takes none of these.
const _: () = assert!(TURN_SECS.is_multiple_of(conntrack::XDP_RENEWAL_SECS));

/// Stops at XDP the first packet of a flow in each [`TURN_SECS`].
#[inline(always)]
pub fn out_of_turn<A: Address>(connection: &Connection<A>, now: u32) -> Result<(), Stop> {
    if now / TURN_SECS == connection.last_seen_secs / TURN_SECS {
        Ok(())
    } else {
        Err(Stop::Pass(Counter::OtherHook))
    }
}

/// Stops at XDP what it must not touch: a packet without a known next hop, and one whose checksum
/// is to be finished by a device, which a frame from XDP never meets (P-10).
#[inline(always)]
pub fn sendable<F: Family, P: Packet, E: Environment<F>>(
    packet: &P,
    env: &E,
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> Result<(), Stop> {
    if !matches!(env.hook(), Hook::Xdp) {
        return Ok(());
    }
    if !connection.next_hop.is_known() {
        return Err(Stop::Pass(Counter::OtherHook));
    }
    finished_checksum(packet, headers)
}

/// Stops a packet whose transport checksum is the folded sum of the pseudo header: what the stack
/// leaves to a device. One packet in 65,536 that is whole looks the same.
#[inline(always)]
fn finished_checksum<F: Family, P: Packet>(packet: &P, headers: &Headers<F>) -> Result<(), Stop> {
    let l4 = headers.l4.get();
    if !matches!(headers.transport, Transport::Ports) || !matches!(headers.fragment, Fragment::No) {
        return Ok(());
    }
    let (found, unfinished) = if headers.protocol == protocol::SCTP {
        let crc: [Be16; 2] = packet.read(l4 + sctp::CHECKSUM)?;
        (crc[0].0 | crc[1].0, 0)
    } else {
        let at = match headers.protocol {
            protocol::TCP => tcp::CHECKSUM,
            _ => udp::CHECKSUM,
        };
        let found: Be16 = packet.read(l4 + at)?;
        (found.0, parse::partial_checksum(packet, headers)?.0)
    };
    if found == unfinished {
        return Err(Stop::Pass(Counter::OtherHook));
    }
    Ok(())
}

/// Stops what a redirect past the stack would lose: a packet at its last hop, or one larger than
/// the egress MTU (P-3). Its sender is told.
#[inline(always)]
pub fn redirectable<F: Family, P: Packet>(
    packet: &P,
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> Result<(), Stop> {
    let kind = connection.path.kind;
    if kind != path::INGRESS_NEIGH && kind != path::EGRESS_NEIGH {
        return Ok(());
    }
    if kind == path::INGRESS_NEIGH && headers.ttl <= 1 {
        return Err(Stop::Reject(Counter::TtlExceeded, Answer::TimeExceeded));
    }
    let mtu = connection.path.mtu;
    if mtu != 0
        && datagram_len(packet, headers)? > mtu as usize
        && !is_fragmented_later(packet, headers, connection)
    {
        return Err(Stop::Reject(Counter::TooBig, Answer::TooBig(mtu)));
    }
    Ok(())
}

/// True for a packet that a router would fragment, on its way into a tunnel that fragments what it
/// sends itself: the redirect, past the stack, needs not.
#[inline(always)]
fn is_fragmented_later<F: Family, P: Packet>(
    packet: &P,
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> bool {
    let may_be = matches!(headers.fragmenting, Fragmenting::Allowed);
    may_be && connection.path.flags & path_flags::TAKES_LARGER != 0 && packet.segment_len() == 0
}

/// The same for an ICMP error, which is never answered.
#[inline(always)]
pub fn redirectable_error<F: Family>(
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> Result<(), Stop> {
    if connection.path.kind == path::INGRESS_NEIGH && headers.ttl <= 1 {
        return Err(Stop::Drop(Counter::TtlExceeded));
    }
    Ok(())
}

/// Length on the wire from the IP header on; of one segment in a GSO packet, 0 where they differ.
#[inline(always)]
fn datagram_len<F: Family, P: Packet>(packet: &P, headers: &Headers<F>) -> Result<usize, Stop> {
    let segment_len = match packet.segment_len() {
        0 => return Ok(packet.len() - headers.l3.get()),
        // Each fits what its sender knows of the path. One that is lost comes again by itself.
        SEGMENTS_DIFFER => return Ok(0),
        len => len as usize,
    };
    let transport_len = if headers.protocol == protocol::TCP {
        let data_offset: u8 = packet.read(headers.l4.get() + tcp::DATA_OFFSET)?;
        (data_offset >> 4) as usize * 4
    } else {
        udp::LEN
    };
    Ok(headers.l4.get() - headers.l3.get() + transport_len + segment_len)
}

/// Writes the MAC addresses of a frame that XDP sends.
#[inline(always)]
pub fn address_frame<P: Packet>(packet: &mut P, next_hop: &NextHop) -> Result<(), Stop> {
    packet.write(ethernet::DST, &next_hop.dst)?;
    packet.write(ethernet::SRC, &next_hop.src)
}

/// The end of a translated packet.
#[inline(always)]
pub fn translated<F: Family>(
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> (Verdict, Counter) {
    let is_reply = connection.flags & flags::REPLY != 0;
    let (verdict, counter) = match connection.path.kind {
        path::INGRESS_NEIGH | path::EGRESS_NEIGH => (
            Verdict::Redirect(connection.path.ifindex),
            if is_reply {
                Counter::ReplyRedirect
            } else {
                Counter::OriginalRedirect
            },
        ),
        path::INGRESS_LOCAL => (
            Verdict::Deliver(connection.path.ifindex),
            Counter::ReplyLocal,
        ),
        _ => (
            Verdict::Pass,
            if is_reply {
                Counter::ReplyStack
            } else {
                Counter::OriginalStack
            },
        ),
    };
    if let Transport::IcmpError = headers.transport {
        (verdict, Counter::Related)
    } else if let Fragment::Later = headers.fragment {
        (verdict, Counter::Fragment)
    } else {
        (verdict, counter)
    }
}
