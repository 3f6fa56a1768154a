//! Packets by role: written once, built for either family with right checksums.
//!
//! The packet that a case expects is built here as well, from the roles that it should show, so
//! every checksum in it is computed from all bytes and never derived from the packet that came in.

use super::world::At;

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
    /// An SCTP packet with one chunk.
    Sctp,
    /// The same, whose CRC32c a device is to compute.
    SctpUnfinished,
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
    /// A header that the receiver cannot take.
    ParameterProblem,
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
    /// Whom the frame is addressed to.
    pub frame: Frame,
}

/// The Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// To the device itself.
    Device,
    /// To everybody.
    Broadcast,
    /// Of another protocol than IP (ARP's number).
    NotIp,
    /// With the tags of VLANs inside, which stand before IP's EtherType.
    Tagged(&'static [Tag]),
}

/// Whose tag it is (its EtherType), and what it says: 12 bits of the VLAN below 3 of the priority
/// (IEEE 802.1Q).
pub type Tag = (u16, u16);

impl Frame {
    /// True where an IP header follows the Ethernet header.
    pub fn is_ip(self) -> bool {
        matches!(self, Frame::Device | Frame::Broadcast)
    }
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
        frame: Frame::Device,
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

    /// With another sequence number.
    pub fn seq(mut self, number: u32) -> Self {
        if let Body::Tcp { seq, .. } = &mut self.body {
            *seq = number;
        }
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
}
