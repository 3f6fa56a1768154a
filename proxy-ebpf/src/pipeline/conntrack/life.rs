//! The life of a connection: what its packets say of it, how long it is kept without any, and when
//! it is over.

use proxy_common::config::Timeouts;
use proxy_common::flow::{flags, seen};
use proxy_common::{Address, Connection, protocol};

use super::{RENEWAL_LAG_SECS, is_reply};
use crate::pipeline::parse::Headers;
use crate::wire::tcp;
use crate::{Family, FlowTable, Tables};

/// The table for a connection after this packet, which was found in `table`. A closed one is kept
/// only for what is still on its way. TCP is confirmed by the client's acknowledgement of the
/// backend's answer; the rest by a packet after the answer in a later second: a question and its
/// answer are over.
#[inline(always)]
pub(super) fn belongs<F: Family>(
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
    table: FlowTable,
    now: u32,
) -> FlowTable {
    if closed_bit(seen_after(headers, connection, now)) != 0 {
        return FlowTable::Handshakes;
    }
    if matches!(table, FlowTable::Flows) || connection.seen & seen::ANSWER == 0 {
        return table;
    }
    let is_confirmed = if headers.protocol == protocol::TCP {
        let flags = headers.tcp_flags & (tcp::SYN | tcp::ACK);
        closed_bit(connection.seen) != 0 || !is_reply(connection) && flags == tcp::ACK
    } else {
        now != connection.last_seen_secs
    };
    if is_confirmed {
        FlowTable::Flows
    } else {
        table
    }
}

/// True for an entry whose idle lifetime is over (S-122). One of a confirmed connection may have
/// missed packets of the other direction, and none is over too early for that.
#[inline(always)]
pub fn expired<F: Family>(
    timeouts: &Timeouts,
    connection: &Connection<F::Addr>,
    protocol: u8,
    now: u32,
) -> bool {
    let is_renewed = connection.flags & flags::CONFIRMED != 0 && closed_bit(connection.seen) == 0;
    let lag = if is_renewed { RENEWAL_LAG_SECS } else { 0 };
    let idle = now.wrapping_sub(connection.last_seen_secs);
    idle.saturating_sub(lag) > lifetime(timeouts, connection, protocol)
}

/// How long a connection lives without packets, in seconds (S-122).
#[inline(always)]
pub fn lifetime<A: Address>(timeouts: &Timeouts, connection: &Connection<A>, protocol: u8) -> u32 {
    let is_confirmed = connection.flags & flags::CONFIRMED != 0;
    if protocol == protocol::TCP {
        if closed_bit(connection.seen) != 0 {
            timeouts.tcp_closing_secs
        } else if is_confirmed {
            timeouts.tcp_established_secs
        } else {
            timeouts.tcp_handshake_secs
        }
    } else if is_confirmed {
        timeouts.udp_stream_secs
    } else {
        timeouts.udp_unreplied_secs
    }
}

/// 1 after a reset or both FINs.
#[inline(always)]
pub(super) fn closed_bit(bits: u8) -> u8 {
    const { assert!(seen::FIN_ORIGINAL == 1 && seen::FIN_REPLY == 2) };
    const { assert!(seen::RST_ORIGINAL == 4 && seen::RST_REPLY == 8) };
    (bits >> 2 | bits >> 3 | bits & (bits >> 1)) & 1
}

/// True if the entry does not describe the packet's flow: a SYN on a closed TCP connection
/// (S-121), a UDP datagram whose backend is gone (S-124, S-126), or a SYN-ACK on a closed TCP
/// connection: the client's SYN did not come by, so it dialed the backend itself, from the port of
/// an earlier connection.
#[inline(always)]
pub(super) fn is_over<F: Family, T: Tables<F>>(
    tables: &T,
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> bool {
    let is_reply = is_reply(connection);
    match headers.protocol {
        protocol::TCP => {
            let start = if is_reply {
                tcp::SYN | tcp::ACK
            } else {
                tcp::SYN
            };
            headers.tcp_flags & (tcp::SYN | tcp::ACK) == start && closed_bit(connection.seen) != 0
        }
        // Backend 0 is none: a connection past every frontend.
        protocol::UDP if !is_reply && connection.backend != 0 => {
            match tables.backend(connection.backend) {
                Some(backend) => backend.generation != connection.generation,
                None => true,
            }
        }
        _ => false,
    }
}

/// What has been seen of the connection, this packet included. Who goes on in a later second has
/// not sent the reset that was seen, or not for this connection: its receiver ignored it.
#[inline(always)]
pub(super) fn seen_after<F: Family>(
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
    now: u32,
) -> u8 {
    let (answer, fin, rst) = if is_reply(connection) {
        (seen::ANSWER, seen::FIN_REPLY, seen::RST_REPLY)
    } else {
        (0, seen::FIN_ORIGINAL, seen::RST_ORIGINAL)
    };
    let flags = headers.tcp_flags;
    let mut bits = connection.seen | answer;
    if flags & tcp::FIN != 0 {
        bits |= fin;
    }
    if flags & tcp::RST != 0 {
        bits |= rst;
    } else if flags & (tcp::SYN | tcp::ACK) == tcp::ACK && now != connection.last_seen_secs {
        bits &= !rst;
    }
    bits
}
