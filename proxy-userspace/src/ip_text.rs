//! Addresses and CIDRs as the API may hold them (S-012): old objects have leading zeros, which are
//! read as decimal, and IPv4-mapped IPv6 counts as IPv4.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// Reads an address, or `None` where the text is none.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let Some((groups, end)) = text.rsplit_once(':') else {
        return parse_v4(text).map(IpAddr::V4);
    };
    // `::ffff:10.96.007.009`: the end of an IPv6 address may be an IPv4 address.
    let addr: IpAddr = match parse_v4(end) {
        Some(end) => format!("{groups}:{end}").parse().ok()?,
        None => text.parse().ok()?,
    };
    Some(addr.to_canonical())
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts.next().is_none().then_some(Ipv4Addr::from(octets))
}

/// Reads a CIDR with its host bits cleared, or `None` where the text is none.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (addr, prefix) = text.split_once('/')?;
    let addr = parse_ip(addr)?;
    Some(IpNet::new(addr, decimal(prefix)?).ok()?.trunc())
}

/// Digits only (no sign), any number of leading zeros.
fn decimal(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let significant = text.trim_start_matches('0');
    match (text.is_empty(), digits, significant.is_empty()) {
        (false, true, true) => Some(0),
        (false, true, false) => significant.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules;

    #[test]
    fn leading_zeros_are_decimal() {
        rules(&["S-012"]);
        assert_eq!(parse_ip("10.96.007.009"), parse_ip("10.96.7.9"));
        assert_eq!(parse_cidr("010.0.0.1/024"), parse_cidr("10.0.0.0/24"));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        rules(&["S-012"]);
        assert_eq!(parse_ip("::ffff:10.96.007.009"), parse_ip("10.96.7.9"));
        assert_eq!(parse_ip("::ffff:10.0.0.1"), parse_ip("10.0.0.1"));
    }

    #[test]
    fn other_texts_are_no_addresses() {
        rules(&["S-012"]);
        for text in [
            "",
            " ",
            "bogus",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "+1.2.3.4",
            "1.2.3.",
            "::g",
        ] {
            assert_eq!(parse_ip(text), None, "{text}");
        }
        for text in [
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/",
            "/8",
            "fd00::/129",
            "10.0.0.0/-1",
        ] {
            assert_eq!(parse_cidr(text), None, "{text}");
        }
    }
}
