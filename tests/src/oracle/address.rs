//! Addresses and CIDRs as text (S-012).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Family;

/// An address; `None` for what is none.
pub fn parse(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_v4(text).map(IpAddr::V4);
    }
    let addr: Ipv6Addr = text.parse().ok()?;
    // S-012: an IPv4-mapped IPv6 address counts as IPv4.
    Some(match addr.to_ipv4_mapped() {
        Some(mapped) => IpAddr::V4(mapped),
        None => IpAddr::V6(addr),
    })
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = Vec::new();
    for part in text.split('.') {
        octets.push(decimal(part, 255)? as u8);
    }
    let octets: [u8; 4] = octets.try_into().ok()?;
    Some(octets.into())
}

/// S-012: leading zeros are read as decimal.
fn decimal(text: &str, max: u32) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let digits = text.trim_start_matches('0');
    if !is_number || digits.len() > 3 {
        return None;
    }
    let value = if digits.is_empty() {
        0
    } else {
        digits.parse().ok()?
    };
    (value <= max).then_some(value)
}

/// A network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    addr: IpAddr,
    /// Prefix length in bits.
    pub len: u32,
}

impl Cidr {
    /// A CIDR; `None` for what is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (addr, len) = text.split_once('/')?;
        let addr = parse(addr)?;
        let max = if addr.is_ipv4() { 32 } else { 128 };
        let len = decimal(len, max)?;
        Some(Self { addr, len })
    }

    /// A network of given parts.
    pub fn new(addr: IpAddr, len: u32) -> Self {
        Self { addr, len }
    }

    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.addr)
    }

    /// True if the first `len` bits of both are equal.
    pub fn contains(&self, addr: IpAddr) -> bool {
        Family::of(addr) == self.family() && bits(addr)[..self.len as usize] == *self.network()
    }

    fn network(&self) -> Vec<bool> {
        bits(self.addr)[..self.len as usize].to_vec()
    }
}

fn bits(addr: IpAddr) -> Vec<bool> {
    let octets = match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    let bits = octets
        .iter()
        .flat_map(|octet| (0..8).map(move |bit| octet & 0x80 >> bit != 0));
    bits.collect()
}
