//! HANDSHAKES{4,6}, FLOWS{4,6}, AFFINITY{4,6}, FRAGMENTS{4,6}: what BPF remembers of packets.
//!
//! BPF is the only writer; userspace deletes, and copies old maps to new ones with NOEXIST.

use bytemuck::{Pod, Zeroable};

use crate::{Address, Be16, pod};

/// Addresses and ports of a packet, in the order in which they stand in it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tuple<A: Address> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
}
pod!(Tuple<A>, 12, 36);

impl<A: Address> Tuple<A> {
    /// The same connection as its answers show it.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
        }
    }
}

/// Key of HANDSHAKES and FLOWS: the full 5-tuple as seen on the packet. It holds no interface.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey<A: Address> {
    /// Addresses and ports.
    pub tuple: Tuple<A>,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}
pod!(FlowKey<A>, 16, 40);

impl<A: Address> FlowKey<A> {
    /// The key of packets of `protocol` with this tuple.
    #[inline(always)]
    pub fn new(tuple: Tuple<A>, protocol: u8) -> Self {
        Self {
            tuple,
            protocol,
            pad: [0; 3],
        }
    }

    /// A 32-bit tag of this key: stored in the value and checked by the reader, because an LRU
    /// element may be reused for another key while a program reads it.
    #[inline(always)]
    pub fn tag(&self) -> u32 {
        let src = self.tuple.src.words();
        let dst = self.tuple.dst.words();
        let ports = (self.tuple.sport.0 as u32) << 16 | self.tuple.dport.0 as u32;
        let mut hash = 0x9e37_79b9_u32 ^ self.protocol as u32;
        hash = mix(hash, src[0].0);
        hash = mix(hash, dst[0].0);
        if A::BITS > 32 {
            hash = mix(hash, src[1].0 ^ src[2].0.rotate_left(7));
            hash = mix(hash, src[3].0);
            hash = mix(hash, dst[1].0 ^ dst[2].0.rotate_left(7));
            hash = mix(hash, dst[3].0);
        }
        mix(hash, ports)
    }
}

/// One step of a multiplicative hash (Knuth; the constant is MurmurHash3's c1).
#[inline(always)]
pub(crate) fn mix(hash: u32, word: u32) -> u32 {
    let mixed = (hash ^ word).wrapping_mul(0xcc9e_2d51);
    mixed ^ mixed >> 15
}

/// What happens to packets of one direction, and where.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Path {
    /// A [`path`] constant.
    pub kind: u8,
    /// Bits of [`path_flags`].
    pub flags: u8,
    /// MTU of the interface that `kind` redirects to, in bytes (L3).
    pub mtu: u16,
    /// The interface that `kind` redirects to.
    pub ifindex: u32,
}

/// Bits of [`Path::flags`].
pub mod path_flags {
    /// The interface takes larger packets too, if they may be fragmented
    /// ([`TAKES_LARGER`](crate::interface::flags::TAKES_LARGER)).
    pub const TAKES_LARGER: u8 = 1 << 0;
    /// The interface takes frames from XDP ([`XDP`](crate::interface::flags::XDP)).
    pub const XDP: u8 = 1 << 1;
}

/// The next hop on a redirected way, for frames that XDP sends: what the neighbour table said.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct NextHop {
    /// MAC address of the neighbour.
    pub dst: [u8; 6],
    /// MAC address of the interface.
    pub src: [u8; 6],
}

impl NextHop {
    /// True if it was found.
    #[inline(always)]
    pub fn is_known(&self) -> bool {
        self.src != [0; 6]
    }
}

/// Values of [`Path::kind`].
pub mod path {
    /// Rewritten at tc ingress; the stack routes it (P-1, P-5).
    pub const INGRESS_STACK: u8 = 0;
    /// Left alone at ingress; rewritten at the tc egress of whichever interface it leaves by (P-1).
    pub const EGRESS_STACK: u8 = 1;
    /// Rewritten at tc ingress and sent out by `bpf_redirect_neigh` (P-2, P-6, P-7).
    pub const INGRESS_NEIGH: u8 = 2;
    /// Rewritten at tc egress and sent out by `bpf_redirect_neigh`: this node's own process (P-8).
    pub const EGRESS_NEIGH: u8 = 3;
    /// Rewritten at tc ingress and put into the ingress of `ifindex`, for a process of this node
    /// whose route to the frontend is that interface (P-8).
    pub const INGRESS_LOCAL: u8 = 4;
}

/// Value of HANDSHAKES and FLOWS: one direction of a connection.
///
/// A connection has two entries. Each holds enough to rebuild the other: the other's key is
/// `to` reversed, and the other's `to` is this key reversed.
///
/// What every packet reads and writes stands first: in IPv4 its first 32 bytes lie in one line of
/// the cache, with every second element in that of the key.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection<A: Address> {
    /// Addresses and ports of the packet after translation.
    pub to: Tuple<A>,
    /// [`FlowKey::tag`] of the entry's key.
    pub tag: u32,
    /// What this direction has carried since it was last written to BACKEND_COUNTS: a
    /// [`Carried`], packed, so that a packet costs one addition.
    #[cfg(not(feature = "other-abi"))]
    pub carried: u64,
    /// When a packet of this direction was last seen, in seconds of the jiffies clock.
    pub last_seen_secs: u32,
    /// [`connection_flags`](self::flags).
    pub flags: u16,
    /// Bits of [`seen`]: what was seen of the connection, both directions.
    pub seen: u8,
    /// Low bits of [`Config::next_hops`](crate::Config::next_hops) when `next_hop` was found.
    pub next_hops: u8,
    /// What happens to packets of this direction.
    pub path: Path,
    /// Where XDP sends packets of this direction to. The other direction has its own.
    pub next_hop: NextHop,
    /// What the version of the tests knows besides.
    #[cfg(feature = "other-abi")]
    pub made_up: u32,
    /// BackendId.
    pub backend: u32,
    /// The backend's generation at the decision.
    pub generation: u32,
    /// FrontendId.
    pub frontend: u32,
    /// When the connection began, in seconds of the jiffies clock; 0 where that is not known.
    pub began_secs: u32,
    /// What happens to packets of the other direction.
    pub other_path: Path,
    /// Zero.
    #[cfg(not(feature = "other-abi"))]
    pub pad_end: u32,
    /// As in the other version.
    #[cfg(feature = "other-abi")]
    pub carried: u64,
    /// Packets before that.
    pub packets: u64,
    /// Bytes before that, from the IP header on.
    pub bytes: u64,
}
pod!(Connection<A>, 96, 120);

/// Packets and bytes of one direction of a connection. A packet is what a hook sees: several
/// segments of one connection that the kernel has put together (GRO, GSO) are one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Carried {
    /// Packets, below 2^24.
    pub packets: u64,
    /// Bytes from the IP header on, below 2^40.
    pub bytes: u64,
}

impl Carried {
    const BYTES_BITS: u32 = 40;

    /// One packet of this length.
    #[inline(always)]
    pub const fn one(bytes: u32) -> Self {
        Self {
            packets: 1,
            bytes: bytes as u64,
        }
    }

    /// As [`Connection::carried`] holds it. Sums of packed values are those of both numbers.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.packets << Self::BYTES_BITS | self.bytes
    }

    /// The inverse.
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            packets: packed >> Self::BYTES_BITS,
            bytes: packed & ((1 << Self::BYTES_BITS) - 1),
        }
    }
}

/// Bits of [`Connection::flags`].
pub mod flags {
    /// This entry is the Reply direction; else Original (netfilter's words).
    pub const REPLY: u16 = 1 << 0;
    /// The source was rewritten too.
    pub const SNAT: u16 = 1 << 1;
    /// The backend is the client itself (S-094).
    pub const HAIRPIN: u16 = 1 << 2;
    /// Both sides have kept it up: it has been in FLOWS.
    pub const CONFIRMED: u16 = 1 << 3;
}

/// Bits of [`Connection::seen`].
pub mod seen {
    /// The client has sent FIN.
    pub const FIN_ORIGINAL: u8 = 1 << 0;
    /// The backend has sent FIN.
    pub const FIN_REPLY: u8 = 1 << 1;
    /// The client has sent RST.
    pub const RST_ORIGINAL: u8 = 1 << 2;
    /// The backend has sent RST.
    pub const RST_REPLY: u8 = 1 << 3;
    /// The backend has answered.
    pub const ANSWER: u8 = 1 << 4;
}

/// Key of AFFINITY: client address before any SNAT, and service port (S-101).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AffinityKey<A: Address> {
    /// Client address.
    pub client: A,
    /// Service port.
    pub service_port: u32,
}
pod!(AffinityKey<A>, 8, 20);

impl<A: Address> AffinityKey<A> {
    /// A 32-bit hash of this key and `salt`. With the backend's departures it is the entry's tag:
    /// an LRU element may be reused for another key while a program reads it.
    #[inline(always)]
    pub fn hash(&self, salt: u32) -> u32 {
        let client = self.client.words();
        let mut hash = mix(0x9e37_79b9 ^ self.service_port, client[0].0);
        if A::BITS > 32 {
            hash = mix(hash, client[1].0 ^ client[2].0.rotate_left(7));
            hash = mix(hash, client[3].0);
        }
        mix(hash, salt)
    }
}

/// Value of AFFINITY.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct AffinityEntry {
    /// BackendId.
    #[cfg(not(feature = "other-abi"))]
    pub backend: u32,
    /// The backend's generation when it was bound.
    pub generation: u32,
    /// Last new flow, in seconds of the jiffies clock (S-102).
    pub last_used_secs: u32,
    /// [`AffinityKey::hash`] of the entry's key and the backend's departures when it was bound.
    pub tag: u32,
    /// BackendId.
    #[cfg(feature = "other-abi")]
    pub backend: u32,
}

/// Key of FRAGMENTS: the datagram that a fragment belongs to (RFC 791, RFC 8200).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentKey<A: Address> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification, as in the header (IPv4: low 16 bits used).
    pub id: u32,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}
pod!(FragmentKey<A>, 16, 40);

/// Value of FRAGMENTS: the ports of the first fragment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct FragmentPorts {
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
}
