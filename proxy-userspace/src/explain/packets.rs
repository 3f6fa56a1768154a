//! A file of packets: a YAML list.

use std::net::IpAddr;

use serde::Deserialize;

use super::{From, Protocol, Query, SOURCE_PORT_DEFAULT};
use crate::ip_text::parse_ip;

/// One entry of the list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Packet {
    src: String,
    #[serde(default)]
    sport: Option<u16>,
    dst: String,
    dport: u16,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    from: Option<From>,
    #[serde(default, alias = "inInterface")]
    in_interface: Option<String>,
}

/// Reads the list, or says which entry is wrong. An empty file is an empty list.
pub fn parse(text: &str) -> Result<Vec<Query>, String> {
    let packets: Option<Vec<Packet>> =
        serde_saphyr::from_str(text).map_err(|error| format!("a list of packets: {error}"))?;
    let packets = packets.unwrap_or_default().into_iter().enumerate();
    packets
        .map(|(index, packet)| {
            query(packet).map_err(|error| format!("packet {}: {error}", index + 1))
        })
        .collect()
}

fn query(packet: Packet) -> Result<Query, String> {
    let query = Query {
        src: address("src", &packet.src)?,
        sport: packet.sport.unwrap_or(SOURCE_PORT_DEFAULT),
        dst: address("dst", &packet.dst)?,
        dport: packet.dport,
        protocol: packet.protocol,
        from: packet.from,
        in_interface: packet.in_interface,
    };
    one_family(&query)?;
    Ok(query)
}

fn address(field: &str, text: &str) -> Result<IpAddr, String> {
    parse_ip(text).ok_or_else(|| format!("{field}: {text:?} is no address"))
}

/// Refuses a packet that cannot be.
pub fn one_family(query: &Query) -> Result<(), String> {
    if query.src.is_ipv4() == query.dst.is_ipv4() {
        return Ok(());
    }
    let (src, dst) = (query.src, query.dst);
    Err(format!("{src} and {dst} are of two families"))
}

/// Reads `SRC` or `SRC:PORT`; an IPv6 address with a port stands in brackets.
pub fn source(text: &str) -> Result<(IpAddr, u16), String> {
    if let Some(addr) = parse_ip(text.trim_start_matches('[').trim_end_matches(']')) {
        return Ok((addr, SOURCE_PORT_DEFAULT));
    }
    destination(text)
}

/// Reads `DST:PORT`; an IPv6 address stands in brackets.
pub fn destination(text: &str) -> Result<(IpAddr, u16), String> {
    let wrong = || format!("{text:?} is no ADDRESS:PORT (an IPv6 address stands in brackets)");
    let (addr, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let inner = addr
        .strip_prefix('[')
        .and_then(|addr| addr.strip_suffix(']'));
    let addr = match inner {
        Some(addr) => parse_ip(addr),
        None => parse_ip(addr).filter(IpAddr::is_ipv4),
    };
    Ok((addr.ok_or_else(wrong)?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_ports_are_read() {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(
            source("10.0.0.1"),
            Ok((addr("10.0.0.1"), SOURCE_PORT_DEFAULT))
        );
        assert_eq!(source("10.0.0.1:7"), Ok((addr("10.0.0.1"), 7)));
        assert_eq!(
            source("fd00::1"),
            Ok((addr("fd00::1"), SOURCE_PORT_DEFAULT))
        );
        assert_eq!(
            source("[fd00::1]"),
            Ok((addr("fd00::1"), SOURCE_PORT_DEFAULT))
        );
        assert_eq!(source("[fd00::1]:7"), Ok((addr("fd00::1"), 7)));
        assert_eq!(destination("[fd00::1]:80"), Ok((addr("fd00::1"), 80)));
        for wrong in [
            "10.0.0.1",
            "fd00::1:80",
            "10.0.0.1:",
            "10.0.0.1:70000",
            "x:80",
        ] {
            assert!(destination(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_packet_is_named_by_its_place() {
        let good = "{src: 10.0.0.1, dst: 10.0.0.2, dport: 80, protocol: udp, from: pod}";
        let queries = parse(&format!("- {good}\n- {good}\n")).unwrap();
        assert_eq!(queries.len(), 2);
        assert_eq!(queries[0].from, Some(From::Pod));
        let wrong = parse(&format!(
            "- {good}\n- {{src: x, dst: 10.0.0.2, dport: 80}}\n"
        ));
        assert!(wrong.unwrap_err().starts_with("packet 2: src"));
        for wrong in [
            "{src: 10.0.0.1}",
            "- {src: 10.0.0.1, dst: 10.0.0.2}",
            "- {src: 10.0.0.1, dst: 10.0.0.2, dport: 80, colour: red}",
            "- {src: 10.0.0.1, dst: 10.0.0.2, dport: 80, protocol: icmp}",
            "- {src: 10.0.0.1, dst: 10.0.0.2, dport: 80, from: space}",
            "- {src: 10.0.0.1, dst: 'fd00::1', dport: 80}",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse(""), Ok(Vec::new()));
    }
}
