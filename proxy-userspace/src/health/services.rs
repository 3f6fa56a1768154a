//! Metrics of Services: what became of their connections, with a bounded number of series.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::exposition::Exposition;
use crate::agent::view::{BackendView, FrontendView};

/// How many series there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeriesLimits {
    /// Service ports with series of their own, in the order of their names; the others are summed
    /// up in one without names.
    pub service_ports: usize,
    /// Backends with series of their own; further ones are in the sum of their service port only.
    pub backends: usize,
}

impl SeriesLimits {
    /// What is given, and else the defaults.
    pub fn given(service_ports: Option<usize>, backends: Option<usize>) -> Self {
        let default = Self::default();
        Self {
            service_ports: service_ports.unwrap_or(default.service_ports),
            backends: backends.unwrap_or(default.backends),
        }
    }
}

impl Default for SeriesLimits {
    fn default() -> Self {
        Self {
            service_ports: 1000,
            backends: 5000,
        }
    }
}

/// Namespace, Service and port.
type Port<'a> = [&'a str; 3];

/// Backends by service port, protocol and address.
type Backends<'a> = BTreeMap<(Port<'a>, &'a str, SocketAddr), &'a BackendView>;

/// Connections, refused, dropped.
type Counts = [u64; 3];

const NAMES: [(&str, &str); 3] = [
    (
        "shunt_service_connections_total",
        "New connections that a backend was found for",
    ),
    (
        "shunt_service_refused_total",
        "First packets and calls that were refused",
    ),
    (
        "shunt_service_dropped_total",
        "First packets and calls that were dropped",
    ),
];

/// The metrics in Prometheus' text format.
pub fn text(frontends: &[FrontendView], limits: SeriesLimits) -> String {
    let mut ports: BTreeMap<Port<'_>, Counts> = BTreeMap::new();
    let mut backends = Backends::new();
    for found in frontends {
        let port: Port<'_> = [&found.namespace, &found.name, &found.port_name];
        let counts = ports.entry(port).or_default();
        let more = [found.connections, found.refused, found.dropped];
        for (sum, count) in counts.iter_mut().zip(more) {
            *sum += count;
        }
        // All frontends of a service port have the same backends.
        for backend in found.backends.iter().chain(&found.local_backends) {
            let key = (port, found.protocol.as_str(), backend.address);
            backends.insert(key, backend);
        }
    }
    let rest = ports.keys().nth(limits.service_ports).copied();
    if let Some(first) = rest {
        let others = ports.split_off(&first);
        let sum = others.into_values().fold(Counts::default(), |sum, more| {
            [sum[0] + more[0], sum[1] + more[1], sum[2] + more[2]]
        });
        ports.insert([""; 3], sum);
        backends.retain(|(port, _, _), _| *port < first);
    }
    written(&ports, &backends, limits.backends)
}

fn written(
    ports: &BTreeMap<Port<'_>, Counts>,
    backends: &Backends<'_>,
    backends_max: usize,
) -> String {
    let mut out = Exposition::default();
    for (index, (name, help)) in NAMES.into_iter().enumerate() {
        let samples = ports.iter();
        let samples = samples.map(|(port, counts)| (labels(port), counts[index]));
        out.metric((name, "counter", help), samples);
    }
    for (name, help, values) in OF_BACKENDS {
        let samples = values.iter().flat_map(|(direction, value)| {
            let backends = backends.iter().take(backends_max);
            backends.map(move |((port, protocol, address), backend)| {
                let labels = labels(port);
                let of = format!("protocol=\"{protocol}\",backend=\"{address}\"{direction}");
                (format!("{labels},{of}"), value(backend))
            })
        });
        out.metric((name, "counter", help), samples);
    }
    out.into_text()
}

/// A value of a backend, and the label that tells it from others of its metric.
type Value = (&'static str, fn(&BackendView) -> u64);

/// Metrics of backends: name, what it is, values.
const OF_BACKENDS: [(&str, &str, &[Value]); 3] = [
    (
        "shunt_backend_connections_total",
        "New connections to a backend",
        &[("", |backend| backend.connections)],
    ),
    (
        "shunt_backend_packets_total",
        "Packets that the packet path has translated, to a backend and from it",
        &[
            (TO, |backend| backend.traffic.packets_to),
            (FROM, |backend| backend.traffic.packets_from),
        ],
    ),
    (
        "shunt_backend_bytes_total",
        "Bytes of these packets, from the IP header on",
        &[
            (TO, |backend| backend.traffic.bytes_to),
            (FROM, |backend| backend.traffic.bytes_from),
        ],
    ),
];

const TO: &str = ",direction=\"to\"";
const FROM: &str = ",direction=\"from\"";

/// Names of objects have nothing that must be escaped.
fn labels([namespace, service, port]: &Port<'_>) -> String {
    format!("namespace=\"{namespace}\",service=\"{service}\",port=\"{port}\"")
}

#[cfg(test)]
mod tests {
    use super::{SeriesLimits, text};
    use crate::agent::view::{BackendView, FrontendView};
    use crate::flows::Traffic;

    fn frontend(name: &str, kind: &str, connections: u64) -> FrontendView {
        let backend = BackendView {
            address: "10.1.0.2:8080".parse().unwrap(),
            state: "Active".to_owned(),
            local: true,
            connections: 5,
            traffic: Traffic {
                packets_to: 6,
                bytes_to: 7000,
                packets_from: 8,
                bytes_from: 9000,
            },
        };
        FrontendView {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            port_name: "http".to_owned(),
            kind: kind.to_owned(),
            address: None,
            port: 80,
            protocol: "TCP".to_owned(),
            policy: "Cluster".to_owned(),
            backends: vec![backend],
            local_backends: Vec::new(),
            connections,
            refused: 1,
            dropped: 0,
        }
    }

    #[test]
    fn frontends_of_a_service_port_are_one_series() {
        let both = [
            frontend("web", "ClusterIP", 2),
            frontend("web", "NodePort", 3),
        ];
        let text = text(&both, SeriesLimits::default());
        let labels = r#"{namespace="shop",service="web",port="http""#;
        for line in [
            format!("shunt_service_connections_total{labels}}} 5"),
            format!("shunt_service_refused_total{labels}}} 2"),
            format!(
                "shunt_backend_connections_total{labels},protocol=\"TCP\",\
                 backend=\"10.1.0.2:8080\"}} 5"
            ),
            format!(
                "shunt_backend_packets_total{labels},protocol=\"TCP\",\
                 backend=\"10.1.0.2:8080\",direction=\"to\"}} 6"
            ),
            format!(
                "shunt_backend_bytes_total{labels},protocol=\"TCP\",\
                 backend=\"10.1.0.2:8080\",direction=\"from\"}} 9000"
            ),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn series_are_bounded_and_nothing_is_lost_from_the_sum() {
        let limits = SeriesLimits {
            service_ports: 20,
            backends: 7,
        };
        let names: Vec<String> = (0..limits.service_ports + 10)
            .map(|n| format!("s{n:05}"))
            .collect();
        let frontends: Vec<_> = names
            .iter()
            .map(|name| frontend(name, "ClusterIP", 1))
            .collect();
        let text = text(&frontends, limits);
        let of = |name: &str| -> Vec<&str> {
            text.lines().filter(|line| line.starts_with(name)).collect()
        };
        assert_eq!(
            of("shunt_service_connections_total").len(),
            limits.service_ports + 1
        );
        let rest = r#"shunt_service_connections_total{namespace="",service="",port=""} 10"#;
        assert!(text.lines().any(|line| line == rest), "{rest}");
        assert!(of("shunt_backend_connections_total").len() == limits.backends);
    }
}
