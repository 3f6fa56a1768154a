//! Stage 3: what the maps should hold. Pure: objects and settings in, values out. Only Services
//! touched since the last reconcile are computed anew.

pub mod cover;
pub mod endpoints;
pub mod maglev;
pub mod node;
pub mod service;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use foldhash::fast::RandomState;
use proxy_common::node::cluster_ip;
use proxy_common::{BackendState, FrontendKey, FrontendKind};

use self::cover::Cover;
use self::maglev::Tables;
use self::service::kind_rank;
use crate::family::{Endpoint, IpFamily, Prefix, protocol_name};
use crate::objects::ObjectName;
use crate::sorted::SortedMap;

/// Identity of a service port (S-020). All parts are opaque (S-013).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePortName {
    /// Its Service.
    pub service: Arc<ObjectName>,
    /// Port name; may be empty.
    pub port: String,
    /// IP protocol.
    pub protocol: u8,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ObjectName { namespace, name } = &*self.service;
        write!(
            f,
            "{namespace}/{name}:{}/{}",
            self.port,
            protocol_name(self.protocol)
        )
    }
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`, as they come into force (S-026, S-027).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrafficPolicy {
    /// All endpoints.
    Cluster,
    /// Those of this node.
    Local,
}

/// One frontend that a service port asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredFrontend<A: IpFamily> {
    /// What clients dial.
    pub key: FrontendKey<A>,
    /// Which kind of address.
    pub kind: FrontendKind,
}

/// One backend of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredBackend {
    /// Runs on this node.
    pub is_local: bool,
    /// Never `Free`.
    pub state: BackendState,
    /// The sets that it is in: `IN_CLUSTER` and `IN_LOCAL` of its flags. None without affinity,
    /// which alone asks for them (S-103).
    pub sets: u8,
}

/// One service port in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredPort<A: IpFamily> {
    /// `creationTimestamp` of the Service: decides collisions.
    pub created: Option<Arc<str>>,
    /// Frontends, at most one for each key.
    pub frontends: Vec<DesiredFrontend<A>>,
    /// Every endpoint that is ready or serving: flows to it may live (S-124).
    pub backends: SortedMap<Endpoint<A>, DesiredBackend>,
    /// The Cluster set (S-061, S-062).
    pub cluster: Arc<[Endpoint<A>]>,
    /// The Local set (S-065).
    pub local: Arc<[Endpoint<A>]>,
    /// Lookup tables of Cluster and Local set: what frontends other than the ClusterIP publish
    /// instead of the sets where the Service asks for Maglev.
    pub tables: Option<Box<Tables<A>>>,
    /// `hasEndpoints` (S-067).
    pub has_endpoints: bool,
    /// Policy of the ClusterIP.
    pub internal_policy: TrafficPolicy,
    /// Policy of the other frontends.
    pub external_policy: TrafficPolicy,
    /// 0: no affinity.
    pub affinity_timeout_secs: u32,
    /// Who may reach the load balancer frontends; empty: everybody.
    pub source_ranges: BTreeSet<Prefix<A>>,
    /// A source range contains this node's primary address (S-114).
    pub source_ranges_have_node: bool,
}

/// One Service in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService<A: IpFamily> {
    /// Its ports.
    pub ports: SortedMap<Arc<ServicePortName>, DesiredPort<A>>,
    /// Its ClusterIP.
    pub cluster_ip: A,
}

/// Service ports and prefixes that must be compared with what the maps hold.
#[derive(Debug)]
pub struct TouchedPorts<A> {
    /// Service ports.
    pub ports: BTreeSet<Arc<ServicePortName>>,
    /// Prefixes of CLUSTER_IPS.
    pub prefixes: BTreeSet<Prefix<A>>,
}

impl<A> Default for TouchedPorts<A> {
    fn default() -> Self {
        Self {
            ports: BTreeSet::new(),
            prefixes: BTreeSet::new(),
        }
    }
}

/// A service port that asks for a frontend; the least one gets it (S-034).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Claim {
    kind_rank: u8,
    /// Services without a timestamp come last.
    created: (bool, Option<Arc<str>>),
    name: Arc<ServicePortName>,
}

/// The ports and the ClusterIP of a Service.
type Asked<A> = (Box<[Arc<ServicePortName>]>, A);

/// Service ports, in any order.
pub type DesiredPorts<A> = HashMap<Arc<ServicePortName>, Box<DesiredPort<A>>, RandomState>;

/// What the maps of one family should hold.
#[derive(Debug)]
pub struct DesiredState<A: IpFamily> {
    ports: DesiredPorts<A>,
    /// Which ports and which ClusterIP came from a Service.
    services: HashMap<Arc<ObjectName>, Asked<A>, RandomState>,
    /// Who asks for a frontend; the first gets it.
    claims: HashMap<FrontendKey<A>, Vec<Claim>, RandomState>,
    prefixes: HashMap<Prefix<A>, PrefixUsers, RandomState>,
    cover: Cover,
}

/// How many objects want a prefix in CLUSTER_IPS (S-079).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct PrefixUsers {
    cluster_ips: u32,
    service_cidrs: u32,
    /// Frontends of load balancers and external IPs.
    frontends: u32,
}

impl<A: IpFamily> Default for DesiredState<A> {
    fn default() -> Self {
        Self {
            ports: HashMap::default(),
            services: HashMap::default(),
            claims: HashMap::default(),
            prefixes: HashMap::default(),
            cover: Cover::default(),
        }
    }
}

impl<A: IpFamily> DesiredState<A> {
    /// Replaces what one Service asks for, and collects what that touches.
    pub fn update_service(
        &mut self,
        name: &Arc<ObjectName>,
        desired: Option<DesiredService<A>>,
        touched: &mut TouchedPorts<A>,
    ) {
        let (mut ports, cluster_ip) = match desired {
            Some(desired) => (desired.ports, Some(desired.cluster_ip)),
            None => (SortedMap::new(), None),
        };
        let known = self.services.remove(name);
        let known_ip = known.as_ref().map(|(_, addr)| *addr);
        if known_ip != cluster_ip {
            if let Some(addr) = known_ip {
                let users =
                    self.count_prefix(Prefix::host(addr), |users| users.cluster_ips -= 1, touched);
                if users.cluster_ips == 0 {
                    self.cover.remove_address(addr.to_ip());
                }
            }
            if let Some(addr) = cluster_ip {
                self.count_prefix(Prefix::host(addr), |users| users.cluster_ips += 1, touched);
                self.cover.add_address(addr.to_ip());
            }
        }
        if let Some(addr) = cluster_ip {
            self.services
                .insert(name.clone(), (ports.keys().cloned().collect(), addr));
        }
        for port_name in known.into_iter().flat_map(|(ports, _)| ports) {
            let port = ports.remove(&port_name);
            self.update_port(port_name, port, touched);
        }
        for (port_name, port) in ports {
            self.update_port(port_name, Some(port), touched);
        }
    }

    /// A ServiceCIDR came.
    pub fn add_service_cidr(&mut self, prefix: Prefix<A>, touched: &mut TouchedPorts<A>) {
        self.count_prefix(prefix, |users| users.service_cidrs += 1, touched);
        self.cover_anew(touched);
    }

    /// A ServiceCIDR went.
    pub fn remove_service_cidr(&mut self, prefix: Prefix<A>, touched: &mut TouchedPorts<A>) {
        self.count_prefix(prefix, |users| users.service_cidrs -= 1, touched);
        self.cover_anew(touched);
    }

    /// What the datapath's filter must let through.
    pub fn cover(&mut self) -> &mut Cover {
        &mut self.cover
    }

    /// All service ports.
    pub fn ports(&self) -> &DesiredPorts<A> {
        &self.ports
    }

    /// All service ports, by name.
    pub fn sorted_ports(&self) -> Vec<(&Arc<ServicePortName>, &DesiredPort<A>)> {
        let ports = self.ports.iter();
        let mut ports: Vec<_> = ports.map(|(name, port)| (name, &**port)).collect();
        ports.sort_unstable_by_key(|(name, _)| *name);
        ports
    }

    /// The service port that gets a frontend (S-034), and the kind it has there.
    pub fn owner(&self, key: &FrontendKey<A>) -> Option<&Arc<ServicePortName>> {
        Some(&self.claims.get(key)?.first()?.name)
    }

    /// The value of a prefix in CLUSTER_IPS.
    pub fn prefix(&self, prefix: &Prefix<A>) -> Option<u32> {
        let users = self.prefixes.get(prefix)?;
        Some(if users.cluster_ips > 0 {
            cluster_ip::ACTIVE
        } else if users.service_cidrs > 0 || self.cover.has(prefix.addr.to_ip()) {
            cluster_ip::UNALLOCATED
        } else {
            cluster_ip::FRONTEND
        })
    }

    /// All prefixes of CLUSTER_IPS, in any order.
    pub fn prefixes(&self) -> impl Iterator<Item = &Prefix<A>> {
        self.prefixes.keys()
    }

    fn update_port(
        &mut self,
        name: Arc<ServicePortName>,
        port: Option<DesiredPort<A>>,
        touched: &mut TouchedPorts<A>,
    ) {
        let known = self.ports.remove(&name);
        if known.as_deref() == port.as_ref() {
            self.ports.extend(known.map(|known| (name, known)));
            return;
        }
        for (frontend, port) in known.iter().flat_map(|port| port.claims()) {
            let claim = port.claim(&name, frontend.kind);
            self.change_claims(frontend.key, touched, |claims| {
                claims.retain(|known| *known != claim);
            });
            if has_own_address(frontend.kind) {
                let prefix = Prefix::host(frontend.key.addr);
                self.count_prefix(prefix, |users| users.frontends -= 1, touched);
            }
        }
        for (frontend, port) in port.iter().flat_map(|port| port.claims()) {
            let claim = port.claim(&name, frontend.kind);
            self.change_claims(frontend.key, touched, |claims| {
                if let Err(index) = claims.binary_search(&claim) {
                    claims.reserve_exact(1);
                    claims.insert(index, claim);
                }
            });
            if has_own_address(frontend.kind) {
                let prefix = Prefix::host(frontend.key.addr);
                self.count_prefix(prefix, |users| users.frontends += 1, touched);
            }
        }
        if let Some(port) = port {
            self.ports.insert(name.clone(), Box::new(port));
        }
        touched.ports.insert(name);
    }

    /// Changes who asks for a frontend; where that changes who gets it, both are touched.
    fn change_claims(
        &mut self,
        key: FrontendKey<A>,
        touched: &mut TouchedPorts<A>,
        change: impl FnOnce(&mut Vec<Claim>),
    ) {
        let claims = self.claims.entry(key).or_default();
        let before = claims.first().cloned();
        change(claims);
        let after = claims.first();
        if before.as_ref() != after {
            // Whoever changes its own claim touches itself.
            touched
                .ports
                .extend(before.iter().chain(after).map(|claim| claim.name.clone()));
        }
        if claims.is_empty() {
            self.claims.remove(&key);
        }
    }

    fn count_prefix(
        &mut self,
        prefix: Prefix<A>,
        change: impl FnOnce(&mut PrefixUsers),
        touched: &mut TouchedPorts<A>,
    ) -> PrefixUsers {
        let users = self.prefixes.entry(prefix).or_default();
        change(users);
        let users = *users;
        if users == PrefixUsers::default() {
            self.prefixes.remove(&prefix);
        }
        touched.prefixes.insert(prefix);
        users
    }

    /// What follows from the ServiceCIDRs.
    fn cover_anew(&mut self, touched: &mut TouchedPorts<A>) {
        let used = |users: fn(&PrefixUsers) -> u32| {
            let all = self.prefixes.iter();
            all.filter(move |(_, found)| users(found) > 0)
                .map(|(prefix, _)| prefix)
        };
        let cidrs = used(|users| users.service_cidrs);
        let cidrs = cidrs.filter_map(Prefix::to_net).collect();
        touched.prefixes.extend(used(|users| users.frontends));
        let addresses = used(|users| users.cluster_ips);
        self.cover
            .set_cidrs(cidrs, addresses.map(|prefix| prefix.addr.to_ip()));
    }
}

/// True for a frontend on an address that is neither a ClusterIP nor a node's.
fn has_own_address(kind: FrontendKind) -> bool {
    matches!(kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp)
}

impl<A: IpFamily> DesiredPort<A> {
    /// The policy that applies to a kind of frontend (S-071).
    pub fn policy(&self, kind: FrontendKind) -> TrafficPolicy {
        match kind {
            FrontendKind::ClusterIp => self.internal_policy,
            FrontendKind::NodePort | FrontendKind::ExternalIp | FrontendKind::LoadBalancer => {
                self.external_policy
            }
        }
    }

    fn claims(&self) -> impl Iterator<Item = (&DesiredFrontend<A>, &Self)> {
        self.frontends.iter().map(move |frontend| (frontend, self))
    }

    fn claim(&self, name: &Arc<ServicePortName>, kind: FrontendKind) -> Claim {
        Claim {
            kind_rank: kind_rank(kind),
            created: (self.created.is_none(), self.created.clone()),
            name: name.clone(),
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
