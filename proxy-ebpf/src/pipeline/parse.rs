//! Stage 1: bytes to headers.

use proxy_common::{
    Address, Be16, Be32, Counter, EXT_HEADERS_MAX, FragmentKey, FragmentPorts, Tuple, protocol,
};

use crate::packet::Offset;
use crate::wire::{checksum, icmp, ipv4, ipv6, tcp};
use crate::{Family, Packet, Stop, Tables};

mod plain;

pub use plain::plain;

/// What a packet's transport header is, as far as we care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP, UDP, SCTP: it has ports.
    Ports,
    /// An ICMP error: `tuple` is that of the quoted packet.
    IcmpError,
    /// Anything else: the ports are 0.
    Other,
}

/// Whether a packet is a whole datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// Whole.
    No,
    /// The first fragment: it has the transport header.
    First,
    /// A later one: it has no ports of its own.
    Later,
}

/// Whether routers may fragment a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragmenting {
    /// IPv4 without DF.
    Allowed,
    /// IPv4 with DF; IPv6.
    Forbidden,
}

/// The parse result.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Headers<F: Family> {
    /// Addresses and ports; of the quoted packet in an ICMP error.
    pub tuple: Tuple<F::Addr>,
    /// Offset of the IP header.
    pub l3: Offset,
    /// Offset of the transport header.
    pub l4: Offset,
    /// In an ICMP error: offset of the quoted IP header.
    pub quoted: Offset,
    /// In an ICMP error: offset of the quoted transport header.
    pub quoted_l4: Offset,
    /// Length of the packet from its IP header on, in bytes.
    pub len: u32,
    /// Identification of a fragment.
    pub fragment_id: u32,
    /// IP protocol; of the quoted packet in an ICMP error.
    pub protocol: u8,
    /// TCP flags; 0 for the rest.
    pub tcp_flags: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Kind of transport header.
    pub transport: Transport,
    /// Fragment or not.
    pub fragment: Fragment,
    /// Whether it may be fragmented.
    pub fragmenting: Fragmenting,
}

/// What the IP header says.
struct Network<A: Address> {
    src: A,
    dst: A,
    l4: usize,
    fragment_id: u32,
    protocol: u8,
    ttl: u8,
    fragment: Fragment,
    fragmenting: Fragmenting,
}

/// Reads the headers into `headers`, for an ICMP error all but those that it quotes ([`quoted`]).
/// Ends on any bytes; never reads behind the packet.
#[inline(always)]
pub fn parse<F: Family, P: Packet>(
    packet: &P,
    l3: usize,
    headers: &mut Headers<F>,
) -> Result<(), Stop> {
    let network = network::<F, P>(packet, l3)?;
    headers.tuple.src = network.src;
    headers.tuple.dst = network.dst;
    headers.tuple.sport = Be16(0);
    headers.tuple.dport = Be16(0);
    headers.l3 = Offset::new(l3)?;
    headers.l4 = Offset::new(network.l4)?;
    headers.quoted = Offset::ZERO;
    headers.quoted_l4 = Offset::ZERO;
    headers.len = (packet.len() - l3) as u32;
    headers.fragment_id = network.fragment_id;
    headers.protocol = network.protocol;
    headers.tcp_flags = 0;
    headers.ttl = network.ttl;
    headers.transport = Transport::Other;
    headers.fragment = network.fragment;
    headers.fragmenting = network.fragmenting;
    if matches!(network.fragment, Fragment::Later) {
        return Ok(());
    }
    if has_ports(network.protocol) {
        headers.transport = Transport::Ports;
        read_ports::<F, P>(packet, headers, network.l4)?;
        if network.protocol == protocol::TCP {
            headers.tcp_flags = packet.read(network.l4 + tcp::FLAGS)?;
        }
    } else if network.protocol == F::ICMP {
        let kind: u8 = packet.read(network.l4 + icmp::TYPE)?;
        if is_error::<F>(kind) {
            headers.transport = Transport::IcmpError;
        }
    }
    Ok(())
}

/// The destination of a packet whose headers could not all be read.
#[inline(always)]
pub fn destination<F: Family, P: Packet>(packet: &P, l3: usize) -> Result<F::Addr, Stop> {
    packet.read(if F::VERSION == 4 {
        l3 + ipv4::DST
    } else {
        l3 + ipv6::DST
    })
}

/// Bytes of the transport header and what follows it, as the IP header says: Ethernet may have
/// padded the packet.
#[inline(always)]
pub fn transport_len<F: Family, P: Packet>(packet: &P, headers: &Headers<F>) -> Result<u16, Stop> {
    let l3 = headers.l3.get();
    let (at, before) = if F::VERSION == 4 {
        (l3 + ipv4::TOTAL_LEN, l3)
    } else {
        (l3 + ipv6::PAYLOAD_LEN, l3 + ipv6::LEN)
    };
    let len: Be16 = packet.read(at)?;
    Ok((before + len.get() as usize).wrapping_sub(headers.l4.get()) as u16)
}

/// What the transport checksum of a whole packet is where the stack has left it to a device: the
/// folded sum of the pseudo header.
#[inline(always)]
pub fn partial_checksum<F: Family, P: Packet>(
    packet: &P,
    headers: &Headers<F>,
) -> Result<Be16, Stop> {
    Ok(folded_pseudo_header(
        headers,
        transport_len(packet, headers)?,
    ))
}

/// The folded sum of the pseudo header of a transport header with `len` bytes, itself included.
#[inline(always)]
pub fn folded_pseudo_header<F: Family>(headers: &Headers<F>, len: u16) -> Be16 {
    let Tuple { src, dst, .. } = &headers.tuple;
    let sum = checksum::pseudo_header(src, dst, headers.protocol, len);
    Be16(checksum::fold(sum))
}

/// Gives a later fragment the ports of its datagram's first one, and remembers those of a first
/// fragment (S-131). Only for datagrams to or from us would it matter; the table is small and LRU.
#[inline(always)]
pub fn complete_fragment<F: Family, T: Tables<F>>(
    tables: &T,
    headers: &mut Headers<F>,
) -> Result<(), Stop> {
    if matches!(headers.fragment, Fragment::No) {
        return Ok(());
    }
    let key = FragmentKey {
        src: headers.tuple.src,
        dst: headers.tuple.dst,
        id: headers.fragment_id,
        protocol: headers.protocol,
        pad: [0; 3],
    };
    if matches!(headers.fragment, Fragment::First) {
        let ports = FragmentPorts {
            sport: headers.tuple.sport,
            dport: headers.tuple.dport,
        };
        tables.insert_fragment(&key, &ports);
        return Ok(());
    }
    let ports = tables
        .fragment(&key)
        .ok_or(Stop::Pass(Counter::FragmentUnknown))?;
    headers.tuple.sport = ports.sport;
    headers.tuple.dport = ports.dport;
    headers.transport = Transport::Ports;
    Ok(())
}

/// True for the protocols whose header begins with two ports.
#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}

#[inline(always)]
fn is_error<F: Family>(kind: u8) -> bool {
    if F::VERSION == 4 {
        matches!(
            kind,
            icmp::UNREACHABLE4 | icmp::TIME_EXCEEDED4 | icmp::PARAMETER_PROBLEM4
        )
    } else {
        kind != 0 && kind <= icmp::PARAMETER_PROBLEM6
    }
}

#[inline(always)]
fn read_ports<F: Family, P: Packet>(
    packet: &P,
    headers: &mut Headers<F>,
    at: usize,
) -> Result<(), Stop> {
    let [sport, dport]: [Be16; 2] = packet.read(at)?;
    headers.tuple.sport = sport;
    headers.tuple.dport = dport;
    Ok(())
}

/// The packet that an ICMP error quotes takes the place of the packet itself in the headers.
#[inline(always)]
pub fn quoted<F: Family, P: Packet>(packet: &P, headers: &mut Headers<F>) -> Result<(), Stop> {
    let at = headers.l4.get() + icmp::LEN;
    let inner = network::<F, P>(packet, at)?;
    if !has_ports(inner.protocol) || matches!(inner.fragment, Fragment::Later) {
        return Err(Stop::Pass(Counter::IcmpOther));
    }
    headers.quoted = Offset::new(at)?;
    headers.quoted_l4 = Offset::new(inner.l4)?;
    headers.protocol = inner.protocol;
    headers.tuple.src = inner.src;
    headers.tuple.dst = inner.dst;
    read_ports::<F, P>(packet, headers, inner.l4)
}

/// The IP header at `l3`, with the IPv6 extension headers behind it.
#[inline(always)]
fn network<F: Family, P: Packet>(packet: &P, l3: usize) -> Result<Network<F::Addr>, Stop> {
    if F::VERSION == 4 {
        network4::<F, P>(packet, l3)
    } else {
        network6::<F, P>(packet, l3)
    }
}

#[inline(always)]
fn network4<F: Family, P: Packet>(packet: &P, l3: usize) -> Result<Network<F::Addr>, Stop> {
    let version_ihl: u8 = packet.read(l3 + ipv4::VERSION_IHL)?;
    let header_len = ((version_ihl & 0xf) as usize) * 4;
    if version_ihl >> 4 != 4 || header_len < ipv4::LEN {
        return Err(Stop::Pass(Counter::BadHeader));
    }
    let id: Be16 = packet.read(l3 + ipv4::ID)?;
    let fragment: Be16 = packet.read(l3 + ipv4::FRAGMENT)?;
    let [ttl, protocol]: [u8; 2] = packet.read(l3 + ipv4::TTL)?;
    Ok(Network {
        src: packet.read(l3 + ipv4::SRC)?,
        dst: packet.read(l3 + ipv4::DST)?,
        l4: l3 + header_len,
        fragment_id: id.0 as u32,
        protocol,
        ttl,
        fragment: fragment_kind(
            fragment.get() & ipv4::OFFSET_MASK != 0,
            fragment.get() & ipv4::MORE_FRAGMENTS != 0,
        ),
        fragmenting: if fragment.get() & ipv4::DONT_FRAGMENT == 0 {
            Fragmenting::Allowed
        } else {
            Fragmenting::Forbidden
        },
    })
}

#[inline(always)]
fn fragment_kind(has_offset: bool, has_more: bool) -> Fragment {
    match (has_offset, has_more) {
        (true, _) => Fragment::Later,
        (false, true) => Fragment::First,
        (false, false) => Fragment::No,
    }
}

#[inline(always)]
fn network6<F: Family, P: Packet>(packet: &P, l3: usize) -> Result<Network<F::Addr>, Stop> {
    let version: u8 = packet.read(l3)?;
    if version >> 4 != 6 {
        return Err(Stop::Pass(Counter::BadHeader));
    }
    let [next_header, ttl]: [u8; 2] = packet.read(l3 + ipv6::NEXT_HEADER)?;
    let mut network = Network {
        src: packet.read(l3 + ipv6::SRC)?,
        dst: packet.read(l3 + ipv6::DST)?,
        l4: l3 + ipv6::LEN,
        fragment_id: 0,
        protocol: next_header,
        ttl,
        fragment: Fragment::No,
        fragmenting: Fragmenting::Forbidden,
    };
    for _ in 0..EXT_HEADERS_MAX {
        if !extension::<F, P>(packet, &mut network)? {
            return Ok(network);
        }
    }
    if is_extension(network.protocol) {
        return Err(Stop::Pass(Counter::TooManyHeaders));
    }
    Ok(network)
}

#[inline(always)]
fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::DESTINATION | ipv6::FRAGMENT
    )
}

/// Steps over one extension header; false where there is none or the transport header is not here.
#[inline(always)]
fn extension<F: Family, P: Packet>(
    packet: &P,
    network: &mut Network<F::Addr>,
) -> Result<bool, Stop> {
    let kind = network.protocol;
    if !is_extension(kind) || matches!(network.fragment, Fragment::Later) {
        return Ok(false);
    }
    let [next_header, len]: [u8; 2] = packet.read(network.l4)?;
    if kind == ipv6::FRAGMENT {
        let offset_more: Be16 = packet.read(network.l4 + 2)?;
        let id: Be32 = packet.read(network.l4 + 4)?;
        network.fragment_id = id.0;
        network.fragment = fragment_kind(offset_more.get() >> 3 != 0, offset_more.get() & 1 != 0);
        network.l4 += ipv6::FRAGMENT_LEN;
    } else {
        network.l4 += (len as usize + 1) * 8;
    }
    network.protocol = next_header;
    Ok(true)
}
