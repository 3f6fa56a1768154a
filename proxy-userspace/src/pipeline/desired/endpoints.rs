//! The endpoints of one service port, merged from all slices, and the sets that traffic uses.

use std::sync::Arc;

use proxy_common::BackendState;
use proxy_common::backend::flags;

use super::node::NodeFacts;
use super::{DesiredBackend, ServicePortName};
use crate::family::{Endpoint, IpFamily};
use crate::objects::{EndpointHints, HintName};
use crate::pipeline::packed::{Slice, SliceEndpoint};
use crate::sorted::SortedMap;

/// What is known of one endpoint (S-046, S-048, S-049).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndpointFacts<'a> {
    /// Ready; absent counts as true.
    pub is_ready: bool,
    /// Serving; absent counts as true.
    pub is_serving: bool,
    /// Terminating; absent counts as false.
    pub is_terminating: bool,
    /// Runs on this node.
    pub is_local: bool,
    /// Topology hints.
    pub hints: Option<&'a EndpointHints>,
}

/// The endpoints of a service port (S-042).
pub type Endpoints<'a, A> = SortedMap<Endpoint<A>, EndpointFacts<'a>>;

/// Who receives traffic (S-060 to S-068).
#[derive(PartialEq, Eq, Debug)]
pub struct Sets<A> {
    /// The Cluster set.
    pub cluster: Arc<[Endpoint<A>]>,
    /// The Local set.
    pub local: Arc<[Endpoint<A>]>,
    /// Any endpoint, on any node, that could take traffic.
    pub has_endpoints: bool,
}

/// Merges the endpoints of one service port out of all slices of its Service (S-047).
pub fn merge<'a, A: IpFamily>(
    name: &ServicePortName,
    slices: impl Iterator<Item = (&'a str, &'a Slice)>,
    node: &NodeFacts,
    problems: &mut Vec<String>,
) -> Endpoints<'a, A> {
    let mut all = Vec::new();
    for (slice_name, slice) in slices.filter(|(_, slice)| slice.is_of::<A>()) {
        for port in port_numbers(name, slice) {
            problems.extend(slice.unusable().iter().map(|text| {
                let family = A::NAME;
                format!("EndpointSlice {slice_name}: {text:?} is no usable {family} address")
            }));
            all.reserve(slice.endpoints.len());
            for endpoint in &slice.endpoints {
                if let Some(addr) = A::from_ip(endpoint.addr) {
                    all.push((Endpoint { addr, port }, facts(endpoint, node)));
                }
            }
        }
    }
    Endpoints::merged(all, merge_facts)
}

/// Every backend that flows may live on: ready or serving (S-124).
pub fn backends<A: IpFamily>(endpoints: &Endpoints<A>) -> SortedMap<Endpoint<A>, DesiredBackend> {
    endpoints
        .iter()
        .filter(|(_, facts)| facts.is_ready || facts.is_serving)
        .map(|(endpoint, facts)| {
            let state = match (facts.is_ready, facts.is_terminating) {
                (true, _) => BackendState::Active,
                (false, true) => BackendState::Terminating,
                (false, false) => BackendState::Quarantined,
            };
            (
                *endpoint,
                DesiredBackend {
                    is_local: facts.is_local,
                    state,
                    sets: 0,
                },
            )
        })
        .collect()
}

/// Says of each backend which sets it is in.
pub fn enter_sets<A: IpFamily>(
    backends: &mut SortedMap<Endpoint<A>, DesiredBackend>,
    [cluster, local]: [&[Endpoint<A>]; 2],
) {
    for (members, flag) in [(cluster, flags::IN_CLUSTER), (local, flags::IN_LOCAL)] {
        for endpoint in members {
            if let Some(backend) = backends.get_mut(endpoint) {
                backend.sets |= flag;
            }
        }
    }
}

/// Decides both sets, each with its own fallback (S-066).
pub fn sets<A: IpFamily>(endpoints: &Endpoints<A>, node: &NodeFacts) -> Sets<A> {
    let topology = Topology::of(endpoints, node);
    let cluster = pick(endpoints, |facts| {
        facts.is_ready && topology.allows(facts, node)
    });
    let cluster = or_terminating(cluster, endpoints, |_| true);
    let local = pick(endpoints, |facts| facts.is_ready && facts.is_local);
    let local = or_terminating(local, endpoints, |facts| facts.is_local);
    let has_endpoints = endpoints
        .values()
        .any(|facts| facts.is_ready || facts.is_fallback());
    // S-073: topology narrows to a non-empty set only.
    debug_assert_eq!(has_endpoints, !cluster.is_empty());
    Sets {
        cluster,
        local,
        has_endpoints,
    }
}

/// Which hints filter the Cluster set (S-060).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Topology {
    Any,
    SameNode,
    SameZone,
}

impl Topology {
    fn of<A: IpFamily>(endpoints: &Endpoints<A>, node: &NodeFacts) -> Self {
        let ready = || endpoints.values().filter(|facts| facts.is_ready);
        let decides = |hints: fn(&EndpointHints) -> &[HintName], name: &str| {
            let of = |facts: &EndpointFacts<'_>| facts.hints.map_or(0, |all| hints(all).len());
            ready().all(|facts| of(facts) > 0)
                && ready().any(|facts| facts.hints.is_some_and(|all| has_name(hints(all), name)))
        };
        if decides(|hints| &hints.for_nodes, &node.name) {
            Self::SameNode
        } else if decides(|hints| &hints.for_zones, &node.zone) {
            Self::SameZone
        } else {
            Self::Any
        }
    }

    fn allows(self, facts: &EndpointFacts<'_>, node: &NodeFacts) -> bool {
        let Some(hints) = facts.hints else {
            return self == Self::Any;
        };
        match self {
            Self::Any => true,
            Self::SameNode => has_name(&hints.for_nodes, &node.name),
            Self::SameZone => has_name(&hints.for_zones, &node.zone),
        }
    }
}

impl EndpointFacts<'_> {
    /// Takes traffic only when nobody is ready (S-062, S-065).
    fn is_fallback(&self) -> bool {
        self.is_serving && self.is_terminating
    }
}

/// True if a hint names this node or zone; an unknown one (empty) never matches.
fn has_name(hints: &[HintName], name: &str) -> bool {
    !name.is_empty() && hints.iter().any(|hint| hint.name == name)
}

fn pick<A: IpFamily>(
    endpoints: &Endpoints<A>,
    accepts: impl Fn(&EndpointFacts<'_>) -> bool,
) -> Arc<[Endpoint<A>]> {
    endpoints
        .iter()
        .filter(|(_, facts)| accepts(facts))
        .map(|(endpoint, _)| *endpoint)
        .collect()
}

fn or_terminating<A: IpFamily>(
    set: Arc<[Endpoint<A>]>,
    endpoints: &Endpoints<A>,
    accepts: impl Fn(&EndpointFacts<'_>) -> bool,
) -> Arc<[Endpoint<A>]> {
    match set.is_empty() {
        true => pick(endpoints, |facts| facts.is_fallback() && accepts(facts)),
        false => set,
    }
}

/// The numbers that a slice gives to a service port (S-043).
fn port_numbers(name: &ServicePortName, slice: &Slice) -> impl Iterator<Item = u16> {
    let ports = slice.ports.iter();
    ports
        .filter(|port| port.protocol == name.protocol && *port.name == *name.port)
        .map(|port| port.number)
}

fn facts<'a>(endpoint: &'a SliceEndpoint, node: &NodeFacts) -> EndpointFacts<'a> {
    let is_local = endpoint
        .node_name
        .as_ref()
        .is_some_and(|name| **name == node.name);
    EndpointFacts {
        is_ready: endpoint.is_ready,
        is_serving: endpoint.is_serving,
        is_terminating: endpoint.is_terminating,
        is_local: is_local && !node.name.is_empty(),
        hints: endpoint.hints.as_deref(),
    }
}

/// Folds the facts of an endpoint that is there already (S-047).
fn merge_facts<'a>(known: &mut EndpointFacts<'a>, facts: EndpointFacts<'a>) {
    let wins = match (known.is_terminating, facts.is_terminating) {
        (_, true) => false,
        (true, false) => true,
        (false, false) => facts.is_ready && !known.is_ready,
    };
    if wins {
        *known = facts;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proxy_common::Addr4;

    use super::*;
    use crate::rules;

    fn any_hints() -> impl Strategy<Value = EndpointHints> {
        let names = || {
            prop::collection::vec(
                prop::sample::select(vec!["a", "b"])
                    .prop_map(|name| HintName { name: name.into() }),
                0..2,
            )
        };
        (names(), names()).prop_map(|(for_zones, for_nodes)| EndpointHints {
            for_zones,
            for_nodes,
        })
    }

    proptest! {
        #[test]
        fn cluster_set_is_empty_only_where_nobody_could_serve(
            all in prop::collection::vec((any::<[bool; 4]>(), any_hints()), 0..6),
            node_name in "[ab]?",
            zone in "[ab]?",
        ) {
            rules(&["S-066", "S-067", "S-068", "S-073"]);
            let node = NodeFacts { name: node_name, zone, ..NodeFacts::default() };
            let endpoints: Endpoints<'_, Addr4> = (1..)
                .zip(&all)
                .map(|(port, ([ready, serving, terminating, local], hints))| {
                    let endpoint = Endpoint { addr: Addr4::from_octets([10, 4, 1, 1]), port };
                    let facts = EndpointFacts {
                        is_ready: *ready,
                        is_serving: *serving,
                        is_terminating: *terminating,
                        is_local: *local,
                        hints: Some(hints),
                    };
                    (endpoint, facts)
                })
                .collect();
            let sets = sets(&endpoints, &node);
            let can_serve = |facts: &EndpointFacts<'_>| facts.is_ready || facts.is_fallback();
            let anybody = endpoints.values().any(can_serve);
            prop_assert_eq!(sets.cluster.is_empty(), !anybody);
            prop_assert_eq!(sets.has_endpoints, anybody);
            for set in [&sets.cluster, &sets.local] {
                prop_assert!(set.iter().all(|endpoint| can_serve(&endpoints[endpoint])));
                let ready = set.iter().filter(|endpoint| endpoints[endpoint].is_ready).count();
                prop_assert!(ready == 0 || ready == set.len());
            }
            prop_assert!(sets.local.iter().all(|endpoint| endpoints[endpoint].is_local));
        }
    }
}
