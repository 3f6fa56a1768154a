//! Socket LB: the same decision on a socket address, so that a connection costs nothing per packet.
//!
//! The hooks translate only where the outcome equals the packet path's; else they step aside and
//! the packet path decides (S-200). A process of this node that dials an own address is the
//! exception: no packet of it ever reaches a tc hook, so the hooks always serve it (P-8).

use proxy_common::config::flags as config_flags;
use proxy_common::socket::{PEER_IS_BACKEND, PEER_IS_FRONTEND};
use proxy_common::{
    Address, Be16, Config, Counter, FrontendKey, SocketEntry, SocketKey, frontend, node, protocol,
};

use crate::pipeline::frontend::{Found, Place, by_key, detect};
use crate::pipeline::select::{Part, Takers, is_usable, pick, policy};
use crate::{Family, Stop, Tables};

/// What a process asks for.
#[derive(Clone, Copy, Debug)]
pub struct Dial<F: Family> {
    /// Socket cookie.
    pub cookie: u64,
    /// Destination.
    pub addr: F::Addr,
    /// Destination port.
    pub port: Be16,
    /// IP protocol.
    pub protocol: u8,
    /// connect() or a message.
    pub call: Call,
    /// Whose socket it is.
    pub owner: Owner,
}

/// Which system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// connect().
    Connect,
    /// sendmsg() or sendto() on an unconnected socket.
    Send,
}

/// Whose network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The node's own.
    Node,
    /// Another: a pod's.
    Pod,
}

/// What the hook does.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome<F: Family> {
    /// The address is left alone.
    Leave,
    /// The socket talks to this backend.
    Translate(F::Addr, Be16),
    /// ECONNREFUSED.
    Refuse,
}

/// Decides a connect() or sendmsg().
#[inline(always)]
pub fn dial<F: Family, T: Tables<F>>(tables: &T, dial: &Dial<F>, random: u32) -> Outcome<F> {
    let Some(config) = tables.config() else {
        return Outcome::Leave;
    };
    let is_own =
        tables.node_address(&dial.addr) & node::address_flags::OWN != 0 || dial.addr.is_loopback();
    // Only here does the packet path never see the packets.
    let must_serve = is_own && matches!(dial.owner, Owner::Node);
    if !is_translatable(config, dial, must_serve) {
        return Outcome::Leave;
    }
    let Some(found) = find(tables, config, &dialed(dial)) else {
        return Outcome::Leave;
    };
    if !must_serve && !equals_packet_path(config, &found, dial.owner) {
        tables.count(Counter::SocketSteppedAside);
        return Outcome::Leave;
    }
    if let Some(entry) = bound(tables, dial) {
        return translate(tables, dial, entry);
    }
    match choose(tables, config, &found, random) {
        Ok(entry) => translate(tables, dial, entry),
        Err(stop) if matches!(stopped(stop, &dial.addr), Stop::Reject(..)) => Outcome::Refuse,
        Err(_) => {
            tables.count(Counter::SocketSteppedAside);
            Outcome::Leave
        }
    }
}

/// The frontend's address for an address that a translated socket sees, or `None`.
#[inline(always)]
pub fn peer<F: Family, T: Tables<F>>(
    tables: &T,
    cookie: u64,
    addr: F::Addr,
    port: Be16,
    protocol: u8,
) -> Option<(F::Addr, Be16)> {
    let found = tables.socket(&key::<F>(cookie, addr, port, protocol, PEER_IS_BACKEND))?;
    Some((found.addr, found.port))
}

/// Protocols and calls that the hooks translate at all (P-11, S-206).
#[inline(always)]
fn is_translatable<F: Family>(config: &Config, dial: &Dial<F>, must_serve: bool) -> bool {
    let is_connected_udp = dial.protocol == protocol::UDP && matches!(dial.call, Call::Connect);
    if dial.protocol != protocol::TCP && dial.protocol != protocol::UDP {
        return false;
    }
    if is_connected_udp && !must_serve && config.flags & config_flags::SOCKET_UDP_CONNECTED == 0 {
        return false;
    }
    matches!(dial.owner, Owner::Node) || config.flags & config_flags::SOCKET_HOST_ONLY == 0
}

/// The frontend dialed: exact, or a NodePort of an accepted own address (S-204).
#[inline(always)]
pub fn find<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    key: &FrontendKey<F::Addr>,
) -> Option<Found> {
    if let Some(found) = by_key(tables, key) {
        return Some(found);
    }
    let is_accepted = if key.addr.is_loopback() {
        config.flags & config_flags::LOOPBACK_NODE_PORTS != 0
    } else {
        tables.node_address(&key.addr) & node::address_flags::NODE_PORT != 0
    };
    if !is_accepted {
        return None;
    }
    by_key(
        tables,
        &FrontendKey {
            addr: F::Addr::UNSPECIFIED,
            ..*key
        },
    )
}

/// A refusal is not ours to give on loopback (S-105): the host's own stack answers there.
#[inline(always)]
pub fn stopped<A: Address>(stop: Stop, addr: &A) -> Stop {
    match stop {
        Stop::Reject(..) if addr.is_loopback() => Stop::Pass(Counter::NotFrontend),
        other => other,
    }
}

#[inline(always)]
fn dialed<F: Family>(dial: &Dial<F>) -> FrontendKey<F::Addr> {
    FrontendKey {
        addr: dial.addr,
        port: dial.port,
        protocol: dial.protocol,
        pad: 0,
    }
}

/// True where translating at the socket gives what the packet path would give (S-200).
#[inline(always)]
fn equals_packet_path(config: &Config, found: &Found, owner: Owner) -> bool {
    // The source is unknown here: affinity and source ranges need it (S-202, S-203).
    if found.tail.affinity_timeout_secs != 0 || found.has(frontend::flags::SOURCE_RANGES) {
        return false;
    }
    match owner {
        // Masquerading gives the address that a direct connection would choose anyway.
        Owner::Node => true,
        // A pod keeps its address only towards a ClusterIP (S-080, S-092).
        Owner::Pod => found.is_cluster_ip() && config.flags & config_flags::MASQUERADE_ALL == 0,
    }
}

/// The backend that this socket already uses for this frontend: datagrams of one 4-tuple stay
/// together (S-205) until the backend is gone (S-124).
#[inline(always)]
fn bound<F: Family, T: Tables<F>>(tables: &T, dial: &Dial<F>) -> Option<SocketEntry<F::Addr>> {
    if dial.protocol != protocol::UDP || !matches!(dial.call, Call::Send) {
        return None;
    }
    let key = key::<F>(
        dial.cookie,
        dial.addr,
        dial.port,
        dial.protocol,
        PEER_IS_FRONTEND,
    );
    let entry = tables.socket(&key)?;
    let backend = tables.backend(entry.backend)?;
    if backend.generation != entry.generation || !is_usable(backend.state) {
        return None;
    }
    Some(entry)
}

#[inline(always)]
fn choose<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    found: &Found,
    random: u32,
) -> Result<SocketEntry<F::Addr>, Stop> {
    let origin = detect::<F>(config, &F::Addr::UNSPECIFIED, Place::Node, 0);
    let (part, _): (Part, _) = policy(config, found, origin, true);
    let (backend_id, backend) = pick(tables, found, part, random, Takers::All)?;
    Ok(SocketEntry {
        addr: backend.addr,
        port: backend.port,
        pad: 0,
        backend: backend_id,
        generation: backend.generation,
    })
}

/// Remembers both directions and translates.
#[inline(always)]
fn translate<F: Family, T: Tables<F>>(
    tables: &T,
    dial: &Dial<F>,
    entry: SocketEntry<F::Addr>,
) -> Outcome<F> {
    let frontend = SocketEntry {
        addr: dial.addr,
        port: dial.port,
        ..entry
    };
    let by_backend = key::<F>(
        dial.cookie,
        entry.addr,
        entry.port,
        dial.protocol,
        PEER_IS_BACKEND,
    );
    tables.insert_socket(&by_backend, &frontend);
    if dial.protocol == protocol::UDP && matches!(dial.call, Call::Send) {
        let by_frontend = key::<F>(
            dial.cookie,
            dial.addr,
            dial.port,
            dial.protocol,
            PEER_IS_FRONTEND,
        );
        tables.insert_socket(&by_frontend, &entry);
    }
    Outcome::Translate(entry.addr, entry.port)
}

#[inline(always)]
fn key<F: Family>(
    cookie: u64,
    addr: F::Addr,
    port: Be16,
    protocol: u8,
    peer: u8,
) -> SocketKey<F::Addr> {
    SocketKey {
        cookie: [cookie as u32, (cookie >> 32) as u32],
        addr,
        port,
        protocol,
        peer,
    }
}
