//! Socket LB: the same decision on a socket address, so that a connection costs nothing per packet.
//!
//! The hooks translate only where the outcome equals the packet path's; else they step aside and
//! the packet path decides (S-200). What the packet path never sees is the exception, and the hooks
//! always serve it (P-8): a process of this node that dials an own address, and one that gets a
//! backend on an own address.

mod memory;

use proxy_common::backend::flags as backend_flags;
use proxy_common::config::flags as config_flags;
use proxy_common::{
    Address, Backend, Be16, Config, Counter, EventKind, FrontendKey, SocketEntry, frontend, node,
    protocol,
};

pub use memory::peer;
use memory::{Choice, Chosen, bound, remember_choice, translate};

use crate::pipeline::affinity::{self, Client};
use crate::pipeline::frontend::{Found, Place, by_key, detect, is_source_allowed};
use crate::pipeline::select::{Part, Takers, pick, policy, sticky};
use crate::tell::{self, Dialed};
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
    /// The address that it is bound to, or unspecified.
    pub source: F::Addr,
}

/// The kernel around a socket.
pub trait Surroundings<F: Family> {
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Seconds of the jiffies clock: `hz` is the kernel's ticks per second.
    fn now_secs(&self, hz: u32) -> u32;
    /// True if a socket of this network namespace receives what is sent to this address, on it or
    /// on the unspecified one.
    fn listens(&self, addr: &F::Addr, port: Be16, protocol: u8) -> bool;
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
    /// ECONNREFUSED, by this frontend.
    Refuse(u32),
    /// Nobody hears of it: what the packet path would drop, by this frontend.
    Drop(u32),
}

/// What the hook may translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    /// A dialed own address: no packet to it reaches the packet path.
    DialedOwn,
    /// Everything: the outcome is the packet path's.
    All,
    /// Backends on own addresses; the packet path gives the rest its share of flows.
    OwnBackends,
    /// Nothing.
    Nothing,
}

/// Decides a connect() or sendmsg().
#[inline(always)]
pub fn dial<F, T, E>(tables: &T, env: &E, dial: &Dial<F>) -> Outcome<F>
where
    F: Family,
    T: Tables<F>,
    E: Surroundings<F>,
{
    let Some(config) = tables.config() else {
        return Outcome::Leave;
    };
    if !is_translatable(config, dial) {
        return Outcome::Leave;
    }
    let Some(found) = find(tables, config, &dialed(dial)) else {
        return Outcome::Leave;
    };
    let scope = scope(tables, config, dial, &found);
    if let Scope::Nothing = scope {
        tables.count(Counter::SocketSteppedAside);
        return Outcome::Leave;
    }
    let (choice, (entry, backend)) = match bound(tables, dial) {
        Some(chosen) => (Choice::Remembered, chosen),
        None => match choose(tables, env, config, dial, (&found, scope)) {
            Ok(chosen) => (Choice::New, chosen),
            Err(stop) => return unserved(tables, dial, (found.id, scope), stop),
        },
    };
    if serves(tables, env, dial, scope, &backend) {
        if matches!(choice, Choice::New) {
            tables.count_connection(found.id, entry.backend, 0);
            let told = Dialed {
                kind: EventKind::NewFlow,
                reason: translated(dial.call),
                frontend: found.id,
                backend: entry.backend,
                to: (entry.addr, entry.port),
            };
            tell::dialed(tables, env, dial, &told);
        }
        return translate(tables, dial, entry, choice);
    }
    remember_choice(tables, dial, &entry, choice);
    tables.count(Counter::SocketSteppedAside);
    Outcome::Leave
}

/// What counts a call that was translated.
#[inline(always)]
pub fn translated(call: Call) -> Counter {
    match call {
        Call::Connect => Counter::SocketConnected,
        Call::Send => Counter::SocketSent,
    }
}

/// What becomes of a call that no backend serves.
#[inline(always)]
fn unserved<F: Family, T: Tables<F>>(
    tables: &T,
    dial: &Dial<F>,
    (frontend, scope): (u32, Scope),
    stop: Stop,
) -> Outcome<F> {
    match stopped(stop, &dial.addr) {
        Stop::Reject(..) if !matches!(scope, Scope::OwnBackends) => {
            return Outcome::Refuse(frontend);
        }
        Stop::Drop(_) if matches!(scope, Scope::DialedOwn) => return Outcome::Drop(frontend),
        Stop::Reject(..) | Stop::Drop(_) | Stop::Pass(_) => {}
    }
    tables.count(Counter::SocketSteppedAside);
    Outcome::Leave
}

/// Protocols, calls and sockets that the hooks look at (P-11, S-206).
#[inline(always)]
fn is_translatable<F: Family>(config: &Config, dial: &Dial<F>) -> bool {
    if dial.protocol != protocol::TCP && dial.protocol != protocol::UDP {
        return false;
    }
    matches!(dial.owner, Owner::Node)
        || config.flags & config_flags::SOCKET_HOST_ONLY == 0 && is_call_translated(config, dial)
}

/// False for connect() of a UDP socket, unless it is asked for (P-11).
#[inline(always)]
fn is_call_translated<F: Family>(config: &Config, dial: &Dial<F>) -> bool {
    dial.protocol != protocol::UDP
        || !matches!(dial.call, Call::Connect)
        || config.flags & config_flags::SOCKET_UDP_CONNECTED != 0
}

#[inline(always)]
fn scope<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    dial: &Dial<F>,
    found: &Found,
) -> Scope {
    let is_node = matches!(dial.owner, Owner::Node);
    if is_node && is_own(tables, &dial.addr) {
        Scope::DialedOwn
    } else if is_call_translated(config, dial) && equals_packet_path(config, found, dial) {
        Scope::All
    } else if is_node {
        Scope::OwnBackends
    } else {
        Scope::Nothing
    }
}

#[inline(always)]
fn is_own<F: Family, T: Tables<F>>(tables: &T, addr: &F::Addr) -> bool {
    addr.is_loopback() || tables.node_address(addr) & node::address_flags::OWN != 0
}

/// True if the hook is the one that serves this backend.
#[inline(always)]
fn serves<F, T, E>(
    tables: &T,
    env: &E,
    dial: &Dial<F>,
    scope: Scope,
    backend: &Backend<F::Addr>,
) -> bool
where
    F: Family,
    T: Tables<F>,
    E: Surroundings<F>,
{
    if let Scope::OwnBackends = scope {
        return affinity::is_own(tables, backend);
    }
    // A pod that gets itself must be masqueraded (S-094): the packet path does that.
    matches!(dial.owner, Owner::Node)
        || backend.flags & backend_flags::LOCAL == 0
        || !env.listens(&backend.addr, backend.port, dial.protocol)
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
        config.flags & loopback_flag::<F>() != 0
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

#[inline(always)]
fn loopback_flag<F: Family>() -> u32 {
    if F::VERSION == 4 {
        config_flags::LOOPBACK_NODE_PORTS4
    } else {
        config_flags::LOOPBACK_NODE_PORTS6
    }
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
fn equals_packet_path<F: Family>(config: &Config, found: &Found, dial: &Dial<F>) -> bool {
    // The source is unknown here: affinity and source ranges need it (S-202, S-203).
    if found.tail.affinity_timeout_secs != 0 || found.has(frontend::flags::SOURCE_RANGES) {
        return false;
    }
    match dial.owner {
        // Masquerading gives the address that a direct connection would choose anyway. A socket
        // that is bound to another keeps it, also a loopback address that leads nowhere (S-088).
        Owner::Node => dial.source == F::Addr::UNSPECIFIED,
        // A pod keeps its address only towards a ClusterIP (S-080, S-092).
        Owner::Pod => found.is_cluster_ip() && config.flags & config_flags::MASQUERADE_ALL == 0,
    }
}

/// A backend by chance, or the one that the client is bound to.
#[inline(always)]
fn choose<F, T, E>(
    tables: &T,
    env: &E,
    config: &Config,
    dial: &Dial<F>,
    (found, scope): (&Found, Scope),
) -> Result<Chosen<F>, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Surroundings<F>,
{
    let client = client::<F>(config, dial, scope);
    let asker = FrontendKey {
        addr: client,
        port: dial.port,
        protocol: dial.protocol,
        pad: 0,
    };
    if !is_source_allowed(tables, found, &asker) {
        return Err(Stop::Drop(Counter::SourceRange));
    }
    let part = part::<F>(config, found, &dial.addr);
    let (backend_id, backend) = match Client::of(client, found, env.now_secs(config.hz)) {
        None => pick(tables, found, part, env.random(), Takers::All)?,
        Some(client) => sticky(tables, found, part, &client, Takers::All)?,
    };
    let entry = SocketEntry {
        addr: backend.addr,
        port: backend.port,
        pad: 0,
        backend: backend_id,
        generation: backend.generation,
    };
    Ok((entry, backend))
}

/// The source that the packets of the socket would have, as far as it is known here: who dials an
/// own address does so from this very address.
#[inline(always)]
fn client<F: Family>(config: &Config, dial: &Dial<F>, scope: Scope) -> F::Addr {
    if dial.source != F::Addr::UNSPECIFIED {
        dial.source
    } else if let Scope::DialedOwn = scope {
        dial.addr
    } else {
        F::config(config).primary
    }
}

/// The set for a process of this node that dials `addr`. On loopback the policy holds without the
/// short circuit (S-119d).
#[inline(always)]
pub fn part<F: Family>(config: &Config, found: &Found, addr: &F::Addr) -> Part {
    if addr.is_loopback() && found.has(frontend::flags::LOCAL_POLICY) {
        return Part::Local;
    }
    let origin = detect::<F>(config, &F::Addr::UNSPECIFIED, Place::Node, 0);
    policy(config, found, origin, true).0
}
