//! Sections 3 and 4: the endpoints of a service port, and the sets that are chosen of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proxy_userspace::objects::{self, EndpointSlice, HintName};

use super::address::parse;
use super::service::Port;
use super::{Family, Oracle, Protocol};

/// One endpoint of a service port; its identity is address and port (S-044).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// S-046.
    pub is_ready: bool,
    /// S-046.
    pub is_serving: bool,
    /// S-046.
    pub is_terminating: bool,
    /// On this node (S-048).
    pub is_local: bool,
    zones: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

impl Endpoint {
    /// Fit for the fallback (S-062, S-065).
    fn is_last_resort(&self) -> bool {
        self.is_serving && self.is_terminating
    }
}

/// Endpoints by address and port; sorted, as S-051 has it.
pub type Endpoints = BTreeMap<SocketAddr, Endpoint>;

/// What a packet to a service port may be sent to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sets {
    /// S-061, S-062.
    pub cluster: BTreeSet<SocketAddr>,
    /// S-065.
    pub local: BTreeSet<SocketAddr>,
    /// S-067.
    pub has_endpoints: bool,
}

impl Oracle {
    /// S-042: the union over all slices of the Service.
    pub fn endpoints(&self, port: &Port<'_>) -> Endpoints {
        let mut endpoints = Endpoints::new();
        for slice in self.objects.slices() {
            if !is_slice_of(slice, port) {
                continue;
            }
            for number in numbers(slice, port) {
                for endpoint in &slice.endpoints {
                    // S-045: only addresses[0]; without one the endpoint is skipped.
                    let addr = endpoint.addresses.first().and_then(|text| parse(text));
                    let Some(addr) = addr.filter(|addr| Family::of(*addr) == port.key.family)
                    else {
                        continue;
                    };
                    let at = SocketAddr::new(addr, number);
                    let found = self.endpoint(endpoint);
                    if replaces(endpoints.get(&at), &found) {
                        endpoints.insert(at, found);
                    }
                }
            }
        }
        endpoints
    }

    fn endpoint(&self, endpoint: &objects::Endpoint) -> Endpoint {
        let conditions = &endpoint.conditions;
        let names = |hints: &[HintName]| hints.iter().map(|hint| hint.name.clone()).collect();
        let hints = endpoint.hints.clone().unwrap_or_default();
        Endpoint {
            // S-046: absent means ready, serving, not terminating.
            is_ready: conditions.ready.unwrap_or(true),
            is_serving: conditions.serving.unwrap_or(true),
            is_terminating: conditions.terminating.unwrap_or(false),
            // S-048: nodeName alone.
            is_local: self.is_own_name(endpoint.node_name.as_deref()),
            // S-049: an empty list is like none.
            zones: names(&hints.for_zones),
            nodes: names(&hints.for_nodes),
        }
    }

    /// Section 4.
    pub fn sets(&self, port: &Port<'_>) -> Sets {
        let endpoints = self.endpoints(port);
        let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
            let wanted = endpoints.iter().filter(|(_, endpoint)| wanted(endpoint));
            wanted.map(|(at, _)| *at).collect()
        };
        let ready = pick(&|endpoint| endpoint.is_ready);
        let last_resort = pick(&Endpoint::is_last_resort);
        // S-061: ready ones, as the topology mode has it; S-062: else the last resort, without.
        let mut cluster = pick(&|endpoint| endpoint.is_ready && self.is_near(endpoint, &endpoints));
        if cluster.is_empty() {
            cluster = last_resort.clone();
        }
        // S-065: local ready ones, else the local last resort; hints never count here.
        let mut local = pick(&|endpoint| endpoint.is_ready && endpoint.is_local);
        if local.is_empty() {
            local = pick(&|endpoint| endpoint.is_last_resort() && endpoint.is_local);
        }
        // S-067.
        let has_endpoints = !ready.is_empty() || !last_resort.is_empty();
        // S-073.
        assert_eq!(cluster.is_empty(), !has_endpoints, "S-073");
        Sets {
            cluster,
            local,
            has_endpoints,
        }
    }

    /// S-060 and S-061: true if the topology mode lets a ready endpoint in.
    fn is_near(&self, endpoint: &Endpoint, all: &Endpoints) -> bool {
        let ready = || all.values().filter(|endpoint| endpoint.is_ready);
        let (node, zone) = (&self.settings.node_name, self.zone());
        // S-060 (2), S-063: one ready endpoint without the hint turns the mode off.
        let is_same_node = ready().all(|endpoint| !endpoint.nodes.is_empty())
            && ready().any(|endpoint| !node.is_empty() && endpoint.nodes.contains(node));
        if is_same_node {
            return endpoint.nodes.contains(node);
        }
        // S-060 (3): an unknown zone never matches.
        let is_same_zone = ready().all(|endpoint| !endpoint.zones.is_empty())
            && ready().any(|endpoint| !zone.is_empty() && endpoint.zones.contains(&zone));
        if is_same_zone {
            return endpoint.zones.contains(&zone);
        }
        // S-060 (4).
        true
    }
}

/// S-040: by label and namespace; S-041: by address type.
fn is_slice_of(slice: &EndpointSlice, port: &Port<'_>) -> bool {
    let label = slice.metadata.labels.get("kubernetes.io/service-name");
    slice.metadata.namespace == port.key.namespace
        && label == Some(&port.key.service)
        && slice.address_type == port.key.family.name()
}

/// S-043: the numbers that a slice has for the service port; S-044: there may be several.
fn numbers(slice: &EndpointSlice, port: &Port<'_>) -> Vec<u16> {
    let ports = slice.ports.iter().filter(|entry| {
        entry.name.as_ref() == Some(&port.key.port)
            && Protocol::from_api(entry.protocol.as_deref()) == Some(port.key.protocol)
    });
    ports
        .filter_map(|entry| entry.port.filter(|number| *number != 0))
        .collect()
}

/// S-047: who stays where an endpoint is seen twice.
fn replaces(present: Option<&Endpoint>, found: &Endpoint) -> bool {
    match present {
        None => true,
        // A terminating one only fills an empty place.
        Some(_) if found.is_terminating => false,
        Some(present) if present.is_terminating => true,
        // Ready beats unready, otherwise the present one is kept.
        Some(present) => found.is_ready && !present.is_ready,
    }
}
