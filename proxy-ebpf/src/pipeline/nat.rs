//! Stage 6: which addresses, and the header changes.

use bytemuck::Zeroable;
use proxy_common::flow::{Path, flags, path, path_flags};
use proxy_common::{
    Address, Be16, Connection, Counter, Interface, Tuple, interface, node, protocol,
};

use super::frontend::{Origin, Place};
use super::parse::{self, Fragment, Headers};
use super::select::{Choice, Masquerade};
use crate::environment::RouteQuery;
use crate::packet::{L4Change, L4Checksum};
use crate::wire::checksum::{self, Delta};
use crate::wire::{icmp, ipv4, ipv6, tcp, udp};
use crate::{Environment, Family, Packet, Stop, Tables};

mod plain;
mod sctp;
mod way_back;

pub use plain::rewrite_plain;
use way_back::{leaves_unseen, returns_here};

/// Where a new flow's source port comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourcePort {
    /// The packet's own, unless another connection has the tuple (S-099).
    OfPacket,
    /// The same for a process of this node: nor may one of its sockets have a connection to the
    /// backend itself from this port (decision 0009).
    OfProcess,
    /// The SNAT ranges: the source address is another (P-13).
    FromRanges,
}

/// Decides the source address and the way of both directions (P-1 to P-8), into `connection`: its
/// Original direction, with the source port not final.
#[inline(always)]
pub fn plan<F, T, E>(
    tables: &T,
    env: &E,
    headers: &Headers<F>,
    choice: &Choice<F>,
    connection: &mut Connection<F::Addr>,
) -> Result<SourcePort, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let backend = &choice.backend;
    *connection = Connection::zeroed();
    connection.to = Tuple {
        dst: backend.addr,
        dport: backend.port,
        ..headers.tuple
    };
    connection.backend = choice.backend_id;
    connection.generation = backend.generation;
    connection.frontend = choice.frontend;
    let is_node = matches!(choice.origin.place, Place::Node);
    if tables.node_address(&backend.addr) & node::address_flags::OWN != 0 {
        // Delivered to this host: the source is kept (S-096).
        if is_node {
            return Err(Stop::Pass(Counter::HostOwnAddress));
        }
        return Ok(through_stack::<F>(connection));
    }
    if is_hairpin(headers, choice) {
        connection.flags |= flags::HAIRPIN;
    }
    let is_snat = is_masqueraded(tables, env, headers, choice, &connection.to);
    let bridge = choice.origin.bridge;
    if !is_snat && !is_node && bridge == 0 {
        return Ok(through_stack::<F>(connection));
    }
    redirected(
        tables,
        env,
        headers,
        connection,
        Way {
            is_snat,
            is_node,
            bridge,
        },
    )
}

/// True if the backend is the client itself: the last row of S-091 (S-094).
#[inline(always)]
pub fn is_hairpin<F: Family>(headers: &Headers<F>, choice: &Choice<F>) -> bool {
    headers.tuple.src == choice.backend.addr
}

/// S-091's answer under the `--masquerade` in force. `to`: the packet after DNAT.
#[inline(always)]
pub fn is_masqueraded<F, T, E>(
    tables: &T,
    env: &E,
    headers: &Headers<F>,
    choice: &Choice<F>,
    to: &Tuple<F::Addr>,
) -> bool
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    is_hairpin(headers, choice)
        || match choice.masquerade {
            Masquerade::Yes => true,
            Masquerade::No => false,
            Masquerade::IfNotLocal => !returns_here(tables, env, headers, to),
            Masquerade::IfUnseen => leaves_unseen(tables, env, headers, to),
        }
}

/// A connection to a backend itself whose port clashes with a flow's (S-099): it gets another
/// source port and keeps its addresses and its way.
#[inline(always)]
pub fn plan_direct<F: Family>(
    headers: &Headers<F>,
    origin: Origin,
    connection: &mut Connection<F::Addr>,
) -> SourcePort {
    *connection = Connection::zeroed();
    connection.to = headers.tuple;
    connection.flags = flags::SNAT;
    let (there, back) = match origin.place {
        Place::Node => (path::EGRESS_STACK, path::INGRESS_STACK),
        Place::PodSide | Place::Bridge | Place::Outside => {
            (path::INGRESS_STACK, path::EGRESS_STACK)
        }
    };
    connection.path.kind = there;
    connection.other_path.kind = back;
    SourcePort::FromRanges
}

/// How a redirected flow is redirected.
struct Way {
    is_snat: bool,
    is_node: bool,
    /// The bridge that the client is behind, where netfilter does not see bridged packets; or 0.
    bridge: u32,
}

/// DNAT at ingress, undone at whichever egress: the stack routes both ways (P-1, P-5).
#[inline(always)]
fn through_stack<F: Family>(connection: &mut Connection<F::Addr>) -> SourcePort {
    connection.path.kind = path::INGRESS_STACK;
    connection.other_path.kind = path::EGRESS_STACK;
    SourcePort::OfPacket
}

/// Rewritten whole and sent out by redirect, both ways (P-2, P-6, P-7, P-8).
#[inline(always)]
fn redirected<F, T, E>(
    tables: &T,
    env: &E,
    headers: &Headers<F>,
    connection: &mut Connection<F::Addr>,
    way: Way,
) -> Result<SourcePort, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let query = RouteQuery {
        tuple: connection.to,
        protocol: headers.protocol,
    };
    let out = env.route(&query).ok_or(Stop::Drop(Counter::NoRoute))?;
    let interface = tables.interface(out).ok_or(Stop::Drop(Counter::NoRoute))?;
    if !way.is_snat && !way.is_node && out != way.bridge {
        return Ok(through_stack::<F>(connection));
    }
    let mut port = if way.is_node {
        SourcePort::OfProcess
    } else {
        SourcePort::OfPacket
    };
    if way.is_snat {
        let source = F::masquerade_address(&interface);
        if source == F::Addr::UNSPECIFIED {
            return Err(Stop::Drop(Counter::NoSnatAddress));
        }
        if source != headers.tuple.src {
            port = SourcePort::FromRanges;
        }
        connection.to.src = source;
        connection.flags |= flags::SNAT;
    }
    if way.is_node {
        connection.path = by(path::EGRESS_NEIGH, out, &interface);
        connection.other_path = by(path::INGRESS_LOCAL, env.ifindex(), &interface);
        return Ok(port);
    }
    let answers = RouteQuery {
        tuple: headers.tuple.reversed(),
        protocol: headers.protocol,
    };
    let back = env.route(&answers).unwrap_or(env.ifindex());
    connection.path = by(path::INGRESS_NEIGH, out, &interface);
    let interface = tables.interface(back).unwrap_or(Interface::zeroed());
    connection.other_path = by(path::INGRESS_NEIGH, back, &interface);
    Ok(port)
}

#[inline(always)]
fn path_flags(of_interface: u32) -> u8 {
    let mut bits = 0;
    if of_interface & interface::flags::TAKES_LARGER != 0 {
        bits |= path_flags::TAKES_LARGER;
    }
    if of_interface & interface::flags::XDP != 0 {
        bits |= path_flags::XDP;
    }
    bits
}

#[inline(always)]
fn by(kind: u8, ifindex: u32, interface: &Interface) -> Path {
    let mtu = if interface.mtu > u16::MAX as u32 {
        u16::MAX
    } else {
        interface.mtu as u16
    };
    Path {
        kind,
        flags: path_flags(interface.flags),
        mtu,
        ifindex,
    }
}

/// Writes the translation into the packet: transport first, so that a packet whose transport
/// header ends early is dropped before anything is changed (S-133).
#[inline(always)]
pub fn rewrite<F: Family, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> Result<(), Stop> {
    let (old, new) = (&headers.tuple, &connection.to);
    let change = changes(old, new);
    if !matches!(headers.fragment, Fragment::Later) {
        transport(packet, headers, change)?;
        if headers.protocol == protocol::SCTP {
            sctp::rewrite_checksum(packet, headers, new)?;
        }
        packet.write(headers.l4.get(), &[new.sport, new.dport])?;
    }
    network::<F, P>(packet, headers, &new.src, &new.dst, change.addresses)?;
    if connection.path.kind == path::INGRESS_NEIGH {
        decrement_ttl::<F, P>(packet, headers)?;
    }
    Ok(())
}

/// What a translation changes in sums.
#[inline(always)]
fn changes<A: Address>(old: &Tuple<A>, new: &Tuple<A>) -> L4Change {
    L4Change {
        addresses: Delta::address(&old.src, &new.src).plus(Delta::address(&old.dst, &new.dst)),
        payload: Delta::half(old.sport, new.sport).plus(Delta::half(old.dport, new.dport)),
    }
}

#[inline(always)]
fn transport<F: Family, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    change: L4Change,
) -> Result<(), Stop> {
    let (at, kind) = match headers.protocol {
        protocol::TCP => (headers.l4.get() + tcp::CHECKSUM, L4Checksum::Plain),
        protocol::UDP => (headers.l4.get() + udp::CHECKSUM, L4Checksum::Udp),
        // Others have no checksum that covers addresses; SCTP's is [`sctp`]'s.
        _ => return Ok(()),
    };
    packet
        .read::<Be16>(at)
        .map_err(|_| Stop::Drop(Counter::Unparsable))?;
    if !matches!(headers.fragment, Fragment::No) {
        return packet.update_l4_checksum(at, change, kind);
    }
    let partial = parse::partial_checksum(packet, headers)?;
    packet.update_whole_checksum(at, change, kind, partial)
}

/// Writes both addresses, and the IPv4 header checksum.
#[inline(always)]
fn network<F: Family, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    src: &F::Addr,
    dst: &F::Addr,
    change: Delta,
) -> Result<(), Stop> {
    if F::VERSION == 4 {
        let at = headers.l3.get() + ipv4::CHECKSUM;
        let old: Be16 = packet.read(at)?;
        packet.write(at, &checksum::replaced(old, change))?;
        packet.write(headers.l3.get() + ipv4::SRC, src)?;
        packet.write(headers.l3.get() + ipv4::DST, dst)
    } else {
        packet.write(headers.l3.get() + ipv6::SRC, src)?;
        packet.write(headers.l3.get() + ipv6::DST, dst)
    }
}

/// One hop: what the stack would do to a packet that we forward past it.
#[inline(always)]
fn decrement_ttl<F: Family, P: Packet>(packet: &mut P, headers: &Headers<F>) -> Result<(), Stop> {
    let ttl = headers.ttl.wrapping_sub(1);
    if F::VERSION == 6 {
        return packet.write(headers.l3.get() + ipv6::HOP_LIMIT, &ttl);
    }
    let at = headers.l3.get() + ipv4::CHECKSUM;
    let old: Be16 = packet.read(at)?;
    packet.write(at, &checksum::replaced(old, ttl_change(headers.ttl, ttl)))?;
    packet.write(headers.l3.get() + ipv4::TTL, &ttl)
}

/// What another time to live changes in the header's sum: it is the high byte of its 16-bit word,
/// and the protocol beside it stays.
#[inline(always)]
fn ttl_change(old: u8, new: u8) -> Delta {
    let [old, new] = [old, new].map(|ttl| Be16::new((ttl as u16) << 8));
    Delta::half(old, new)
}

/// Translates an ICMP error: its destination, and the packet that it quotes (S-130). The source
/// stays: it is the router that speaks.
///
/// `connection` is the direction in which the error travels. The quoted packet travelled the other
/// way, and was seen after its translation: it becomes what its sender had sent. Its own transport
/// checksum is left as quoted; nobody can verify a checksum of a packet that was cut.
#[inline(always)]
pub fn related<F: Family, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> Result<(), Stop> {
    let old = &headers.tuple;
    let new = connection.to.reversed();
    let outer_src: F::Addr = address::<F, P>(packet, headers.l3.get(), Side::Source)?;
    let outer_dst: F::Addr = address::<F, P>(packet, headers.l3.get(), Side::Destination)?;
    let outer = Delta::address(&outer_dst, &connection.to.dst);
    let quoted = Headers {
        l3: headers.quoted,
        ..*headers
    };
    let L4Change {
        addresses: inner,
        payload: ports,
    } = changes(old, &new);
    // In IPv4 the quoted header's own checksum takes up the change of its addresses.
    let (kind, payload) = if F::VERSION == 4 {
        (L4Checksum::NoPseudoHeader, ports)
    } else {
        (L4Checksum::Plain, ports.plus(inner))
    };
    let at = headers.l4.get() + icmp::CHECKSUM;
    packet.update_l4_checksum(
        at,
        L4Change {
            addresses: outer,
            payload,
        },
        kind,
    )?;
    packet.write(headers.quoted_l4.get(), &[new.sport, new.dport])?;
    network::<F, P>(packet, &quoted, &new.src, &new.dst, inner)?;
    network::<F, P>(packet, headers, &outer_src, &connection.to.dst, outer)?;
    if connection.path.kind == path::INGRESS_NEIGH {
        decrement_ttl::<F, P>(packet, headers)?;
    }
    Ok(())
}

enum Side {
    Source,
    Destination,
}

#[inline(always)]
fn address<F: Family, P: Packet>(packet: &P, l3: usize, side: Side) -> Result<F::Addr, Stop> {
    packet.read(match (F::VERSION, side) {
        (4, Side::Source) => l3 + ipv4::SRC,
        (4, Side::Destination) => l3 + ipv4::DST,
        (_, Side::Source) => l3 + ipv6::SRC,
        (_, Side::Destination) => l3 + ipv6::DST,
    })
}
