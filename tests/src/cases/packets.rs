//! Packets by role: written once, built for either family with right checksums.
//!
//! The packet that a case expects is built here as well, from the roles that it should show, so
//! every checksum in it is computed from all bytes and never derived from the packet that came in.

use etherparse::{Ethernet2Header, Ipv4Header, Ipv4Options, Ipv6Header, TcpHeader, UdpHeader};
use proxy_common::protocol;

use super::world::{At, CaseFamily};

/// MAC of the device that packets arrive at.
const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC of whoever sends them.
const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Length of the Ethernet header.
pub const L3: usize = 14;
/// TCP flags.
pub const FIN: u8 = 0x01;
/// TCP flags.
pub const SYN: u8 = 0x02;
/// TCP flags.
pub const RST: u8 = 0x04;
/// TCP flags.
pub const ACK: u8 = 0x10;

/// The MAC that INTERFACES has for an interface.
pub fn mac_of(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, ifindex as u8]
}

/// What follows the IP header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// A TCP segment.
    Tcp {
        /// Flags.
        flags: u8,
        /// Sequence number.
        seq: u32,
        /// Acknowledgment number.
        ack: u32,
        /// Window.
        window: u16,
    },
    /// A UDP datagram.
    Udp,
    /// A UDP datagram with this in its checksum field.
    UdpChecksum(u16),
    /// An SCTP packet with one chunk; its CRC32c is not computed.
    Sctp,
    /// An ICMP error.
    Error {
        /// Which one.
        kind: IcmpKind,
        /// What it quotes.
        quoted: Box<PacketSpec>,
        /// Bytes of the quoted transport header and what follows.
        quoted_len: usize,
    },
    /// An ICMP echo request.
    Echo,
    /// The payload alone, with a protocol number.
    Raw(u8),
}

/// An ICMP error by meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpKind {
    /// Port unreachable.
    Refused,
    /// TTL exceeded.
    TimeExceeded,
    /// Fragmentation needed, packet too big.
    TooBig(u16),
}

/// What stands between the fixed IP header and the transport header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extras {
    /// Nothing.
    None,
    /// IPv4 options; IPv6 hop-by-hop and destination options.
    Options,
    /// IPv4 options; more IPv6 extension headers than are walked.
    TooMany,
}

/// A fragment of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Offset in units of eight bytes.
    pub offset: u16,
    /// More follow.
    pub has_more: bool,
}

/// One packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketSpec {
    /// Source.
    pub src: At,
    /// Destination.
    pub dst: At,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 identification, and that of a fragmented datagram.
    pub id: u16,
    /// Body.
    pub body: Body,
    /// Payload of the body.
    pub payload: Vec<u8>,
    /// Options and extension headers.
    pub extras: Extras,
    /// Set in a fragment.
    pub part: Option<Part>,
    /// Goes back where it came from.
    pub is_answer: bool,
    /// Bytes behind the datagram, as Ethernet adds them to short ones.
    pub padding: usize,
}

fn packet(src: At, dst: At, body: Body) -> PacketSpec {
    PacketSpec {
        src,
        dst,
        ttl: 64,
        id: 0x4711,
        body,
        payload: b"some payload".to_vec(),
        extras: Extras::None,
        part: None,
        is_answer: false,
        padding: 0,
    }
}

/// A TCP segment with these flags.
pub fn tcp(src: At, dst: At, flags: u8) -> PacketSpec {
    let ack = if flags & ACK == 0 { 0 } else { 0x0bad_cafe };
    let body = Body::Tcp {
        flags,
        seq: 0x1234_5678,
        ack,
        window: 64240,
    };
    let mut packet = packet(src, dst, body);
    if flags & SYN != 0 {
        packet.payload.clear();
    }
    packet
}

/// A SYN.
pub fn syn(src: At, dst: At) -> PacketSpec {
    tcp(src, dst, SYN)
}

/// A UDP datagram.
pub fn udp(src: At, dst: At) -> PacketSpec {
    packet(src, dst, Body::Udp)
}

/// An SCTP packet.
pub fn sctp(src: At, dst: At) -> PacketSpec {
    packet(src, dst, Body::Sctp)
}

/// An ICMP echo request.
pub fn echo(src: At, dst: At) -> PacketSpec {
    packet(src, dst, Body::Echo)
}

/// An ICMP error about `quoted` with `quoted_len` bytes of its transport.
pub fn icmp_error(
    src: At,
    dst: At,
    kind: IcmpKind,
    quoted: PacketSpec,
    quoted_len: usize,
) -> PacketSpec {
    let body = Body::Error {
        kind,
        quoted: Box::new(quoted),
        quoted_len,
    };
    let mut packet = packet(src, dst, body);
    packet.payload.clear();
    packet
}

/// The reset that answers a SYN.
pub fn reset_of(asked: &PacketSpec) -> PacketSpec {
    let Body::Tcp {
        flags, seq, ack, ..
    } = asked.body
    else {
        panic!("only TCP is reset");
    };
    let len =
        asked.payload.len() as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let body = if flags & ACK != 0 {
        Body::Tcp {
            flags: RST,
            seq: ack,
            ack: 0,
            window: 0,
        }
    } else {
        Body::Tcp {
            flags: RST | ACK,
            seq: 0,
            ack: seq.wrapping_add(len),
            window: 0,
        }
    };
    let mut answer = packet(asked.dst, asked.src, body);
    answer.payload.clear();
    answer.id = 0;
    answer.is_answer = true;
    answer
}

/// The ICMP error that answers a packet: eight bytes of its transport are quoted.
pub fn error_of(asked: &PacketSpec, kind: IcmpKind) -> PacketSpec {
    let mut answer = icmp_error(asked.dst, asked.src, kind, asked.clone(), 8);
    answer.id = 0;
    answer.is_answer = true;
    answer
}

impl PacketSpec {
    /// From another source.
    pub fn src(mut self, src: At) -> Self {
        self.src = src;
        self
    }

    /// To another destination.
    pub fn dst(mut self, dst: At) -> Self {
        self.dst = dst;
        self
    }

    /// With another TTL.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With a payload of `len` bytes.
    pub fn len(mut self, len: usize) -> Self {
        self.payload = (0..len).map(|byte| byte as u8).collect();
        self
    }

    /// With options or extension headers.
    pub fn extras(mut self, extras: Extras) -> Self {
        self.extras = extras;
        self
    }

    /// As a fragment.
    pub fn part(mut self, offset: u16, has_more: bool) -> Self {
        self.part = Some(Part { offset, has_more });
        self
    }

    /// As a later fragment: the payload alone.
    pub fn later(mut self, protocol: u8, offset: u16) -> Self {
        self.body = Body::Raw(protocol);
        self.part(offset, false)
    }

    /// The protocol number.
    fn protocol<F: CaseFamily>(&self) -> u8 {
        match &self.body {
            Body::Tcp { .. } => protocol::TCP,
            Body::Udp | Body::UdpChecksum(_) => protocol::UDP,
            Body::Sctp => protocol::SCTP,
            Body::Error { .. } | Body::Echo => F::ICMP,
            Body::Raw(protocol) => *protocol,
        }
    }

    /// The packet with its Ethernet header.
    pub fn bytes<F: CaseFamily>(&self) -> Vec<u8> {
        let (destination, source) = if self.is_answer {
            (THERE, HERE)
        } else {
            (HERE, THERE)
        };
        let header = Ethernet2Header {
            source,
            destination,
            ether_type: etherparse::EtherType(F::ETHERTYPE.get()),
        };
        let padding = vec![0; self.padding];
        [header.to_bytes().to_vec(), self.datagram::<F>(), padding].concat()
    }

    /// The packet from its IP header on.
    pub fn datagram<F: CaseFamily>(&self) -> Vec<u8> {
        let transport = self.transport::<F>();
        match F::VERSION {
            4 => self.datagram4::<F>(&transport),
            _ => self.datagram6::<F>(&transport),
        }
    }

    fn datagram4<F: CaseFamily>(&self, transport: &[u8]) -> Vec<u8> {
        let (src, dst) = self.addresses::<F>();
        let number = etherparse::IpNumber(self.protocol::<F>());
        let (src, dst) = (array(&src), array(&dst));
        let mut header = Ipv4Header::new(0, self.ttl, number, src, dst).expect("an IPv4 header");
        header.identification = self.id;
        // What the datapath writes itself has no identification and no flags.
        header.dont_fragment = self.part.is_none() && !self.is_answer;
        if let Some(part) = self.part {
            header.more_fragments = part.has_more;
            header.fragment_offset = part.offset.try_into().expect("13 bits");
        }
        if self.extras != Extras::None {
            header.options = Ipv4Options::from([1, 1, 1, 1, 1, 1, 1, 0]);
        }
        header.total_len = (header.header_len() + transport.len()) as u16;
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes()[..], transport].concat()
    }

    fn datagram6<F: CaseFamily>(&self, transport: &[u8]) -> Vec<u8> {
        let (src, dst) = self.addresses::<F>();
        let protocol = self.protocol::<F>();
        let mut kinds = match self.extras {
            Extras::None => Vec::new(),
            Extras::Options => vec![0, 60],
            Extras::TooMany => vec![0, 60, 60, 60, 60, 60, 60],
        };
        if self.part.is_some() {
            kinds.push(44);
        }
        let mut extensions = Vec::new();
        for (index, kind) in kinds.iter().enumerate() {
            let next = kinds.get(index + 1).copied().unwrap_or(protocol);
            extensions.extend(match (kind, self.part) {
                (44, Some(part)) => {
                    let [high, low] = (part.offset << 3 | u16::from(part.has_more)).to_be_bytes();
                    let [id_high, id_low] = self.id.to_be_bytes();
                    [next, 0, high, low, 0, 0, id_high, id_low]
                }
                // One PadN option.
                _ => [next, 0, 1, 4, 0, 0, 0, 0],
            });
        }
        let header = Ipv6Header {
            payload_length: (extensions.len() + transport.len()) as u16,
            next_header: etherparse::IpNumber(kinds.first().copied().unwrap_or(protocol)),
            hop_limit: self.ttl,
            source: array(&src),
            destination: array(&dst),
            ..Ipv6Header::default()
        };
        [&header.to_bytes()[..], &extensions, transport].concat()
    }

    fn addresses<F: CaseFamily>(&self) -> (Vec<u8>, Vec<u8>) {
        let octets = |at: At| F::octets(F::address(at.0));
        (octets(self.src), octets(self.dst))
    }

    fn transport<F: CaseFamily>(&self) -> Vec<u8> {
        match &self.body {
            Body::Tcp {
                flags,
                seq,
                ack,
                window,
            } => self.tcp::<F>(*flags, [*seq, *ack], *window),
            Body::Udp => self.udp::<F>(None),
            Body::UdpChecksum(checksum) => self.udp::<F>(Some(*checksum)),
            Body::Error {
                kind,
                quoted,
                quoted_len,
            } => self.error::<F>(*kind, quoted, *quoted_len),
            Body::Echo => self.icmp::<F>(
                [if F::VERSION == 4 { 8 } else { 128 }, 0],
                &[&[0, 7, 0, 1][..], &self.payload].concat(),
            ),
            Body::Sctp => {
                let ports = [self.src.1.to_be_bytes(), self.dst.1.to_be_bytes()].concat();
                [&ports[..], &[0, 0, 0, 9, 1, 2, 3, 4], &self.payload].concat()
            }
            Body::Raw(_) => self.payload.clone(),
        }
    }

    fn tcp<F: CaseFamily>(&self, flags: u8, [seq, ack]: [u32; 2], window: u16) -> Vec<u8> {
        let mut header = TcpHeader::new(self.src.1, self.dst.1, seq, window);
        header.acknowledgment_number = ack;
        header.fin = flags & FIN != 0;
        header.syn = flags & SYN != 0;
        header.rst = flags & RST != 0;
        header.ack = flags & ACK != 0;
        let bytes = [&header.to_bytes()[..], &self.payload].concat();
        header.checksum = self.checksum::<F>(&bytes);
        [&header.to_bytes()[..], &self.payload].concat()
    }

    fn udp<F: CaseFamily>(&self, checksum: Option<u16>) -> Vec<u8> {
        let mut header = UdpHeader {
            source_port: self.src.1,
            destination_port: self.dst.1,
            length: (8 + self.payload.len()) as u16,
            checksum: 0,
        };
        let bytes = [&header.to_bytes()[..], &self.payload].concat();
        header.checksum = match (checksum, self.checksum::<F>(&bytes)) {
            (Some(given), _) => given,
            (None, 0) => 0xffff,
            (None, computed) => computed,
        };
        [&header.to_bytes()[..], &self.payload].concat()
    }

    fn error<F: CaseFamily>(
        &self,
        kind: IcmpKind,
        quoted: &PacketSpec,
        quoted_len: usize,
    ) -> Vec<u8> {
        let whole = quoted.datagram::<F>();
        let header_len = whole.len() - quoted.transport::<F>().len();
        let cut = whole.len().min(header_len + quoted_len);
        let (type_code, mtu) = match (F::VERSION, kind) {
            (4, IcmpKind::Refused) => ([3, 3], 0),
            (4, IcmpKind::TimeExceeded) => ([11, 0], 0),
            (4, IcmpKind::TooBig(mtu)) => ([3, 4], mtu),
            (_, IcmpKind::Refused) => ([1, 4], 0),
            (_, IcmpKind::TimeExceeded) => ([3, 0], 0),
            (_, IcmpKind::TooBig(mtu)) => ([2, 0], mtu),
        };
        let rest = u32::from(mtu).to_be_bytes();
        self.icmp::<F>(type_code, &[&rest[..], &whole[..cut]].concat())
    }

    fn icmp<F: CaseFamily>(&self, type_code: [u8; 2], rest: &[u8]) -> Vec<u8> {
        let bytes = [&type_code[..], &[0, 0], rest].concat();
        let checksum = match F::VERSION {
            4 => internet_checksum(&bytes),
            _ => self.checksum::<F>(&bytes),
        };
        [&type_code[..], &checksum.to_be_bytes(), rest].concat()
    }

    /// With the pseudo header.
    fn checksum<F: CaseFamily>(&self, transport: &[u8]) -> u16 {
        let (src, dst) = self.addresses::<F>();
        transport_checksum(&src, &dst, self.protocol::<F>(), transport)
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("octets of the family")
}

/// The checksum of a transport header and payload with its checksum field zero; 0 if the field
/// holds the right one.
pub fn transport_checksum(src: &[u8], dst: &[u8], protocol: u8, transport: &[u8]) -> u16 {
    let len = (transport.len() as u32).to_be_bytes();
    let pseudo = [src, dst, &len, &[0, 0, 0, protocol], transport].concat();
    internet_checksum(&pseudo)
}

/// RFC 1071, the plain way.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    !(sum as u16)
}
