//! FRONTEND_IDS{4,6}, FRONTENDS{4,6} and SLOTS: what clients dial, and its backends.
//!
//! A change never touches a hash that programs read: userspace writes backends and a region of
//! SLOTS with plain stores, then publishes with one aligned 8-byte release store of the
//! frontend's [`Word`]. Everything that a decision needs lies in the region, which is immutable
//! while published, so a reader sees the old state or the new one (S-216).

use crate::{Address, Be16, pod};

/// Key of FRONTEND_IDS (hash, value: FrontendId as `u32`): what a client dials.
///
/// A NodePort has the unspecified address: it is looked up when the destination is an accepted
/// node address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendKey<A: Address> {
    /// Destination address, or unspecified for a NodePort.
    pub addr: A,
    /// Destination port.
    pub port: Be16,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}
pod!(FrontendKey<A>, 8, 20);

/// Value of FRONTENDS, an mmapable array by FrontendId. Id 0 is never used.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend<A: Address> {
    /// The published [`Word`]; 0 when nothing is published.
    pub word: u64,
    /// The frontend's own key, compared by readers after the lookup of the id.
    pub key: FrontendKey<A>,
    /// Zero: fills the value up to a multiple of eight (nothing in IPv4, four bytes in IPv6).
    pub pad: A::FrontendPad,
}
pod!(Frontend<A>, 16, 32);

/// Where a frontend's region starts, and which publication this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word {
    /// Index of the region's first element in SLOTS. 0 is never a region.
    pub region: u32,
    /// Counts publications of this frontend; never 0 in a published word.
    pub generation: u32,
}

impl Word {
    /// As stored.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.generation as u64) << 32 | self.region as u64
    }

    /// From the stored form.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            region: word as u32,
            generation: (word >> 32) as u32,
        }
    }
}

/// First element of a region: counts and everything that decides.
///
/// Layout of a region in SLOTS (8-byte elements): header, [`RegionTail`], then the Cluster part
/// and the Local part, two BackendIds an element (low half first); each part starts at an element.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegionHeader {
    /// Backends of the Cluster set (S-061, S-062); below 2^20.
    pub cluster_count: u32,
    /// Backends of the Local set (S-065); below 2^20.
    pub local_count: u32,
    /// [`region_flags`](self::flags), 16 bits.
    pub flags: u16,
    /// A [`FrontendKind`] as number, 4 bits.
    pub kind: u8,
}

/// Most backends in one part of a region.
pub const PART_COUNT_MAX: u32 = (1 << 20) - 1;

impl RegionHeader {
    /// As stored.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.cluster_count & PART_COUNT_MAX) as u64
            | ((self.local_count & PART_COUNT_MAX) as u64) << 20
            | (self.flags as u64) << 40
            | ((self.kind & 0xf) as u64) << 56
    }

    /// From the stored form.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            cluster_count: word as u32 & PART_COUNT_MAX,
            local_count: (word >> 20) as u32 & PART_COUNT_MAX,
            flags: (word >> 40) as u16,
            kind: (word >> 56) as u8 & 0xf,
        }
    }

    /// Elements of SLOTS that a region with these counts takes.
    #[inline(always)]
    pub const fn region_len(&self) -> u32 {
        self.local_start() + self.local_count.div_ceil(2)
    }

    /// Offset of the Local part from the region's start, in elements.
    #[inline(always)]
    pub const fn local_start(&self) -> u32 {
        CLUSTER_START + self.cluster_count.div_ceil(2)
    }
}

/// Offset of the Cluster part from the region's start, in elements.
pub const CLUSTER_START: u32 = 2;

/// Second element of a region: session affinity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegionTail {
    /// The service port: with the client's address the affinity key (S-101).
    pub service_port: u32,
    /// Affinity timeout in seconds; 0: no affinity (S-102).
    pub affinity_timeout_secs: u32,
}

impl RegionTail {
    /// As stored.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.affinity_timeout_secs as u64) << 32 | self.service_port as u64
    }

    /// From the stored form.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            service_port: word as u32,
            affinity_timeout_secs: (word >> 32) as u32,
        }
    }
}

/// Bits of [`RegionHeader::flags`].
pub mod flags {
    /// The traffic policy that applies to this frontend is Local: internal for a ClusterIP
    /// (S-026), external for the others (S-027).
    pub const LOCAL_POLICY: u16 = 1 << 0;
    /// `hasEndpoints` of S-067: an empty set means DROP, not REJECT.
    pub const HAS_ENDPOINTS: u16 = 1 << 1;
    /// SOURCE_RANGES must allow the source (S-112).
    pub const SOURCE_RANGES: u16 = 1 << 2;
    /// A source range contains this node's primary address (S-114).
    pub const SOURCE_RANGES_NODE: u16 = 1 << 3;
    /// A packet in the middle of a TCP connection that nobody remembers starts a flow: the region
    /// is a lookup table, so the backend is the one that the connection had.
    pub const ADOPTS: u16 = 1 << 4;
}

/// Which kind of address a frontend is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp = 1,
    /// A node address and `nodePort`.
    NodePort = 2,
    /// `spec.externalIPs`.
    ExternalIp = 3,
    /// `status.loadBalancer.ingress`.
    LoadBalancer = 4,
}

impl FrontendKind {
    /// From the stored number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::ClusterIp,
            2 => Self::NodePort,
            3 => Self::ExternalIp,
            4 => Self::LoadBalancer,
            _ => return None,
        })
    }
}
