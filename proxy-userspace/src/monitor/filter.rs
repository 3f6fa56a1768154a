//! Which events a monitor wants.

use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use proxy_common::{Counter, EventKind};
use serde::{Deserialize, Serialize};

use super::Line;
use crate::agent::names::{is_address, is_service};

/// What has happened.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Type {
    /// A connection begins
    NewFlow,
    /// A packet or call is refused, and its sender told
    Reject,
    /// A packet or call is dropped
    Drop,
    /// What a Service has in the maps changes
    ServiceChanged,
}

/// What a monitor wants; what is empty or absent wants everything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT.
    pub service: Option<String>,
    /// An address with or without a port.
    pub backend: Option<String>,
    /// Types.
    pub types: Vec<Type>,
    /// Names of counters.
    pub reasons: Vec<String>,
    /// One event of the datapath in so many; 0 and 1: each.
    pub one_in: u32,
}

impl Filter {
    /// Bits for MONITORS: what the datapath has to tell.
    pub fn kinds(&self) -> u32 {
        let kinds = [
            (Type::NewFlow, EventKind::NewFlow),
            (Type::Reject, EventKind::Reject),
            (Type::Drop, EventKind::Drop),
        ];
        let wanted = kinds.iter().filter(|(kind, _)| self.wants_type(*kind));
        wanted.fold(0, |bits, (_, kind)| bits | kind.bit())
    }

    fn wants_type(&self, kind: Type) -> bool {
        self.types.is_empty() || self.types.contains(&kind)
    }

    /// True for an event that is wanted; of none that is not an event.
    pub fn wants(&self, line: &Line) -> bool {
        if !line.kind().is_some_and(|kind| self.wants_type(kind)) {
            return false;
        }
        let (service, reason, backends) = match line {
            Line::NewFlow(it) | Line::Reject(it) | Line::Drop(it) => {
                let backends: Vec<SocketAddr> = it.backend.into_iter().collect();
                (it.service.as_deref(), Some(it.reason.as_str()), backends)
            }
            Line::ServiceChanged(it) => {
                let backends = it.added.iter().chain(&it.removed).copied();
                (Some(it.service.as_str()), None, backends.collect())
            }
            Line::Started | Line::Failed { .. } | Line::Lost { .. } => return false,
        };
        let wanted = self.service.as_deref();
        wanted.is_none_or(|wanted| service.is_some_and(|it| is_service(wanted, it)))
            && (self.reasons.is_empty()
                || reason.is_some_and(|it| self.reasons.iter().any(|wanted| wanted == it)))
            && self
                .backend
                .as_deref()
                .is_none_or(|wanted| backends.iter().any(|it| is_address(wanted, *it)))
    }
}

/// A reason as it is typed: a counter's name, in any case.
pub fn reason(text: &str) -> Result<String, String> {
    let found = Counter::ALL
        .iter()
        .find(|counter| counter.name().eq_ignore_ascii_case(text));
    found
        .map(|counter| counter.name().to_owned())
        .ok_or_else(|| {
            "no counter has this name; docs/operator.md lists the reasons of refusals and drops"
                .to_owned()
        })
}

/// A backend as it is typed.
pub fn backend(text: &str) -> Result<String, String> {
    let is_address = text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok();
    match is_address {
        true => Ok(text.to_owned()),
        false => Err("neither IP nor IP:PORT ([IP]:PORT in IPv6)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::fixture::{changed, flow};

    #[test]
    fn nothing_asked_for_wants_every_event_and_no_other_line() {
        let all = Filter::default();
        assert!(all.wants(&flow()) && all.wants(&changed()));
        assert!(!all.wants(&Line::Started) && !all.wants(&Line::Lost { events: 1 }));
        assert_eq!(all.kinds(), 0b111);
    }

    #[test]
    fn each_part_of_a_filter_must_hold() {
        let none = Filter::default;
        let flow = flow();
        let service = |name: &str| Filter {
            service: Some(name.to_owned()),
            ..none()
        };
        let backend = |text: &str| Filter {
            backend: Some(text.to_owned()),
            ..none()
        };
        let types = |types: &[Type]| Filter {
            types: types.to_vec(),
            ..none()
        };
        let reasons = |name: &str| Filter {
            reasons: vec![name.to_owned()],
            ..none()
        };
        for (filter, of_flow, of_change) in [
            (service("shop/web"), true, true),
            (service("web2"), false, false),
            (backend("10.4.2.5"), true, true),
            (backend("10.4.2.5:81"), false, false),
            (types(&[Type::NewFlow, Type::Drop]), true, false),
            (types(&[Type::ServiceChanged]), false, true),
            (reasons("NewFlow"), true, false),
            (reasons("NoRoute"), false, false),
        ] {
            let found = (filter.wants(&flow), filter.wants(&changed()));
            assert_eq!(found, (of_flow, of_change), "{filter:?}");
        }
        assert_eq!(types(&[Type::NewFlow, Type::Drop]).kinds(), 0b101);
        assert_eq!(types(&[Type::ServiceChanged]).kinds(), 0);
    }

    #[test]
    fn typed_parts_are_checked() {
        assert_eq!(reason("rejectnoendpoint").unwrap(), "RejectNoEndpoint");
        assert!(reason("NoSuchReason").is_err());
        for good in ["10.0.0.1", "10.0.0.1:80", "fd00::1", "[fd00::1]:80"] {
            assert_eq!(backend(good).unwrap(), good);
        }
        for bad in ["", "web", "10.0.0", "10.0.0.1:http", "fd00::1:80:x"] {
            assert!(backend(bad).is_err(), "{bad}");
        }
    }
}
