//! Values that users write as text: durations, port ranges, listening addresses, CIDR lists.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::ip_text::parse_cidr;

/// Reads a duration as Go writes it: `1h30m`, `1.5s`, `0`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration (like 30s, 1m30s, 24h)");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|it: char| !it.is_ascii_digit() && it != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|it: char| it.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() {
        Err(wrong())
    } else {
        Ok(total)
    }
}

/// Reads one or two port ranges. One is split, since the datapath has two.
pub fn port_ranges(texts: &[String]) -> Result<[[u16; 2]; 2], String> {
    let ranges = texts
        .iter()
        .map(|text| port_range(text))
        .collect::<Result<Vec<_>, _>>()?;
    match ranges[..] {
        [[first, last]] if first < last => {
            let middle = first + (last - first) / 2;
            Ok([[first, middle], [middle + 1, last]])
        }
        [a, b] if a[1] < b[0] || b[1] < a[0] => Ok([a, b]),
        [_, _] => Err("the two ranges overlap".to_owned()),
        _ => Err("one range of several ports, or two ranges, are needed".to_owned()),
    }
}

fn port_range(text: &str) -> Result<[u16; 2], String> {
    let bounds = text
        .split_once('-')
        .and_then(|(first, last)| Some([first.trim().parse().ok()?, last.trim().parse().ok()?]));
    match bounds {
        Some([first, last]) if 1024 <= first && first <= last => Ok([first, last]),
        Some([_, _]) => Err(format!(
            "{text:?}: ports from 1024 on, the smaller one first"
        )),
        None => Err(format!("{text:?} is no port range (like 10000-29999)")),
    }
}

/// Reads where to listen: an address with or without a port; nothing, or port 0, means nowhere.
pub fn listen(text: &str, default_port: u16) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let ip = text
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    let addr = match (text.parse::<SocketAddr>(), ip) {
        (Ok(addr), _) => addr,
        (Err(_), Ok(ip)) => SocketAddr::new(ip, default_port),
        (Err(_), Err(_)) => return Err(format!("{text:?} is no address with a port")),
    };
    Ok((addr.port() != 0).then_some(addr))
}

/// Reads pod CIDRs: at most one of each family.
pub fn cluster_cidrs(texts: &[String]) -> Result<Vec<IpNet>, String> {
    let mut cidrs: Vec<IpNet> = Vec::new();
    for text in texts
        .iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
    {
        let cidr = parse_cidr(text).ok_or_else(|| format!("{text:?} is no CIDR"))?;
        if cidrs
            .iter()
            .any(|known| known.addr().is_ipv4() == cidr.addr().is_ipv4())
        {
            return Err(format!("{text}: a second CIDR of this family"));
        }
        cidrs.push(cidr);
    }
    Ok(cidrs)
}
