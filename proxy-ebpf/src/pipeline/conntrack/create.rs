//! The end of a new flow: its two entries, under a tuple that nobody else uses.

use proxy_common::{
    Address, CLOSED_KEEPS_TUPLE_SECS, Config, Connection, Counter, FlowKey, SNAT_LOOKS_MAX,
    SNAT_TRIES_MAX, Side, protocol,
};

use super::{Entries, closed_bit, expired, find, is_reply, set_other};
use crate::environment::{port_at, range_len};
use crate::pipeline::frontend::{Origin, Place};
use crate::pipeline::nat::SourcePort;
use crate::pipeline::parse::{Fragment, Headers, Transport};
use crate::wire::tcp;
use crate::{Environment, Family, FlowTable, Insert, Stop, Tables};

/// True for a packet from a place where it has passed no other program of ours: a translated packet
/// looks like one that starts a connection past every frontend.
#[inline(always)]
pub fn starts_directly(origin: Origin) -> bool {
    matches!(origin.place, Place::Node | Place::PodSide)
}

/// True for a packet that may start a connection.
#[inline(always)]
pub fn starts_flow<F: Family>(headers: &Headers<F>) -> bool {
    matches!(headers.transport, Transport::Ports)
        && !matches!(headers.fragment, Fragment::Later)
        && headers.tcp_flags & (tcp::SYN | tcp::ACK) == start_flags(headers.protocol)
}

/// True if an entry has the tuple of the answers to the packet with this key, which is turned into
/// theirs: [`clashes`] tells whose it is.
#[inline(always)]
pub fn may_clash<F: Family, T: Tables<F>>(
    tables: &T,
    key: &mut FlowKey<F::Addr>,
    found: &mut Connection<F::Addr>,
) -> bool {
    if !tables.port_known(key.protocol, Side::Source, key.tuple.dport.get()) {
        return false;
    }
    // In place: there is no stack for another key.
    key.tuple = key.tuple.reversed();
    tables.flow(FlowTable::Flows, key, found) || tables.flow(FlowTable::Handshakes, key, found)
}

/// True if the answers to the packet would be taken for those of a live flow: the client has dialed
/// a backend itself, from the port of a flow to it (S-099). A closed flow gives way. Only the port
/// of a backend is looked up.
#[inline(always)]
pub fn clashes<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    entries: &mut Entries<F>,
    now: u32,
) -> bool {
    let Entries {
        key,
        other_key,
        found,
        ..
    } = entries;
    if !tables.port_known(key.protocol, Side::Source, key.tuple.dport.get()) {
        return false;
    }
    *other_key = FlowKey::new(key.tuple.reversed(), key.protocol);
    let taken = find(tables, &config.timeouts, other_key, now, found);
    taken.is_some() && is_reply(found) && closed_bit(found.seen) == 0
}

/// SYN and ACK of a packet that starts a flow.
#[inline(always)]
fn start_flags(protocol: u8) -> u8 {
    if protocol == protocol::TCP {
        tcp::SYN
    } else {
        0
    }
}

/// Who has created a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Creator {
    /// This packet.
    This,
    /// Another one, on another CPU at the same time.
    Other,
}

/// Puts a planned flow into HANDSHAKES, with a free source port. Of two CPUs that create the same
/// flow one wins (`NoExist`); the other takes over the winner's decision.
#[inline(always)]
pub fn create<F, T, E>(
    tables: &T,
    env: &E,
    config: &Config,
    entries: &mut Entries<F>,
    (port, bytes): (SourcePort, u32),
) -> Result<Creator, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let now = env.now_secs(config.hz);
    let limit = config.new_flows_per_sec;
    if limit != 0 && !tables.may_begin(now, limit) {
        return Err(Stop::Drop(Counter::NewFlowLimited));
    }
    entries.connection.tag = entries.key.tag();
    entries.connection.last_seen_secs = now;
    entries.connection.began_secs = now;
    reserve(tables, env, config, entries, port)?;
    entries.connection.packets = 1;
    entries.connection.bytes = bytes.into();
    let Entries {
        key,
        connection,
        other_key,
        found,
        ..
    } = entries;
    if tables.insert_flow(FlowTable::Handshakes, key, connection, Insert::NoExist) {
        count_new(tables, connection);
        return Ok(Creator::This);
    }
    if !tables.flow(FlowTable::Handshakes, key, found) {
        tables.remove_flow(FlowTable::Handshakes, other_key);
        return Err(Stop::Drop(Counter::InsertFailed));
    }
    // An earlier flow of this key whose time is over decides nothing any more.
    if expired::<F>(&config.timeouts, found, key.protocol, now)
        && tables.insert_flow(FlowTable::Handshakes, key, connection, Insert::Any)
    {
        count_new(tables, connection);
        return Ok(Creator::This);
    }
    if found.to != connection.to {
        tables.remove_flow(FlowTable::Handshakes, other_key);
    }
    *connection = *found;
    tables.count(Counter::NewFlowLost);
    Ok(Creator::Other)
}

#[inline(always)]
fn count_new<F: Family, T: Tables<F>>(tables: &T, connection: &Connection<F::Addr>) {
    tables.count(Counter::NewFlow);
    tables.count_connection(
        connection.frontend,
        connection.backend,
        connection.bytes as u32,
    );
}

/// Inserts the Reply direction under a tuple that nobody uses: with the port of the packet where
/// the source is kept and the tuple is free (S-099), else with a port of the SNAT ranges (P-13).
#[inline(always)]
fn reserve<F, T, E>(
    tables: &T,
    env: &E,
    config: &Config,
    entries: &mut Entries<F>,
    port: SourcePort,
) -> Result<(), Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let mut port = port;
    let mut search = Search::new::<F, E>(env, ports(config));
    for _ in 0..SNAT_TRIES_MAX {
        let is_unknown = if let SourcePort::FromRanges = port {
            find_port(tables, env, config, entries, &mut search)
        } else {
            set_other(entries);
            false
        };
        let is_free = (is_unknown || gives_way(tables, config, entries, FlowTable::Flows))
            && (matches!(port, SourcePort::OfPacket)
                || !env.socket_owns(&entries.other_key.tuple, entries.key.protocol));
        // What HANDSHAKES has of the tuple is looked at only where something is in the way.
        if is_free
            && (insert_other(tables, entries)
                || gives_way(tables, config, entries, FlowTable::Handshakes)
                    && insert_other(tables, entries))
        {
            return Ok(());
        }
        if !matches!(port, SourcePort::FromRanges) {
            tables.count(Counter::TupleClash);
            port = SourcePort::FromRanges;
        }
    }
    Err(Stop::Drop(Counter::SnatPortsExhausted))
}

/// Where ports are looked for, in SNAT ranges that begin at 0 and end at 2^32. No position is
/// counted from another, and nothing branches: what the verifier knows of one look, it knows of
/// each.
struct Search {
    at: u32,
    /// To the next port of a small range.
    step: u32,
    /// The bits that chance decides at each look.
    by_chance: u32,
}

impl Search {
    /// In a small range by one port after the other, so that each is tried; in a larger one
    /// anywhere, so that ports in use do not gather.
    #[inline(always)]
    fn new<F: Family, E: Environment<F>>(env: &E, ports: u32) -> Self {
        let is_small = ports <= (SNAT_TRIES_MAX * SNAT_LOOKS_MAX) as u32;
        Self {
            at: env.random(),
            step: u32::MAX.checked_div(ports).unwrap_or(0).wrapping_add(1),
            by_chance: if is_small { 0 } else { u32::MAX },
        }
    }

    /// The next position among so many.
    #[inline(always)]
    fn next<F: Family, E: Environment<F>>(&mut self, env: &E, ports: u32) -> u32 {
        self.at = self.at.wrapping_add(self.step) ^ (env.random() & self.by_chance);
        ((self.at as u64 * ports as u64) >> 32) as u32
    }
}

/// Sets the source port to one that no connection has in FLOWS, and returns true; or to the last
/// one that was looked at.
#[inline(always)]
fn find_port<F, T, E>(
    tables: &T,
    env: &E,
    config: &Config,
    entries: &mut Entries<F>,
    search: &mut Search,
) -> bool
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    for _ in 0..SNAT_LOOKS_MAX {
        let position = search.next::<F, E>(env, ports(config));
        entries.connection.to.sport = port_at(&config.snat_ports, position);
        set_other(entries);
        let Entries {
            other_key, found, ..
        } = entries;
        if !tables.flow(FlowTable::Flows, other_key, found) {
            return true;
        }
    }
    false
}

/// How many ports the SNAT ranges have.
#[inline(always)]
fn ports(config: &Config) -> u32 {
    range_len(&config.snat_ports[0]) + range_len(&config.snat_ports[1])
}

#[inline(always)]
fn insert_other<F: Family, T: Tables<F>>(tables: &T, entries: &Entries<F>) -> bool {
    let Entries {
        other_key, other, ..
    } = entries;
    tables.insert_flow(FlowTable::Handshakes, other_key, other, Insert::NoExist)
}

/// True if no live connection but this very one has the reply's tuple in a table; what is expired
/// or of this one is removed. A removal takes a lock, so it is for what is there.
#[inline(always)]
fn gives_way<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    entries: &mut Entries<F>,
    table: FlowTable,
) -> bool {
    let Entries {
        other_key,
        other,
        found,
        ..
    } = entries;
    if !tables.flow(table, other_key, found) {
        return true;
    }
    let (protocol, now) = (other_key.protocol, other.last_seen_secs);
    if found.tag == other.tag
        && !expired::<F>(&config.timeouts, found, protocol, now)
        && !rests(found, now)
        && found.to != other.to
    {
        return false;
    }
    // Nor may what is left of it speak for the tuple: a late packet of its client, or a new SYN.
    if found.tag == other.tag && found.to != other.to {
        let original = FlowKey::new(found.to.reversed(), protocol);
        tables.remove_flow(table, &original);
    }
    tables.remove_flow(table, other_key);
    true
}

/// True for a connection that has been closed for so long that nothing of it is still on its way:
/// its tuple is free for another one.
#[inline(always)]
fn rests<A: Address>(connection: &Connection<A>, now: u32) -> bool {
    closed_bit(connection.seen) != 0
        && now.wrapping_sub(connection.last_seen_secs) > CLOSED_KEEPS_TUPLE_SECS
}
