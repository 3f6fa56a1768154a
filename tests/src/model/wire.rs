//! Packets of the model: built with right checksums from addresses, and read again.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};

use crate::cases::build::{internet_checksum, sctp_packet, transport_checksum};
use crate::cases::packets::L3;
use crate::model::plan::Tcp;
use crate::oracle::Protocol;

/// TTL that senders use.
pub const TTL: u8 = 64;
/// Payload of every packet but SYNs.
const PAYLOAD: &[u8] = b"some payload";

/// A packet as it is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spec {
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Flags of a TCP segment.
    pub tcp: Tcp,
    /// Whether a SYN carries ACK.
    pub is_reply: bool,
    /// TTL.
    pub ttl: u8,
}

/// What is read of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Source; port 0 where there is none.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Offset of the transport header.
    pub l4: usize,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl Spec {
    /// With its Ethernet header.
    pub fn bytes(&self) -> Vec<u8> {
        let is_v4 = self.src.is_ipv4();
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let number = self.number();
        let (src, dst) = (octets(self.src.ip()), octets(self.dst.ip()));
        let transport = self.transport(&src, &dst);
        if is_v4 {
            bytes.extend([0x08, 0x00]);
            let addresses = (array(&src), array(&dst));
            let len = transport.len() as u16;
            let ip = etherparse::IpNumber(number);
            let mut header = Ipv4Header::new(len, self.ttl, ip, addresses.0, addresses.1)
                .expect("a short packet");
            header.identification = 0x4711;
            header.header_checksum = header.calc_header_checksum();
            bytes.extend(&header.to_bytes()[..]);
        } else {
            bytes.extend([0x86, 0xdd]);
            let header = Ipv6Header {
                payload_length: transport.len() as u16,
                next_header: etherparse::IpNumber(number),
                hop_limit: self.ttl,
                source: array(&src),
                destination: array(&dst),
                ..Ipv6Header::default()
            };
            bytes.extend(header.to_bytes());
        }
        bytes.extend(transport);
        bytes
    }

    /// The IP protocol number.
    pub fn number(&self) -> u8 {
        match self.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
            Protocol::Echo if self.src.is_ipv4() => 1,
            Protocol::Echo => 58,
        }
    }

    fn transport(&self, src: &[u8], dst: &[u8]) -> Vec<u8> {
        let (sport, dport) = (self.src.port(), self.dst.port());
        let sum = |bytes: &[u8]| transport_checksum(src, dst, self.number(), bytes);
        match self.protocol {
            Protocol::Tcp => {
                let mut header = TcpHeader::new(sport, dport, 0x1234_5678, 64_240);
                header.syn = self.tcp == Tcp::Syn;
                header.fin = self.tcp == Tcp::Fin;
                header.rst = self.tcp == Tcp::Rst;
                header.ack = self.tcp != Tcp::Syn || self.is_reply;
                header.acknowledgment_number = if header.ack { 0x0bad_cafe } else { 0 };
                let payload = if header.syn { &[][..] } else { PAYLOAD };
                header.checksum = sum(&[&header.to_bytes()[..], payload].concat());
                [&header.to_bytes()[..], payload].concat()
            }
            Protocol::Udp => {
                let mut header = UdpHeader {
                    source_port: sport,
                    destination_port: dport,
                    length: (8 + PAYLOAD.len()) as u16,
                    checksum: 0,
                };
                let checksum = sum(&[&header.to_bytes()[..], PAYLOAD].concat());
                header.checksum = if checksum == 0 { 0xffff } else { checksum };
                [&header.to_bytes()[..], PAYLOAD].concat()
            }
            Protocol::Sctp => sctp_packet([sport, dport], PAYLOAD),
            Protocol::Echo => {
                let kind = if self.src.is_ipv4() { 8 } else { 128 };
                let mut bytes = [&[kind, 0, 0, 0, 0, 7, 0, 1], PAYLOAD].concat();
                let checksum = if self.src.is_ipv4() {
                    internet_checksum(&bytes)
                } else {
                    sum(&bytes)
                };
                bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
                bytes
            }
        }
    }

    /// True if `bytes` are this packet, whatever its MAC addresses.
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.bytes()[L3..] == bytes[L3..]
    }
}

/// Reads a packet that the model built, or an answer to one.
pub fn ends(bytes: &[u8]) -> Ends {
    let ip = &bytes[L3..];
    let is_v4 = ip[0] >> 4 == 4;
    let (src, dst, protocol, header_len, ttl) = if is_v4 {
        (address(&ip[12..16]), address(&ip[16..20]), ip[9], 20, ip[8])
    } else {
        (address(&ip[8..24]), address(&ip[24..40]), ip[6], 40, ip[7])
    };
    let l4 = L3 + header_len;
    let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (sport, dport) = match protocol {
        6 | 17 | 132 => (half(l4), half(l4 + 2)),
        _ => (0, 0),
    };
    Ends {
        src: SocketAddr::new(src, sport),
        dst: SocketAddr::new(dst, dport),
        protocol,
        l4,
        ttl,
    }
}

/// What is wrong with an answer to `asked`, in words (S-104).
pub fn wrong_answer(asked: &Spec, bytes: &[u8]) -> Option<String> {
    let found = ends(bytes);
    if found.dst.ip() != asked.src.ip() {
        return Some(format!("the answer goes to {}", found.dst));
    }
    if asked.protocol == Protocol::Tcp {
        let flags = bytes[found.l4 + 13];
        let is_reset = found.protocol == 6 && flags & 0x04 != 0;
        let is_right = found.src == asked.dst && found.dst == asked.src;
        return (!is_reset || !is_right).then(|| format!("no reset: {found:?}, flags {flags:#x}"));
    }
    let expected = if asked.src.is_ipv4() { [3, 3] } else { [1, 4] };
    let is_icmp = matches!(found.protocol, 1 | 58) && bytes[found.l4..found.l4 + 2] == expected;
    // The quoted packet begins behind eight bytes of ICMP; only its addresses are compared.
    let mut quoted = bytes[..L3].to_vec();
    quoted.extend(&bytes[found.l4 + 8..]);
    quoted.resize(quoted.len() + 60, 0);
    let quoted = ends(&quoted);
    let is_right = quoted.src.ip() == asked.src.ip() && quoted.dst.ip() == asked.dst.ip();
    (!is_icmp || !is_right).then(|| format!("no port unreachable: {found:?} about {quoted:?}"))
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(octets) => octets.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).expect("an address").into(),
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("octets of the family")
}
