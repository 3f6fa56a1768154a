//! Stage 3: what is remembered of connections. New flows are entered in [`create`].
//!
//! FLOWS holds the connections that both sides keep up: a new flow starts in HANDSHAKES, and a
//! closed one goes back there. So neither a flood nor short connections evict an established one,
//! however long it is idle (decision 0012). Entries expire when they are read.

use proxy_common::config::Timeouts;
use proxy_common::flow::flags;
use proxy_common::{Address, Config, Connection, Counter, FlowKey, NextHop};

use super::parse::{Headers, Transport};
use crate::environment::RouteQuery;
use crate::{Environment, Family, FlowTable, Hook, Insert, Sighting, Tables};

mod create;
mod life;

pub use create::{Creator, clashes, create, may_clash, starts_directly, starts_flow};
use life::{belongs, closed_bit, is_over, seen_after};
pub use life::{expired, lifetime};

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
    /// Length of the packet, if it is still to be counted; else 0.
    pub uncounted: u32,
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
    if now == connection.last_seen_secs && tells_nothing(tables, headers, connection, table, now) {
        Tracked::Known
    } else {
        Tracked::Stale
    }
}

/// Both entries of a connection in FLOWS are written with its first packet in so many seconds, a
/// power of two; a missing one is put back then. In between a packet writes to its own entry alone.
pub const RENEWAL_SECS: u32 = 32;
/// The same at XDP, where the next hop is looked up then, whatever the agent has told of it.
pub const XDP_RENEWAL_SECS: u32 = 16;
/// How much longer than its connection an entry may seem idle, in seconds.
pub const RENEWAL_LAG_SECS: u32 = RENEWAL_SECS - 1;

/// True if `found`, an entry of FLOWS, is of the packet's direction, and nothing has to be written
/// of its connection but to this entry: that it is seen, and what it carries.
#[inline(always)]
pub fn is_settled<F, T, E>(
    tables: &T,
    env: &E,
    headers: &Headers<F>,
    (key, found): (&FlowKey<F::Addr>, &Connection<F::Addr>),
    now: u32,
) -> bool
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let renewal = match env.hook() {
        Hook::Ingress | Hook::Egress => RENEWAL_SECS,
        Hook::Xdp => XDP_RENEWAL_SECS,
    };
    // No lifetime is shorter than the time since an entry that was seen within it.
    found.tag == key.tag()
        && now / renewal == found.last_seen_secs / renewal
        && tells_nothing(tables, headers, found, FlowTable::Flows, now)
}

/// Counts the packet of a known flow of which nothing else was written.
#[inline(always)]
pub fn count<F: Family, T: Tables<F>>(tables: &T, entries: &mut Entries<F>) {
    let Entries {
        key,
        found,
        table,
        uncounted,
        ..
    } = entries;
    if *uncounted != 0
        && let Some(entry) = tables.entry(*table, key, found)
    {
        tables.carry(entry, *uncounted);
    }
}

/// True if the packet tells nothing that its entry in `table` does not say, but when it was seen.
#[inline(always)]
fn tells_nothing<F: Family, T: Tables<F>>(
    tables: &T,
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
    table: FlowTable,
    now: u32,
) -> bool {
    seen_after(headers, connection, now) == connection.seen
        && belongs(headers, connection, table, now) == table
        && !is_over(tables, headers, connection)
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

/// Writes what the packet tells: that the flow lives (see [`RENEWAL_SECS`]), that TCP ends, that
/// the backend has answered. A direction that was evicted is put back here. Returns `New` where the
/// flow is to be decided anew.
#[inline(always)]
pub fn refresh<F, T, E>(
    tables: &T,
    env: &E,
    config: &Config,
    headers: &Headers<F>,
    entries: &mut Entries<F>,
) -> Tracked
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let now = env.now_secs(config.hz);
    if is_over(tables, headers, &entries.connection) {
        forget(tables, entries);
        tables.count(Counter::Redecided);
        return Tracked::New;
    }
    let (from, connection) = (entries.table, &mut entries.connection);
    let to = belongs(headers, connection, from, now);
    let gained = seen_after(headers, connection, now);
    let sighting = Sighting {
        now,
        gained,
        lost: connection.seen & !gained,
        bytes: headers.len,
    };
    connection.seen = gained;
    connection.last_seen_secs = now;
    if let FlowTable::Flows = to {
        connection.flags |= flags::CONFIRMED;
    }
    let known = (connection.next_hop, connection.next_hops);
    let is_found = find_next_hop(env, config, &entries.key, connection);
    set_other(entries);
    let mut table = from;
    if to != from {
        table = move_to(tables, entries, to);
    } else if is_found && (entries.connection.next_hop, entries.connection.next_hops) != known {
        // Rare, so the entry is replaced whole: nobody reads half a MAC address.
        tables.insert_flow(from, &entries.key, &entries.connection, Insert::Any);
    }
    let of_other = Sighting {
        bytes: 0,
        ..sighting
    };
    // An entry that is gone was moved by another CPU at this moment, or evicted.
    if tables.touch_flow(table, &entries.key, sighting)
        && !tables.touch_flow(table, &entries.other_key, of_other)
        && tables.insert_flow(table, &entries.other_key, &entries.other, Insert::NoExist)
    {
        tables.count(Counter::HalfRestored);
    }
    Tracked::Known
}

/// Looks up where XDP sends packets of this direction to; false where that is not known, and at the
/// other hooks, which leave it to the kernel.
#[inline(always)]
pub fn find_next_hop<F: Family, E: Environment<F>>(
    env: &E,
    config: &Config,
    key: &FlowKey<F::Addr>,
    connection: &mut Connection<F::Addr>,
) -> bool {
    if !matches!(env.hook(), Hook::Xdp) {
        return false;
    }
    let query = RouteQuery {
        tuple: connection.to,
        protocol: key.protocol,
    };
    let found = env.next_hop(&query, connection.path.ifindex);
    connection.next_hop = found.unwrap_or_default();
    connection.next_hops = config.next_hops as u8;
    found.is_some()
}

/// Removes both directions from both tables; the other one unless its tuple is another connection's
/// by now.
#[inline(always)]
fn forget<F: Family, T: Tables<F>>(tables: &T, entries: &mut Entries<F>) {
    set_other(entries);
    let Entries {
        key,
        other_key,
        other,
        found,
        ..
    } = entries;
    for table in [FlowTable::Flows, FlowTable::Handshakes] {
        tables.remove_flow(table, key);
        if tables.flow(table, other_key, found) && found.to == other.to {
            tables.remove_flow(table, other_key);
        }
    }
}

/// Moves a connection from the other table to `to`, and returns where it is. Where there is no
/// room, it goes on where it was.
#[inline(always)]
fn move_to<F: Family, T: Tables<F>>(
    tables: &T,
    entries: &mut Entries<F>,
    to: FlowTable,
) -> FlowTable {
    let Entries {
        key,
        connection,
        other_key,
        other,
        found,
        ..
    } = entries;
    let (from, counter) = match to {
        FlowTable::Flows => (FlowTable::Handshakes, Counter::Promoted),
        FlowTable::Handshakes => (FlowTable::Flows, Counter::Closed),
    };
    if tables.flow(from, other_key, found) && found.tag == other.tag {
        other.carried = found.carried;
        other.packets = found.packets;
        other.bytes = found.bytes;
    }
    if !tables.insert_flow(to, key, connection, Insert::Any)
        || !tables.insert_flow(to, other_key, other, Insert::Any)
    {
        return from;
    }
    tables.remove_flow(from, key);
    tables.remove_flow(from, other_key);
    tables.count(counter);
    to
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
    other.next_hop = NextHop::default();
    other.next_hops = 0;
    other.flags = connection.flags ^ flags::REPLY;
    other.carried = 0;
    other.packets = 0;
    other.bytes = 0;
}
