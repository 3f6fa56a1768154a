//! What Services have in the maps, and how that changes. Pure: states in, changes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::family::protocol_name;
use crate::pipeline::desired::ServicePortName;
use crate::pipeline::status::{BackendStatus, ServicePortStatus};

/// How a service port has changed in one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceChange {
    /// When, in UTC (RFC 3339).
    pub time: String,
    /// `ns/name:port`.
    pub service: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Published frontends.
    pub frontends: Count,
    /// Backends that take connections.
    pub backends: Count,
    /// Backends that it did not have.
    pub added: Vec<SocketAddr>,
    /// Backends that it has no more.
    pub removed: Vec<SocketAddr>,
}

/// A number before and after.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Count {
    /// Before.
    pub before: usize,
    /// After.
    pub after: usize,
}

/// What all service ports have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Published {
    ports: BTreeMap<(Arc<ServicePortName>, &'static str), Port>,
}

/// What one service port has in one family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Port {
    frontends: BTreeSet<(IpAddr, u16)>,
    /// With what tells them from what they were: their state, and the sets that they are in.
    backends: BTreeMap<SocketAddr, (u8, bool, bool, bool)>,
}

impl Published {
    /// What these have.
    pub fn of(ports: &[ServicePortStatus]) -> Self {
        let ports = ports.iter().map(|port| {
            let frontends = port.frontends.iter().filter(|it| it.is_published);
            let backends = port.backends.iter().filter(|it| takes_flows(it));
            let of_port = Port {
                frontends: frontends.map(|it| (it.addr, it.port)).collect(),
                backends: backends
                    .map(|it| {
                        let sets = (it.is_local, it.is_in_cluster, it.is_in_local);
                        (it.addr, (it.state as u8, sets.0, sets.1, sets.2))
                    })
                    .collect(),
            };
            ((port.name.clone(), port.family), of_port)
        });
        Self {
            ports: ports.collect(),
        }
    }

    /// What is another than it was `before`, at the time `time`.
    pub fn changes(&self, before: &Self, time: &str) -> Vec<ServiceChange> {
        let keys: BTreeSet<_> = before.ports.keys().chain(self.ports.keys()).collect();
        let none = Port::default();
        let changes = keys.into_iter().filter_map(|key| {
            let old = before.ports.get(key).unwrap_or(&none);
            let new = self.ports.get(key).unwrap_or(&none);
            (old != new).then(|| change(key, (old, new), time))
        });
        changes.collect()
    }
}

fn takes_flows(backend: &BackendStatus) -> bool {
    backend.is_in_cluster || backend.is_in_local
}

fn change(
    (name, family): &(Arc<ServicePortName>, &'static str),
    (old, new): (&Port, &Port),
    time: &str,
) -> ServiceChange {
    let missing = |of: &Port, from: &Port| {
        let all = of.backends.keys().copied();
        all.filter(|it| !from.backends.contains_key(it)).collect()
    };
    ServiceChange {
        time: time.to_owned(),
        service: service_text(name),
        protocol: protocol_name(name.protocol).to_owned(),
        family: (*family).to_owned(),
        frontends: Count {
            before: old.frontends.len(),
            after: new.frontends.len(),
        },
        backends: Count {
            before: old.backends.len(),
            after: new.backends.len(),
        },
        added: missing(new, old),
        removed: missing(old, new),
    }
}

/// `ns/name:port`.
pub fn service_text(name: &ServicePortName) -> String {
    let service = &name.service;
    format!("{}/{}:{}", service.namespace, service.name, name.port)
}

#[cfg(test)]
mod tests {
    use proxy_common::{BackendState, FrontendKind};

    use super::*;
    use crate::objects::ObjectName;
    use crate::pipeline::desired::TrafficPolicy;
    use crate::pipeline::status::FrontendStatus;

    fn port(name: &str, backends: &[(&str, BackendState)]) -> ServicePortStatus {
        ServicePortStatus {
            name: Arc::new(ServicePortName {
                service: Arc::new(ObjectName {
                    namespace: "shop".into(),
                    name: name.into(),
                }),
                port: "http".to_owned(),
                protocol: 6,
            }),
            family: "IPv4",
            frontends: vec![FrontendStatus {
                addr: "10.96.0.1".parse().unwrap(),
                port: 80,
                protocol: 6,
                kind: FrontendKind::ClusterIp,
                lost_to: None,
                is_published: true,
            }],
            backends: backends
                .iter()
                .map(|(addr, state)| BackendStatus {
                    addr: addr.parse().unwrap(),
                    is_local: false,
                    state: *state,
                    is_in_cluster: true,
                    is_in_local: false,
                })
                .collect(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_timeout_secs: 0,
            has_endpoints: true,
            obstacle: None,
        }
    }

    const A: &str = "10.4.0.1:80";
    const B: &str = "10.4.0.2:80";

    fn changes(before: &[ServicePortStatus], after: &[ServicePortStatus]) -> Vec<ServiceChange> {
        Published::of(after).changes(&Published::of(before), "now")
    }

    #[test]
    fn only_what_differs_is_told() {
        let active = BackendState::Active;
        let before = [port("web", &[(A, active)]), port("api", &[(A, active)])];
        let after = [port("web", &[(B, active)]), port("api", &[(A, active)])];
        let told = changes(&before, &after);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].service, "shop/web:http");
        let one = Count {
            before: 1,
            after: 1,
        };
        assert_eq!((told[0].backends, told[0].frontends), (one, one));
        assert_eq!(told[0].added, [B.parse().unwrap()]);
        assert_eq!(told[0].removed, [A.parse().unwrap()]);
        assert_eq!(changes(&after, &after), []);
    }

    #[test]
    fn services_come_and_go_and_backends_change_their_state() {
        let active = BackendState::Active;
        let one = [port("web", &[(A, active)])];
        let [came, went] = [changes(&[], &one), changes(&one, &[])];
        assert_eq!((came[0].frontends.before, came[0].frontends.after), (0, 1));
        assert_eq!((went[0].backends.before, went[0].backends.after), (1, 0));
        let terminating = [port("web", &[(A, BackendState::Terminating)])];
        let told = changes(&one, &terminating);
        assert_eq!((told.len(), told[0].added.len()), (1, 0));
    }
}
