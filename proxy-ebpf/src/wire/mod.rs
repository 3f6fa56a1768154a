//! Where things are in headers, and checksums. Offsets are named here and nowhere else.

pub mod checksum;
pub mod crc32c;

/// Ethernet (IEEE 802.3).
pub mod ethernet {
    /// Destination MAC.
    pub const DST: usize = 0;
    /// Source MAC.
    pub const SRC: usize = 6;
    /// EtherType.
    pub const ETHERTYPE: usize = 12;
    /// Header length.
    pub const LEN: usize = 14;
    /// In the first byte of a MAC: it is that of a group, multicast or broadcast.
    pub const GROUP_BIT: u8 = 1;
}

/// IPv4 (RFC 791).
pub mod ipv4 {
    /// Version and header length in words.
    pub const VERSION_IHL: usize = 0;
    /// Total length.
    pub const TOTAL_LEN: usize = 2;
    /// Identification.
    pub const ID: usize = 4;
    /// Flags and fragment offset.
    pub const FRAGMENT: usize = 6;
    /// Time to live.
    pub const TTL: usize = 8;
    /// Protocol.
    pub const PROTOCOL: usize = 9;
    /// Header checksum.
    pub const CHECKSUM: usize = 10;
    /// Source address.
    pub const SRC: usize = 12;
    /// Destination address.
    pub const DST: usize = 16;
    /// Length without options.
    pub const LEN: usize = 20;
    /// Routers may not fragment it.
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// More fragments.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// Mask of the fragment offset.
    pub const OFFSET_MASK: u16 = 0x1fff;
}

/// IPv6 (RFC 8200).
pub mod ipv6 {
    /// Payload length.
    pub const PAYLOAD_LEN: usize = 4;
    /// Next header.
    pub const NEXT_HEADER: usize = 6;
    /// Hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Source address.
    pub const SRC: usize = 8;
    /// Destination address.
    pub const DST: usize = 24;
    /// Length of the fixed header.
    pub const LEN: usize = 40;
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing header.
    pub const ROUTING: u8 = 43;
    /// Fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
    /// Length of the fragment header.
    pub const FRAGMENT_LEN: usize = 8;
}

/// TCP (RFC 9293).
pub mod tcp {
    /// Sequence number.
    pub const SEQUENCE: usize = 4;
    /// Acknowledgment number.
    pub const ACKNOWLEDGMENT: usize = 8;
    /// Data offset (high nibble).
    pub const DATA_OFFSET: usize = 12;
    /// Flags.
    pub const FLAGS: usize = 13;
    /// Checksum.
    pub const CHECKSUM: usize = 16;
    /// Length without options.
    pub const LEN: usize = 20;
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// SCTP (RFC 9260).
pub mod sctp {
    /// CRC32c, little-endian.
    pub const CHECKSUM: usize = 8;
}

/// UDP (RFC 768).
pub mod udp {
    /// Checksum.
    pub const CHECKSUM: usize = 6;
    /// Header length.
    pub const LEN: usize = 8;
}

/// ICMP and ICMPv6 (RFC 792, RFC 4443).
pub mod icmp {
    /// Type.
    pub const TYPE: usize = 0;
    /// Checksum.
    pub const CHECKSUM: usize = 2;
    /// Header length; an error quotes the packet behind it.
    pub const LEN: usize = 8;
    /// IPv4: destination unreachable.
    pub const UNREACHABLE4: u8 = 3;
    /// IPv4: code of destination unreachable.
    pub const PORT_UNREACHABLE4: u8 = 3;
    /// IPv4: code of destination unreachable (RFC 1191).
    pub const FRAGMENTATION_NEEDED4: u8 = 4;
    /// IPv4: time exceeded.
    pub const TIME_EXCEEDED4: u8 = 11;
    /// IPv4: parameter problem.
    pub const PARAMETER_PROBLEM4: u8 = 12;
    /// IPv6: destination unreachable.
    pub const UNREACHABLE6: u8 = 1;
    /// IPv6: code of destination unreachable.
    pub const PORT_UNREACHABLE6: u8 = 4;
    /// IPv6: packet too big.
    pub const TOO_BIG6: u8 = 2;
    /// IPv6: time exceeded.
    pub const TIME_EXCEEDED6: u8 = 3;
    /// IPv6: the last error type is parameter problem.
    pub const PARAMETER_PROBLEM6: u8 = 4;
}
