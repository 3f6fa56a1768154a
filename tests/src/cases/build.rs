//! From a [`PacketSpec`] to bytes, and checksums computed the plain way.

use etherparse::{Ethernet2Header, Ipv4Header, Ipv4Options, Ipv6Header, TcpHeader, UdpHeader};
use proxy_common::protocol;

use super::packets::*;
use super::world::{At, CaseFamily};

/// MAC of the device that packets arrive at.
const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC of whoever sends them.
const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Where the Ethernet header has its EtherType.
const ETHERTYPE: usize = 12;

impl PacketSpec {
    /// The protocol number.
    pub(super) fn protocol<F: CaseFamily>(&self) -> u8 {
        match &self.body {
            Body::Tcp { .. } => protocol::TCP,
            Body::Udp | Body::UdpChecksum(_) => protocol::UDP,
            Body::Sctp | Body::SctpUnfinished => protocol::SCTP,
            Body::Error { .. } | Body::Echo => F::ICMP,
            Body::Raw(protocol) => *protocol,
        }
    }

    /// The packet with its Ethernet header.
    pub fn bytes<F: CaseFamily>(&self) -> Vec<u8> {
        let (destination, source) = match (self.is_answer, self.frame) {
            (true, _) => (THERE, HERE),
            (false, Frame::Broadcast) => ([0xff; 6], THERE),
            (false, Frame::Device | Frame::NotIp | Frame::Tagged(_)) => (HERE, THERE),
        };
        let ether_type = match self.frame {
            Frame::NotIp => etherparse::EtherType::ARP,
            _ => etherparse::EtherType(F::ETHERTYPE.get()),
        };
        let tags: &[Tag] = match self.frame {
            Frame::Tagged(tags) => tags,
            _ => &[],
        };
        let header = Ethernet2Header {
            source,
            destination,
            ether_type,
        };
        let header = header.to_bytes();
        let (addresses, ether_type) = header.split_at(ETHERTYPE);
        let mut bytes = addresses.to_vec();
        for (kind, control) in tags {
            bytes.extend([kind.to_be_bytes(), control.to_be_bytes()].concat());
        }
        bytes.extend(ether_type);
        bytes.extend(self.datagram::<F>());
        bytes.resize(bytes.len() + self.padding, 0);
        bytes
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
            Body::Sctp => sctp_packet([self.src.1, self.dst.1], &self.payload),
            Body::SctpUnfinished => {
                let mut bytes = sctp_packet([self.src.1, self.dst.1], &self.payload);
                bytes[SCTP_CHECKSUM].fill(0);
                bytes
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
            (4, IcmpKind::ParameterProblem) => ([12, 0], 0),
            (_, IcmpKind::Refused) => ([1, 4], 0),
            (_, IcmpKind::TimeExceeded) => ([3, 0], 0),
            (_, IcmpKind::TooBig(mtu)) => ([2, 0], mtu),
            (_, IcmpKind::ParameterProblem) => ([4, 0], 0),
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

/// Where SCTP has its checksum, from the beginning of its header (RFC 9260, section 3.1).
const SCTP_CHECKSUM: std::ops::Range<usize> = 8..12;

/// An SCTP packet with these ports and any verification tag; its CRC32c is computed over all of it.
pub fn sctp_packet([sport, dport]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let ports = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    let mut bytes = [&ports[..], &[0, 0, 0, 9, 0, 0, 0, 0], payload].concat();
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&bytes);
    bytes[SCTP_CHECKSUM].copy_from_slice(&crc.to_le_bytes());
    bytes
}
