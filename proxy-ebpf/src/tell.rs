//! What monitors are told (decision 0024): that a connection begins, and that a packet or call is
//! refused or dropped. While nobody listens each costs one look-up; packets of known flows are
//! never told of, and do not ask.

use bytemuck::Zeroable as _;
use proxy_common::event::hook;
use proxy_common::{Addr6, Address, Be16, Counter, Event, EventKind, Tuple, protocol};

use crate::pipeline::Step;
use crate::pipeline::conntrack::Entries;
use crate::socket::{Call, Dial, Surroundings};
use crate::wire::{ipv4, ipv6, tcp};
use crate::{Environment, Family, Hook, Packet, Tables};

const _: () = assert!(Hook::Ingress as u8 == hook::INGRESS);
const _: () = assert!(Hook::Egress as u8 == hook::EGRESS);
const _: () = assert!(Hook::Xdp as u8 == hook::XDP);

/// How a packet ends that is refused or dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Which of the two.
    pub kind: EventKind,
    /// Why.
    pub reason: Counter,
}

impl End {
    /// The end that a step is.
    #[inline(always)]
    pub fn of(step: Step) -> Option<Self> {
        let (kind, reason) = match step {
            Step::Answer(reason, _) => (EventKind::Reject, reason),
            Step::End(_, reason) => (EventKind::Drop, reason),
            _ => return None,
        };
        Some(Self { kind, reason })
    }
}

/// What can be told of a packet of which no more is known than where its header begins.
#[derive(Clone, Copy, Debug)]
pub struct Glance<F: Family> {
    /// Addresses and ports; zero where they cannot be read.
    pub tuple: Tuple<F::Addr>,
    /// IP protocol, or 0.
    pub protocol: u8,
    /// TCP flags, or 0.
    pub tcp_flags: u8,
}

/// What became of a call.
#[derive(Clone, Copy, Debug)]
pub struct Dialed<F: Family> {
    /// What.
    pub kind: EventKind,
    /// Why.
    pub reason: Counter,
    /// FrontendId.
    pub frontend: u32,
    /// BackendId, or 0.
    pub backend: u32,
    /// The backend, or unspecified.
    pub to: (F::Addr, Be16),
}

/// Tells that a connection begins, whose packet is this one.
#[inline(always)]
pub fn begun<F, T, E>(tables: &T, env: &E, entries: &Entries<F>)
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    if !is_wanted(tables, env, EventKind::NewFlow) {
        return;
    }
    let Entries {
        key, connection, ..
    } = entries;
    tables.tell(&Event {
        ifindex: env.ifindex(),
        hook: env.hook() as u8,
        frontend: connection.frontend,
        backend: connection.backend,
        to: address(&connection.to.dst),
        to_port: connection.to.dport,
        ..event::<F>(
            EventKind::NewFlow,
            Counter::NewFlow,
            &key.tuple,
            key.protocol,
        )
    });
}

/// The end that a step is, if a monitor wants to be told of it.
#[inline(always)]
pub fn wanted<F, T, E>(tables: &T, env: &E, step: Step) -> Option<End>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let end = End::of(step)?;
    is_wanted(tables, env, end.kind).then_some(end)
}

/// Tells how a packet ends. What tells of it is read once more: the short way leaves no headers,
/// and some cannot be read.
#[inline(always)]
pub fn ended<F, P, T, E>(packet: &P, tables: &T, env: &E, end: End, l3: usize)
where
    F: Family,
    P: Packet,
    T: Tables<F>,
    E: Environment<F>,
{
    let glance = glance::<F, P>(packet, l3);
    tables.tell(&Event {
        ifindex: env.ifindex(),
        hook: env.hook() as u8,
        tcp_flags: glance.tcp_flags,
        ..event::<F>(end.kind, end.reason, &glance.tuple, glance.protocol)
    });
}

/// Reads what can be told of a packet whose header begins at `l3`.
#[inline(always)]
pub fn glance<F: Family, P: Packet>(packet: &P, l3: usize) -> Glance<F> {
    let (tuple, protocol) = addresses::<F, P>(packet, l3).unwrap_or((Tuple::zeroed(), 0));
    let (tuple, tcp_flags) = match ports::<F, P>(packet, l3, protocol) {
        Some((sport, dport, flags)) => (
            Tuple {
                sport,
                dport,
                ..tuple
            },
            flags,
        ),
        None => (tuple, 0),
    };
    Glance {
        tuple,
        protocol,
        tcp_flags,
    }
}

/// Addresses and protocol of a packet, of its own header.
#[inline(always)]
fn addresses<F: Family, P: Packet>(packet: &P, l3: usize) -> Option<(Tuple<F::Addr>, u8)> {
    let (protocol, src, dst) = if F::VERSION == 4 {
        (ipv4::PROTOCOL, ipv4::SRC, ipv4::DST)
    } else {
        (ipv6::NEXT_HEADER, ipv6::SRC, ipv6::DST)
    };
    let tuple = Tuple {
        src: packet.read(l3 + src).ok()?,
        dst: packet.read(l3 + dst).ok()?,
        sport: Be16(0),
        dport: Be16(0),
    };
    Some((tuple, packet.read(l3 + protocol).ok()?))
}

/// Ports and TCP flags of a packet that has them where most have them: not behind IP options or
/// extension headers, and not in a later fragment.
#[inline(always)]
fn ports<F: Family, P: Packet>(packet: &P, l3: usize, protocol: u8) -> Option<(Be16, Be16, u8)> {
    const PLAIN: u8 = 0x45;
    let l4 = l3
        + if F::VERSION == 4 {
            let fragment: Be16 = packet.read(l3 + ipv4::FRAGMENT).ok()?;
            let first: u8 = packet.read(l3 + ipv4::VERSION_IHL).ok()?;
            if first != PLAIN || fragment.get() & ipv4::OFFSET_MASK != 0 {
                return None;
            }
            ipv4::LEN
        } else {
            ipv6::LEN
        };
    let flags = match protocol {
        protocol::TCP => packet.read(l4 + tcp::FLAGS).ok()?,
        protocol::UDP | protocol::SCTP => 0,
        _ => return None,
    };
    let [sport, dport] = packet.read(l4).ok()?;
    Some((sport, dport, flags))
}

/// Tells what became of a call.
#[inline(never)]
pub fn dialed<F, T, E>(tables: &T, env: &E, dial: &Dial<F>, told: &Dialed<F>)
where
    F: Family,
    T: Tables<F>,
    E: Surroundings<F>,
{
    let hz = tables.config().map_or(0, |config| config.hz);
    let is_wanted = tables
        .monitor()
        .is_some_and(|it| it.wants(told.kind, || env.now_secs(hz), || env.random()));
    if !is_wanted {
        return;
    }
    let tuple = Tuple {
        src: dial.source,
        dst: dial.addr,
        sport: Be16(0),
        dport: dial.port,
    };
    tables.tell(&Event {
        hook: match dial.call {
            Call::Connect => hook::CONNECT,
            Call::Send => hook::SEND,
        },
        frontend: told.frontend,
        backend: told.backend,
        to: address(&told.to.0),
        to_port: told.to.1,
        ..event::<F>(told.kind, told.reason, &tuple, dial.protocol)
    });
}

#[inline(always)]
fn is_wanted<F, T, E>(tables: &T, env: &E, kind: EventKind) -> bool
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let hz = tables.config().map_or(0, |config| config.hz);
    tables
        .monitor()
        .is_some_and(|it| it.wants(kind, || env.now_secs(hz), || env.random()))
}

#[inline(always)]
fn event<F: Family>(
    kind: EventKind,
    reason: Counter,
    tuple: &Tuple<F::Addr>,
    protocol: u8,
) -> Event {
    Event {
        time_ns: 0,
        src: address(&tuple.src),
        dst: address(&tuple.dst),
        to: Addr6::UNSPECIFIED,
        ifindex: 0,
        frontend: 0,
        backend: 0,
        reason: reason as u32,
        sport: tuple.sport,
        dport: tuple.dport,
        to_port: Be16(0),
        kind: kind as u8,
        hook: 0,
        family: F::VERSION,
        protocol,
        tcp_flags: 0,
        pad: [0; 5],
    }
}

#[inline(always)]
fn address<A: Address>(addr: &A) -> Addr6 {
    Addr6(addr.words())
}
