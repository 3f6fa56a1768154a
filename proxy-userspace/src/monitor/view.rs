//! Records of EVENTS as people and programs read them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use proxy_common::event::hook;
use proxy_common::{Addr6, Be16, Counter, Event, EventKind};
use serde::{Deserialize, Serialize};

use super::Line;
use crate::agent::names::Names;
use crate::datapath::interface_name;
use crate::family::{IpFamily as _, protocol_name};

/// What a program told of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Occurrence {
    /// When, in UTC (RFC 3339).
    pub time: String,
    /// Name of the counter that counted it.
    pub reason: String,
    /// The same in words.
    pub text: String,
    /// tc-ingress, tc-egress, xdp, connect or sendmsg.
    pub hook: String,
    /// The interface; absent at the socket hooks.
    pub interface: Option<String>,
    /// TCP, UDP, SCTP, or unknown.
    pub protocol: String,
    /// Who dialed; absent at the socket hooks where the socket is not bound.
    pub source: Option<SocketAddr>,
    /// What was dialed.
    pub destination: SocketAddr,
    /// `ns/name:port`; `#ID` where no agent tells names, absent where there is none.
    pub service: Option<String>,
    /// Where it goes.
    pub backend: Option<SocketAddr>,
    /// TCP flags of a packet that ends here.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tcp_flags: Vec<String>,
}

/// What the monotonic clock is in the time of day.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// When the monotonic clock began.
    start: Timestamp,
}

impl Clock {
    /// At this moment.
    pub fn now() -> Self {
        // Never refused for this clock.
        let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |it| {
            i128::from(it.tv_sec()) * 1_000_000_000 + i128::from(it.tv_nsec())
        });
        let uptime = SignedDuration::from_nanos_i128(uptime);
        Self {
            start: Timestamp::now().saturating_sub(uptime).unwrap_or_default(),
        }
    }

    fn text(self, time_ns: u64) -> String {
        let since = SignedDuration::from_nanos_i128(time_ns.into());
        time_text(self.start.saturating_add(since).unwrap_or_default())
    }
}

/// RFC 3339 with microseconds.
pub fn time_text(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// The line for a record; `None` for one that no program of this version writes.
pub fn line(event: &Event, clock: Clock, names: &Names) -> Option<Line> {
    let of_kind = match EventKind::ALL.get(usize::from(event.kind))? {
        EventKind::NewFlow => Line::NewFlow,
        EventKind::Reject => Line::Reject,
        EventKind::Drop => Line::Drop,
    };
    let reason = Counter::from_number(event.reason);
    let destination = address(event.family, event.dst, event.dport);
    let source = address(event.family, event.src, event.sport);
    Some(of_kind(Occurrence {
        time: clock.text(event.time_ns),
        reason: reason.name().to_owned(),
        text: reason.text().to_owned(),
        hook: hook_text(event.hook).to_owned(),
        interface: (event.ifindex != 0).then(|| {
            let index = event.ifindex;
            interface_name(index).unwrap_or_else(|| format!("#{index}"))
        }),
        protocol: protocol_name(event.protocol).to_owned(),
        source: Some(source).filter(|it| !it.ip().is_unspecified()),
        destination,
        service: service(event, destination, names),
        backend: (event.backend != 0).then(|| address(event.family, event.to, event.to_port)),
        tcp_flags: flags(event.tcp_flags),
    }))
}

/// The service port of what was dialed: by its address, or as a NodePort. A connection past every
/// frontend has none.
fn service(event: &Event, dialed: SocketAddr, names: &Names) -> Option<String> {
    if event.kind == EventKind::NewFlow as u8 && event.frontend == 0 {
        return None;
    }
    let any = match dialed.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let keys = [dialed.ip(), any].map(|ip| (ip, dialed.port(), event.protocol));
    keys.iter().find_map(|key| names.get(key)).cloned()
}

fn address(family: u8, addr: Addr6, port: Be16) -> SocketAddr {
    let ip = match family {
        4 => IpAddr::V4(Ipv4Addr::from(addr.0[0].get())),
        _ => addr.to_ip(),
    };
    SocketAddr::new(ip, port.get())
}

fn hook_text(hook: u8) -> &'static str {
    match hook {
        hook::INGRESS => "tc-ingress",
        hook::EGRESS => "tc-egress",
        hook::XDP => "xdp",
        hook::CONNECT => "connect",
        hook::SEND => "sendmsg",
        _ => "unknown",
    }
}

fn flags(bits: u8) -> Vec<String> {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = NAMES.iter().enumerate();
    set.filter(|(bit, _)| bits & 1 << bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use proxy_common::{Be32, protocol};

    use super::*;

    fn ipv4(octets: [u8; 4]) -> Addr6 {
        let mut words = [Be32(0); 4];
        words[0] = Be32::new(u32::from_be_bytes(octets));
        Addr6(words)
    }

    fn event() -> Event {
        Event {
            time_ns: 1_500_000_000,
            src: ipv4([10, 1, 0, 5]),
            dst: ipv4([10, 96, 0, 10]),
            to: ipv4([10, 1, 2, 3]),
            frontend: 7,
            backend: 9,
            reason: Counter::NewFlow as u32,
            sport: Be16::new(41_234),
            dport: Be16::new(80),
            to_port: Be16::new(8080),
            family: 4,
            protocol: protocol::TCP,
            ..Event::zeroed()
        }
    }

    fn names() -> Names {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Names::from([
            (
                ("10.96.0.10".parse().unwrap(), 80, 6),
                "web/a:http".to_owned(),
            ),
            ((any, 30_080, 6), "web/b:http".to_owned()),
        ])
    }

    fn told(event: &Event) -> Occurrence {
        let clock = Clock {
            start: "2026-11-28T12:00:00Z".parse().unwrap(),
        };
        match line(event, clock, &names()).unwrap() {
            Line::NewFlow(it) | Line::Reject(it) | Line::Drop(it) => it,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_flow_is_told_with_its_service_and_backend() {
        let told = told(&event());
        assert_eq!(told.time, "2026-11-28T12:00:01.500000Z");
        assert_eq!(told.source.unwrap().to_string(), "10.1.0.5:41234");
        assert_eq!(told.destination.to_string(), "10.96.0.10:80");
        assert_eq!(told.service.as_deref(), Some("web/a:http"));
        assert_eq!(told.backend.unwrap().to_string(), "10.1.2.3:8080");
        assert_eq!((told.hook.as_str(), told.interface), ("tc-ingress", None));
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let told = told(&Event {
            kind: EventKind::Reject as u8,
            reason: Counter::RejectMidStream as u32,
            src: ipv4([0; 4]),
            dst: ipv4([192, 0, 2, 1]),
            dport: Be16::new(30_080),
            hook: hook::CONNECT,
            frontend: 0,
            backend: 0,
            tcp_flags: 0b1_0100,
            ..event()
        });
        assert_eq!((told.source, told.backend), (None, None));
        assert_eq!(told.service.as_deref(), Some("web/b:http"));
        assert_eq!(told.reason, "RejectMidStream");
        assert_eq!(told.tcp_flags, ["RST", "ACK"]);
    }

    #[test]
    fn a_flow_past_every_frontend_and_an_unknown_kind_are_nobodys() {
        let direct = Event {
            frontend: 0,
            ..event()
        };
        assert_eq!(told(&direct).service, None);
        let unknown = Event { kind: 9, ..event() };
        assert_eq!(line(&unknown, Clock::now(), &names()), None);
    }
}
