//! Stage 3: what is remembered of connections. New flows are entered in [`create`].
//!
//! A new flow starts in HANDSHAKES and moves to FLOWS with the backend's first reply, so a flood
//! that never answers cannot evict an established connection. Entries expire when they are read.

use proxy_common::config::Timeouts;
use proxy_common::flow::{flags, tcp as seen};
use proxy_common::{Address, Config, Connection, Counter, FlowKey, protocol};

use super::parse::{Headers, Transport};
use crate::wire::tcp;
use crate::{Family, FlowTable, Insert, Tables};

mod create;

pub use create::{clashes, create, starts_directly};

/// What conntrack knows of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracked {
    /// Nothing: it may start a flow.
    New,
    /// It belongs to a direction of a connection.
    Known,
    /// The same, and the entries have to be written: see [`refresh`].
    Stale,
    /// It is an ICMP error about a packet of a connection, and travels in the direction found.
    Related,
}

/// The two entries of the packet's connection, as far as they are known or planned. They are too
/// large for the stack of a BPF program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Entries<F: Family> {
    /// Key of the packet's direction.
    pub key: FlowKey<F::Addr>,
    /// The packet's direction.
    pub connection: Connection<F::Addr>,
    /// Key of the other direction.
    pub other_key: FlowKey<F::Addr>,
    /// The other direction.
    pub other: Connection<F::Addr>,
    /// What was read in its place.
    pub found: Connection<F::Addr>,
    /// Where `connection` was found.
    pub table: FlowTable,
}

/// Finds the packet's flow: sets `key`, and `connection` and `table` where there is one.
#[inline(always)]
pub fn track<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    headers: &Headers<F>,
    entries: &mut Entries<F>,
    now: u32,
) -> Tracked {
    let is_related = matches!(headers.transport, Transport::IcmpError);
    // The quoted packet has been translated and comes back: its answers' direction is the error's.
    let tuple = if is_related {
        headers.tuple.reversed()
    } else {
        headers.tuple
    };
    entries.key = FlowKey::new(tuple, headers.protocol);
    let Entries {
        key, connection, ..
    } = entries;
    let Some(table) = find(tables, &config.timeouts, key, now, connection) else {
        return Tracked::New;
    };
    entries.table = table;
    if is_related {
        return Tracked::Related;
    }
    let connection = &entries.connection;
    let tcp = connection.tcp | ending(headers.tcp_flags, is_reply(connection));
    let is_confirmed = is_reply(connection) && matches!(table, FlowTable::Handshakes);
    if is_confirmed
        || now != connection.last_seen_secs
        || tcp != connection.tcp
        || is_over(tables, headers, connection)
    {
        return Tracked::Stale;
    }
    Tracked::Known
}

/// True for the Reply direction.
#[inline(always)]
pub fn is_reply<A: Address>(connection: &Connection<A>) -> bool {
    connection.flags & flags::REPLY != 0
}

/// Copies a live entry of either table to `found`.
#[inline(always)]
fn find<F: Family, T: Tables<F>>(
    tables: &T,
    timeouts: &Timeouts,
    key: &FlowKey<F::Addr>,
    now: u32,
    found: &mut Connection<F::Addr>,
) -> Option<FlowTable> {
    let tag = key.tag();
    // The tag is checked after the copy: an LRU element may be reused while it is read.
    if tables.flow(FlowTable::Flows, key, found)
        && found.tag == tag
        && !expired::<F>(timeouts, found, key.protocol, now)
    {
        return Some(FlowTable::Flows);
    }
    if tables.flow(FlowTable::Handshakes, key, found)
        && found.tag == tag
        && !expired::<F>(timeouts, found, key.protocol, now)
    {
        return Some(FlowTable::Handshakes);
    }
    None
}

/// Writes what the packet tells: that the flow lives (once a second), that TCP ends, that the
/// backend has answered. A direction that was evicted is put back here. Returns `New` where the
/// flow is to be decided anew.
#[inline(always)]
pub fn refresh<F: Family, T: Tables<F>>(
    tables: &T,
    headers: &Headers<F>,
    entries: &mut Entries<F>,
    now: u32,
) -> Tracked {
    if is_over(tables, headers, &entries.connection) {
        forget(tables, entries);
        tables.count(Counter::Redecided);
        return Tracked::New;
    }
    let connection = &mut entries.connection;
    let is_confirmed = is_reply(connection) && matches!(entries.table, FlowTable::Handshakes);
    connection.tcp |= ending(headers.tcp_flags, is_reply(connection));
    connection.last_seen_secs = now;
    if is_confirmed {
        connection.flags |= flags::REPLIED;
        set_other(entries);
        promote(tables, entries);
        return Tracked::Known;
    }
    set_other(entries);
    let (table, tcp) = (entries.table, entries.connection.tcp);
    tables.touch_flow(table, &entries.key, now, tcp);
    if !tables.touch_flow(table, &entries.other_key, now, tcp)
        && tables.insert_flow(table, &entries.other_key, &entries.other, Insert::NoExist)
    {
        tables.count(Counter::HalfRestored);
    }
    Tracked::Known
}

/// True for an entry whose idle lifetime is over (S-122).
#[inline(always)]
pub fn expired<F: Family>(
    timeouts: &Timeouts,
    connection: &Connection<F::Addr>,
    protocol: u8,
    now: u32,
) -> bool {
    let is_replied = connection.flags & flags::REPLIED != 0;
    let lifetime = if protocol == protocol::TCP {
        if closed_bit(connection.tcp) != 0 {
            timeouts.tcp_closing_secs
        } else if is_replied {
            timeouts.tcp_established_secs
        } else {
            timeouts.tcp_handshake_secs
        }
    } else if is_replied {
        timeouts.udp_stream_secs
    } else {
        timeouts.udp_unreplied_secs
    };
    now.wrapping_sub(connection.last_seen_secs) > lifetime
}

/// 1 after a reset or both FINs.
#[inline(always)]
fn closed_bit(tcp: u8) -> u8 {
    const { assert!(seen::FIN_ORIGINAL == 1 && seen::FIN_REPLY == 2 && seen::RST == 4) };
    (tcp >> 2 | tcp & (tcp >> 1)) & 1
}

/// True if the entry does not describe the packet's flow: a SYN on a closed TCP connection
/// (S-121), a UDP datagram whose backend is gone (S-124, S-126), or a SYN-ACK on a closed TCP
/// connection: the client's SYN did not come by, so it dialed the backend itself, from the port of
/// an earlier connection.
#[inline(always)]
fn is_over<F: Family, T: Tables<F>>(
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
            headers.tcp_flags & (tcp::SYN | tcp::ACK) == start && closed_bit(connection.tcp) != 0
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

/// Removes both directions from both tables.
#[inline(always)]
fn forget<F: Family, T: Tables<F>>(tables: &T, entries: &mut Entries<F>) {
    set_other(entries);
    tables.remove_flow(FlowTable::Flows, &entries.key);
    tables.remove_flow(FlowTable::Flows, &entries.other_key);
    tables.remove_flow(FlowTable::Handshakes, &entries.key);
    tables.remove_flow(FlowTable::Handshakes, &entries.other_key);
}

/// TCP bits that a packet adds.
#[inline(always)]
fn ending(tcp_flags: u8, is_reply: bool) -> u8 {
    let mut bits = 0;
    if tcp_flags & tcp::RST != 0 {
        bits |= seen::RST;
    }
    if tcp_flags & tcp::FIN != 0 {
        bits |= if is_reply {
            seen::FIN_REPLY
        } else {
            seen::FIN_ORIGINAL
        };
    }
    bits
}

/// Moves a connection from HANDSHAKES to FLOWS.
#[inline(always)]
fn promote<F: Family, T: Tables<F>>(tables: &T, entries: &Entries<F>) {
    let Entries {
        key,
        connection,
        other_key,
        other,
        ..
    } = entries;
    // Where there is no room, the connection goes on in HANDSHAKES.
    if tables.insert_flow(FlowTable::Flows, key, connection, Insert::Any)
        && tables.insert_flow(FlowTable::Flows, other_key, other, Insert::Any)
    {
        tables.remove_flow(FlowTable::Handshakes, key);
        tables.remove_flow(FlowTable::Handshakes, other_key);
        tables.count(Counter::Promoted);
    }
}

/// Rebuilds the other direction from this one.
#[inline(always)]
fn set_other<F: Family>(entries: &mut Entries<F>) {
    let Entries {
        key,
        connection,
        other_key,
        other,
        ..
    } = entries;
    *other_key = FlowKey::new(connection.to.reversed(), key.protocol);
    *other = *connection;
    other.to = key.tuple.reversed();
    other.tag = other_key.tag();
    other.path = connection.other_path;
    other.other_path = connection.path;
    other.flags = connection.flags ^ flags::REPLY;
}
