//! Addresses and numbers in network byte order.

use bytemuck::{Pod, Zeroable};

/// A 16-bit number in network byte order (a port, a checksum).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Pod, Zeroable)]
pub struct Be16(pub u16);

impl Be16 {
    /// From host byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// In host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// A 32-bit number in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Pod, Zeroable)]
pub struct Be32(pub u32);

impl Be32 {
    /// From host byte order.
    #[inline(always)]
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }

    /// In host byte order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }
}

/// An IPv4 address as it stands in a packet.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Pod, Zeroable)]
pub struct Addr4(pub Be32);

/// An IPv6 address as it stands in a packet.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Pod, Zeroable)]
pub struct Addr6(pub [Be32; 4]);

/// An address of either family: what map types are generic over.
pub trait Address: Pod + Eq + Ord + core::hash::Hash + core::fmt::Debug + Default {
    /// Length in bits.
    const BITS: u32;
    /// Fills a `Frontend` up to a multiple of eight bytes.
    type FrontendPad: Pod + Eq + core::fmt::Debug + Default;
    /// The unspecified address: stands for "any node address" in a NodePort frontend's key.
    const UNSPECIFIED: Self;

    /// The address as 32-bit words in network byte order; unused words are zero.
    fn words(&self) -> [Be32; 4];

    /// True if `self` lies in `network`/`mask`.
    fn is_in(&self, network: &Self, mask: &Self) -> bool;

    /// True for an IPv4 or IPv6 multicast or IPv4 broadcast address: never answered (S-104).
    fn is_multicast(&self) -> bool;

    /// True for loopback (127.0.0.0/8, ::1).
    fn is_loopback(&self) -> bool;
}

impl Address for Addr4 {
    type FrontendPad = [u32; 0];
    const BITS: u32 = 32;
    const UNSPECIFIED: Self = Self(Be32(0));

    #[inline(always)]
    fn words(&self) -> [Be32; 4] {
        [self.0, Be32(0), Be32(0), Be32(0)]
    }

    #[inline(always)]
    fn is_in(&self, network: &Self, mask: &Self) -> bool {
        self.0.0 & mask.0.0 == network.0.0
    }

    #[inline(always)]
    fn is_multicast(&self) -> bool {
        let host = self.0.get();
        host >> 28 == 0xe || host == u32::MAX
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.0.get() >> 24 == 127
    }
}

impl Address for Addr6 {
    type FrontendPad = [u32; 1];
    const BITS: u32 = 128;
    const UNSPECIFIED: Self = Self([Be32(0); 4]);

    #[inline(always)]
    fn words(&self) -> [Be32; 4] {
        self.0
    }

    #[inline(always)]
    fn is_in(&self, network: &Self, mask: &Self) -> bool {
        (self.0[0].0 & mask.0[0].0 == network.0[0].0)
            & (self.0[1].0 & mask.0[1].0 == network.0[1].0)
            & (self.0[2].0 & mask.0[2].0 == network.0[2].0)
            & (self.0[3].0 & mask.0[3].0 == network.0[3].0)
    }

    #[inline(always)]
    fn is_multicast(&self) -> bool {
        self.0[0].get() >> 24 == 0xff
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.0[0].0 == 0 && self.0[1].0 == 0 && self.0[2].0 == 0 && self.0[3].get() == 1
    }
}

impl Addr4 {
    /// From the four bytes of the dotted form.
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self(Be32(u32::from_ne_bytes(octets)))
    }

    /// The four bytes of the dotted form.
    pub const fn octets(self) -> [u8; 4] {
        self.0.0.to_ne_bytes()
    }
}

impl Addr6 {
    /// From sixteen bytes in network order.
    pub fn from_octets(octets: [u8; 16]) -> Self {
        bytemuck::cast(octets)
    }

    /// Sixteen bytes in network order.
    pub fn octets(self) -> [u8; 16] {
        bytemuck::cast(self)
    }
}

impl From<core::net::Ipv4Addr> for Addr4 {
    fn from(ip: core::net::Ipv4Addr) -> Self {
        Self::from_octets(ip.octets())
    }
}

impl From<core::net::Ipv6Addr> for Addr6 {
    fn from(ip: core::net::Ipv6Addr) -> Self {
        Self::from_octets(ip.octets())
    }
}

impl From<Addr4> for core::net::IpAddr {
    fn from(addr: Addr4) -> Self {
        core::net::Ipv4Addr::from(addr.octets()).into()
    }
}

impl From<Addr6> for core::net::IpAddr {
    fn from(addr: Addr6) -> Self {
        core::net::Ipv6Addr::from(addr.octets()).into()
    }
}
