//! What the agent tells about its state: service ports, their frontends and backends, and what was
//! rejected. Read access only.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proxy_common::{Addr4, Addr6, BackendState, FrontendKind};

use crate::family::{IpFamily, Prefix, frontend_text};
use crate::objects::ObjectName;
use crate::pipeline::apply::Obstacle;
use crate::pipeline::desired::{ServicePortName, TrafficPolicy};
use crate::pipeline::reconciler::{Family, Reconciler};
use crate::pipeline::store::{Rejection, Summary};

/// One service port in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePortStatus {
    /// Which.
    pub name: Arc<ServicePortName>,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// What clients dial.
    pub frontends: Vec<FrontendStatus>,
    /// Where they are sent.
    pub backends: Vec<BackendStatus>,
    /// Policy of the ClusterIP.
    pub internal_policy: TrafficPolicy,
    /// Policy of the other frontends.
    pub external_policy: TrafficPolicy,
    /// 0: no affinity.
    pub affinity_timeout_secs: u32,
    /// Any endpoint, on any node.
    pub has_endpoints: bool,
    /// Why the maps do not hold it completely.
    pub obstacle: Option<Obstacle>,
}

/// One frontend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrontendStatus {
    /// Address; unspecified for a NodePort.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Kind.
    pub kind: FrontendKind,
    /// The service port that serves it instead (S-034).
    pub lost_to: Option<Arc<ServicePortName>>,
    /// Clients reach it.
    pub is_published: bool,
}

/// One backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendStatus {
    /// Address and port.
    pub addr: SocketAddr,
    /// On this node.
    pub is_local: bool,
    /// State.
    pub state: BackendState,
    /// In the Cluster set.
    pub is_in_cluster: bool,
    /// In the Local set.
    pub is_in_local: bool,
}

impl Reconciler {
    /// Every service port, IPv4 before IPv6, by name.
    pub fn service_ports(&self) -> Vec<ServicePortStatus> {
        let mut all = family(&self.v4);
        all.extend(family(&self.v6));
        all
    }

    /// How many service ports of each family the maps do not hold completely (S-215).
    pub fn held_up(&self) -> [(&'static str, usize); 2] {
        [
            (Addr4::NAME, self.v4.obstacles.ports.len()),
            (Addr6::NAME, self.v6.obstacles.ports.len()),
        ]
    }

    /// What the source has told, in numbers.
    pub fn summary(&self) -> Summary {
        self.store.summary()
    }

    /// Objects that could not be decoded.
    pub fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        self.store.rejections()
    }

    /// Entries of Services and their slices that were left out, and why.
    pub fn problems(&self) -> &BTreeMap<ObjectName, Vec<String>> {
        &self.problems
    }

    /// Frontends that a service port asks for and another one serves (S-034): the one that lost,
    /// and what happened.
    pub fn collisions(&self) -> Vec<(Arc<ServicePortName>, String)> {
        let mut all = collisions(&self.v4, self.v4.desired.ports().keys());
        all.sort();
        let mut v6 = collisions(&self.v6, self.v6.desired.ports().keys());
        v6.sort();
        all.append(&mut v6);
        all
    }

    /// Frontends from before a restart whose Service is not known, while objects are rejected that
    /// may be it: address, port and IP protocol.
    pub fn kept_frontends(&self) -> Vec<(SocketAddr, u8)> {
        let mut all = kept(&self.v4);
        all.extend(kept(&self.v6));
        all
    }

    /// ClusterIPs that are not in CLUSTER_IPS, and why.
    pub fn missing_cluster_ips(&self) -> Vec<(String, Obstacle)> {
        let mut all = missing_cluster_ips(&self.v4);
        all.extend(missing_cluster_ips(&self.v6));
        all
    }

    /// The own node's name, zone and primary addresses.
    pub fn node(&self) -> &crate::pipeline::desired::node::NodeFacts {
        &self.node
    }
}

/// The frontends that some of the service ports of a family lost to others.
pub(super) fn collisions<'a, A: IpFamily>(
    family: &Family<A>,
    names: impl Iterator<Item = &'a Arc<ServicePortName>>,
) -> Vec<(Arc<ServicePortName>, String)> {
    let ports = names.filter_map(|name| Some((name, family.desired.ports().get(name)?)));
    let claims = ports.flat_map(|(name, port)| port.frontends.iter().map(move |f| (name, f)));
    let lost = claims.filter_map(|(name, frontend)| {
        let owner = family.desired.owner(&frontend.key)?;
        (owner != name).then(|| {
            let text = frontend_text(&frontend.key);
            (name.clone(), format!("{text} is served by {owner}"))
        })
    });
    lost.collect()
}

fn missing_cluster_ips<A: IpFamily>(family: &Family<A>) -> Vec<(String, Obstacle)> {
    let prefixes = family.obstacles.prefixes.iter();
    let text = |prefix: &Prefix<A>| format!("{}/{}", prefix.addr.to_ip(), prefix.len);
    prefixes
        .map(|(prefix, obstacle)| (text(prefix), obstacle.clone()))
        .collect()
}

fn kept<A: IpFamily>(family: &Family<A>) -> Vec<(SocketAddr, u8)> {
    let names = family.kept.unclaimed.iter();
    let ports = names.filter_map(|name| family.actual.ports.get(name));
    let frontends = ports.flat_map(|port| port.frontends.keys());
    frontends
        .map(|key| {
            let addr = SocketAddr::new(key.addr.to_ip(), key.port.get());
            (addr, key.protocol)
        })
        .collect()
}

fn family<A: IpFamily>(family: &Family<A>) -> Vec<ServicePortStatus> {
    let ports = family.desired.sorted_ports().into_iter();
    ports
        .map(|(name, port)| ServicePortStatus {
            name: name.clone(),
            family: A::NAME,
            frontends: port
                .frontends
                .iter()
                .map(|frontend| {
                    let owner = family.desired.owner(&frontend.key);
                    let written = family.actual.frontends.get(&frontend.key);
                    FrontendStatus {
                        addr: frontend.key.addr.to_ip(),
                        port: frontend.key.port.get(),
                        protocol: frontend.key.protocol,
                        kind: frontend.kind,
                        lost_to: owner.filter(|owner| *owner != name).cloned(),
                        is_published: written
                            .is_some_and(|written| written.owner == *name && written.is_reachable),
                    }
                })
                .collect(),
            backends: port
                .backends
                .iter()
                .map(|(endpoint, backend)| BackendStatus {
                    addr: SocketAddr::new(endpoint.addr.to_ip(), endpoint.port),
                    is_local: backend.is_local,
                    state: backend.state,
                    is_in_cluster: port.cluster.binary_search(endpoint).is_ok(),
                    is_in_local: port.local.binary_search(endpoint).is_ok(),
                })
                .collect(),
            internal_policy: port.internal_policy,
            external_policy: port.external_policy,
            affinity_timeout_secs: port.affinity_timeout_secs,
            has_endpoints: port.has_endpoints,
            obstacle: family.obstacles.ports.get(name).cloned(),
        })
        .collect()
}
