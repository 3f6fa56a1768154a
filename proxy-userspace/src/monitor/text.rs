//! Events for people: one line each.

use std::fmt::{self, Display};
use std::net::SocketAddr;

use super::{Line, Occurrence, ServiceChange};

/// Width of the longest type.
const TYPE_WIDTH: usize = "SERVICE-CHANGED".len();
/// Backends that a line names.
const BACKENDS_MAX: usize = 4;

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewFlow(it) => occurrence(f, "NEW-FLOW", it),
            Self::Reject(it) => occurrence(f, "REJECT", it),
            Self::Drop(it) => occurrence(f, "DROP", it),
            Self::ServiceChanged(it) => service_changed(f, it),
            Self::Started => f.write_str("listening"),
            Self::Failed { error } => f.write_str(error),
            Self::Lost { events } => {
                write!(f, "{events} events were lost: nobody took them in time")
            }
        }
    }
}

/// Hours, minutes and seconds of RFC 3339 in UTC.
fn time_of_day(time: &str) -> &str {
    time.split_once('T')
        .map_or(time, |(_, rest)| rest.trim_end_matches('Z'))
}

fn occurrence(f: &mut fmt::Formatter<'_>, kind: &str, it: &Occurrence) -> fmt::Result {
    let time = time_of_day(&it.time);
    let protocol = it.protocol.to_lowercase();
    write!(f, "{time}  {kind:TYPE_WIDTH$}  {protocol:4}  ")?;
    match it.source {
        Some(source) => write!(f, "{source}")?,
        None => f.write_str("a process")?,
    }
    write!(f, " -> {}", it.destination)?;
    if let Some(service) = &it.service {
        write!(f, "  via {service}")?;
    }
    match it.backend {
        Some(backend) => write!(f, "  to {backend}")?,
        None => write!(f, "  {}: {}", it.reason, it.text)?,
    }
    let hook = it.hook.replace('-', " ");
    match &it.interface {
        Some(interface) => write!(f, "  ({hook} {interface}")?,
        None => write!(f, "  ({hook}")?,
    }
    if !it.tcp_flags.is_empty() {
        write!(f, ", {}", it.tcp_flags.join("+"))?;
    }
    f.write_str(")")
}

fn service_changed(f: &mut fmt::Formatter<'_>, it: &ServiceChange) -> fmt::Result {
    let time = time_of_day(&it.time);
    let protocol = it.protocol.to_lowercase();
    let (frontends, backends) = (it.frontends, it.backends);
    write!(
        f,
        "{time}  {:TYPE_WIDTH$}  {protocol:4}  {} {}  frontends {} -> {}  backends {} -> {}",
        "SERVICE-CHANGED",
        it.service,
        it.family,
        frontends.before,
        frontends.after,
        backends.before,
        backends.after
    )?;
    let names = |sign: &'static str, all: &[SocketAddr]| -> Vec<String> {
        all.iter().map(|it| format!("{sign}{it}")).collect()
    };
    let all = [names("+", &it.added), names("-", &it.removed)].concat();
    if all.is_empty() {
        return Ok(());
    }
    let shown = all.iter().take(BACKENDS_MAX).cloned().collect::<Vec<_>>();
    write!(f, "  ({}", shown.join(" "))?;
    match all.len() - shown.len() {
        0 => f.write_str(")"),
        more => write!(f, " and {more} more)"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Count;
    use super::*;

    fn occurrence() -> Occurrence {
        Occurrence {
            time: "2026-11-28T12:00:01.123456Z".to_owned(),
            reason: "NewFlow".to_owned(),
            text: "a new flow was created".to_owned(),
            hook: "tc-ingress".to_owned(),
            interface: Some("veth1".to_owned()),
            protocol: "TCP".to_owned(),
            source: Some("10.1.0.5:41234".parse().unwrap()),
            destination: "10.96.0.10:80".parse().unwrap(),
            service: Some("web/frontend:http".to_owned()),
            backend: Some("10.1.2.3:8080".parse().unwrap()),
            tcp_flags: Vec::new(),
        }
    }

    #[test]
    fn each_event_is_a_line_that_says_all_of_it() {
        assert_eq!(
            Line::NewFlow(occurrence()).to_string(),
            "12:00:01.123456  NEW-FLOW         tcp   10.1.0.5:41234 -> 10.96.0.10:80  \
             via web/frontend:http  to 10.1.2.3:8080  (tc ingress veth1)"
        );
        let refused = Occurrence {
            reason: "RejectMidStream".to_owned(),
            text: "TCP without a flow".to_owned(),
            source: None,
            interface: None,
            backend: None,
            hook: "connect".to_owned(),
            tcp_flags: vec!["RST".to_owned(), "ACK".to_owned()],
            ..occurrence()
        };
        assert_eq!(
            Line::Reject(refused).to_string(),
            "12:00:01.123456  REJECT           tcp   a process -> 10.96.0.10:80  \
             via web/frontend:http  RejectMidStream: TCP without a flow  (connect, RST+ACK)"
        );
    }

    #[test]
    fn a_changed_service_names_some_of_its_backends() {
        let backend = |number: u8| SocketAddr::from(([10, 4, 0, number], 80));
        let change = ServiceChange {
            time: "2026-11-28T12:00:01.123456Z".to_owned(),
            service: "shop/web:http".to_owned(),
            protocol: "TCP".to_owned(),
            family: "IPv4".to_owned(),
            frontends: Count {
                before: 1,
                after: 1,
            },
            backends: Count {
                before: 1,
                after: 5,
            },
            added: (1..6).map(backend).collect(),
            removed: vec![backend(9)],
        };
        assert_eq!(
            Line::ServiceChanged(change).to_string(),
            "12:00:01.123456  SERVICE-CHANGED  tcp   shop/web:http IPv4  frontends 1 -> 1  \
             backends 1 -> 5  (+10.4.0.1:80 +10.4.0.2:80 +10.4.0.3:80 +10.4.0.4:80 and 2 more)"
        );
    }
}
