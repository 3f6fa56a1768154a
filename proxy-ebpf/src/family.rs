//! What differs between IPv4 and IPv6.

use proxy_common::{Addr4, Addr6, Address, Be16, Config, FamilyConfig, Interface, protocol};

/// An address family; code is generic over it and never written twice.
pub trait Family: Copy + 'static {
    /// Its addresses.
    type Addr: Address;
    /// EtherType (RFC 7042).
    const ETHERTYPE: Be16;
    /// Value of the version field.
    const VERSION: u8;
    /// Length of the fixed header, in bytes.
    const HEADER_LEN: usize;
    /// Protocol number of its ICMP.
    const ICMP: u8;

    /// Its part of the configuration.
    fn config(config: &Config) -> &FamilyConfig<Self::Addr>;
    /// The address that masquerading uses on `interface`, or unspecified (S-095).
    fn masquerade_address(interface: &Interface) -> Self::Addr;
}

/// IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct V6;

impl Family for V4 {
    type Addr = Addr4;
    const ETHERTYPE: Be16 = Be16::new(0x0800);
    const VERSION: u8 = 4;
    const HEADER_LEN: usize = 20;
    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn config(config: &Config) -> &FamilyConfig<Addr4> {
        &config.v4
    }

    #[inline(always)]
    fn masquerade_address(interface: &Interface) -> Addr4 {
        interface.addr4
    }
}

impl Family for V6 {
    type Addr = Addr6;
    const ETHERTYPE: Be16 = Be16::new(0x86dd);
    const VERSION: u8 = 6;
    const HEADER_LEN: usize = 40;
    const ICMP: u8 = protocol::ICMPV6;

    #[inline(always)]
    fn config(config: &Config) -> &FamilyConfig<Addr6> {
        &config.v6
    }

    #[inline(always)]
    fn masquerade_address(interface: &Interface) -> Addr6 {
        interface.addr6
    }
}
