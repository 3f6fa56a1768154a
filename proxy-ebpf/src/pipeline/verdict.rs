//! Stage 7: what the hook does with the packet.

use proxy_common::flow::{flags, path};
use proxy_common::{Connection, Counter, protocol};

use super::parse::{Fragment, Fragmenting, Headers, Transport};
use crate::wire::{tcp, udp};
use crate::{Answer, Environment, Family, Hook, Packet, Stop, Verdict};

/// Stops a packet whose flow is translated at the other hook.
#[inline(always)]
pub fn at_this_hook<F: Family, E: Environment<F>>(
    env: &E,
    connection: &Connection<F::Addr>,
) -> Result<(), Stop> {
    let hook = match connection.path.kind {
        path::EGRESS_STACK | path::EGRESS_NEIGH => Hook::Egress,
        _ => Hook::Ingress,
    };
    if env.hook() == hook {
        Ok(())
    } else {
        Err(Stop::Pass(Counter::OtherHook))
    }
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
    may_be && connection.path.takes_larger != 0 && packet.segment_len() == 0
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

/// Length on the wire from the IP header on; of one segment in a GSO packet.
#[inline(always)]
fn datagram_len<F: Family, P: Packet>(packet: &P, headers: &Headers<F>) -> Result<usize, Stop> {
    let segment_len = packet.segment_len() as usize;
    if segment_len == 0 {
        return Ok(packet.len() - headers.l3.get());
    }
    let transport_len = if headers.protocol == protocol::TCP {
        let data_offset: u8 = packet.read(headers.l4.get() + tcp::DATA_OFFSET)?;
        (data_offset >> 4) as usize * 4
    } else {
        udp::LEN
    };
    Ok(headers.l4.get() - headers.l3.get() + transport_len + segment_len)
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
