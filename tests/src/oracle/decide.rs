//! Sections 5 to 7 and 9 to 11: what happens to a packet that starts a flow.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proxy_common::FrontendKind;
use proxy_userspace::settings::{DetectLocalMode, Masquerade, NodePortAddress};

use super::address::Cidr;
use super::endpoint::Sets;
use super::service::{Frontend, Policy, PortKey, cluster_ip};
use super::{Family, Oracle, Protocol};

/// Where a packet enters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// By the interface of a pod of this node.
    Pod,
    /// Sent by a process of this node.
    Node,
    /// From anywhere else.
    External,
}

/// A packet that starts a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Where it enters.
    pub from: From,
    /// The interface that it enters by; `None` for one of this node's processes.
    pub interface: Option<String>,
}

/// What happens to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The destination becomes a backend.
    Dnat,
    /// An ICMP error or TCP RST answers it (S-104).
    Reject,
    /// It is discarded silently.
    Drop,
    /// It is not ours.
    None,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// Whose frontend it is.
    pub service: Option<PortKey>,
    /// Which kind of frontend.
    pub kind: Option<FrontendKind>,
    /// The backends that may be chosen, and whether S-091 demands SNAT for each.
    pub backends: BTreeMap<SocketAddr, bool>,
    /// S-102: the affinity timeout in seconds.
    pub affinity_secs: Option<u32>,
}

/// A backend choice before one is chosen.
struct Choice {
    /// Cluster or Local set (S-071).
    set: Policy,
    /// The row of S-091 without its last line.
    snat: bool,
}

impl Decision {
    fn without_frontend(verdict: Verdict) -> Self {
        Self {
            verdict,
            service: None,
            kind: None,
            backends: BTreeMap::new(),
            affinity_secs: None,
        }
    }
}

impl Oracle {
    /// S-075: the order for a packet that starts a flow.
    pub fn decide(&self, packet: &Packet) -> Decision {
        if let Some(frontend) = self.dialed(packet.dst, packet.protocol) {
            return self.decide_frontend(packet, &frontend);
        }
        let dst = packet.dst.ip();
        let family = Family::of(dst);
        // (d), S-077: any protocol or port on an active ClusterIP, also an echo request.
        let mut services = self.objects.services();
        if services.any(|service| cluster_ip(service, family) == Some(dst)) {
            return Decision::without_frontend(Verdict::Reject);
        }
        // (e), S-078, S-079: all CIDRs of all ServiceCIDRs count; the exemption switch.
        let cidrs = self.objects.service_cidrs();
        let mut cidrs = cidrs.flat_map(|object| object.spec.cidrs.iter());
        let is_inside = cidrs.any(|text| Cidr::parse(text).is_some_and(|cidr| cidr.contains(dst)));
        if is_inside && !self.settings.keep_unallocated {
            return Decision::without_frontend(Verdict::Drop);
        }
        // (f).
        Decision::without_frontend(Verdict::None)
    }

    /// S-075 (b) and (c): the frontend that a packet dials.
    pub(crate) fn dialed(&self, dst: SocketAddr, protocol: Protocol) -> Option<Frontend<'_>> {
        // An echo request has no port (S-077).
        if protocol == Protocol::Echo {
            return None;
        }
        let (addr, number) = (dst.ip(), dst.port());
        let family = Family::of(addr);
        // S-035, S-087: the exact address first.
        let exact = self.frontend(family, Some(addr), number, protocol);
        exact.or_else(|| {
            // S-119c: only where NodePorts are accepted.
            let is_accepted = self.accepts_node_ports(addr);
            is_accepted
                .then(|| self.frontend(family, None, number, protocol))
                .flatten()
        })
    }

    fn decide_frontend(&self, packet: &Packet, frontend: &Frontend<'_>) -> Decision {
        let port = &frontend.port;
        let mut decision = Decision {
            service: Some(port.key.clone()),
            kind: Some(frontend.kind),
            affinity_secs: port.affinity_timeout_secs(),
            ..Decision::without_frontend(Verdict::Drop)
        };
        // S-075 (a), S-113, S-116, S-117: the source ranges come first.
        if !self.is_source_allowed(packet, frontend) {
            return decision;
        }
        let sets = self.sets(port);
        // S-105: no endpoints at all refuse everybody, whatever the policies.
        if !sets.has_endpoints {
            decision.verdict = Verdict::Reject;
            return decision;
        }
        let choice = self.choose(packet, frontend);
        let set = match choice.set {
            Policy::Cluster => &sets.cluster,
            Policy::Local => &sets.local,
        };
        // S-106, S-107: an empty Local set drops.
        if set.is_empty() {
            return decision;
        }
        decision.verdict = Verdict::Dnat;
        let endpoints = self.endpoints(port);
        decision.backends = set
            .iter()
            .map(|at| {
                let is_local = endpoints[at].is_local;
                (
                    *at,
                    self.is_snat(packet, frontend, &choice, (*at, is_local)),
                )
            })
            .collect();
        decision
    }

    /// S-071, S-080, S-081 and the rows of S-091.
    fn choose(&self, packet: &Packet, frontend: &Frontend<'_>) -> Choice {
        let is_pod = self.is_pod(packet);
        if frontend.kind == FrontendKind::ClusterIp {
            let snat = match (self.settings.masquerade_all, is_pod) {
                // S-092.
                (true, _) => true,
                // Detector present, and it does not say pod.
                (false, Some(false)) => true,
                // S-090; detector absent.
                (false, Some(true) | None) => false,
            };
            // S-093: the internal policy does not matter for SNAT.
            let set = frontend.port.internal_policy();
            return Choice { set, snat };
        }
        let (set, snat) = match frontend.port.external_policy() {
            // S-080.
            Policy::Cluster => (Policy::Cluster, true),
            // S-081 (1).
            Policy::Local if is_pod == Some(true) => (Policy::Cluster, false),
            // S-081 (2), S-085.
            Policy::Local if self.is_own(packet.src.ip()) => (Policy::Cluster, true),
            // S-081 (3), S-082.
            Policy::Local => (Policy::Local, false),
        };
        Choice { set, snat }
    }

    /// The answer of S-091 for one backend, under the masquerade mode in force.
    fn is_snat(
        &self,
        packet: &Packet,
        frontend: &Frontend<'_>,
        choice: &Choice,
        (backend, is_local): (SocketAddr, bool),
    ) -> bool {
        // S-091, last row; S-094: hairpin on top of any other.
        if backend.ip() == packet.src.ip() {
            return true;
        }
        // S-091 under `needed`: a backend on this node, and traffic from outside of the node.
        let is_all = self.settings.masquerade_all && frontend.kind == FrontendKind::ClusterIp;
        let is_needless = self.settings.masquerade == Masquerade::Needed
            && is_local
            && packet.from == From::External
            && !is_all;
        choice.snat && !is_needless
    }

    /// S-083: what the detector says; `None` where there is none for the family.
    fn is_pod(&self, packet: &Packet) -> Option<bool> {
        let src = packet.src.ip();
        let family = Family::of(src);
        let first = |cidrs: Vec<Cidr>| cidrs.into_iter().find(|cidr| cidr.family() == family);
        match &self.settings.detect_local {
            DetectLocalMode::None => None,
            // The first CIDR of the family; none: no detector.
            DetectLocalMode::ClusterCidr => {
                let cidrs = self.settings.cluster_cidrs.iter();
                let cidrs = cidrs.map(|net| Cidr::new(net.addr(), net.prefix_len().into()));
                first(cidrs.collect()).map(|cidr| cidr.contains(src))
            }
            DetectLocalMode::NodeCidr => {
                let node = self.objects.node(&self.settings.node_name);
                let texts = node.map(|node| node.spec.pod_cidrs.clone());
                let cidrs = texts.unwrap_or_default();
                let cidrs = cidrs.iter().filter_map(|text| Cidr::parse(text));
                first(cidrs.collect()).map(|cidr| cidr.contains(src))
            }
            // A packet of this node has no input interface.
            DetectLocalMode::BridgeInterface(name) => Some(packet.interface.as_ref() == Some(name)),
            DetectLocalMode::InterfaceNamePrefix(prefix) => {
                let interface = packet.interface.as_ref();
                Some(interface.is_some_and(|name| name.starts_with(prefix)))
            }
        }
    }

    /// S-112 to S-114.
    fn is_source_allowed(&self, packet: &Packet, frontend: &Frontend<'_>) -> bool {
        // S-112: load balancer addresses only.
        if frontend.kind != FrontendKind::LoadBalancer {
            return true;
        }
        let Some(ranges) = frontend.port.source_ranges() else {
            return true;
        };
        // S-113: whoever sends it.
        let src = packet.src.ip();
        if ranges.iter().any(|range| range.contains(src)) {
            return true;
        }
        // S-114: a range with this node's primary address lets the Service's own VIPs in.
        let primary = self.primary(frontend.port.key.family);
        let has_node = primary.is_some_and(|addr| ranges.iter().any(|range| range.contains(addr)));
        has_node && frontend.port.load_balancer_ips().contains(&src)
    }

    /// S-118 to S-119c: true if NodePorts are served on the address.
    pub fn accepts_node_ports(&self, addr: IpAddr) -> bool {
        // S-119b: whatever is local to this node, but for loopback.
        if addr.is_loopback() || !self.own.contains(&addr) {
            return false;
        }
        let family = Family::of(addr);
        let primary = [NodePortAddress::Primary];
        let entries = match self.settings.node_port_addresses.as_slice() {
            // S-118: the default.
            [] => &primary[..],
            entries => entries,
        };
        let cidrs = entries.iter().flat_map(|entry| self.cidrs_of(entry));
        let cidrs: Vec<Cidr> = cidrs.filter(|cidr| cidr.family() == family).collect();
        // S-119a: none left, or a prefix of length 0: every local address.
        cidrs.is_empty()
            || cidrs.iter().any(|cidr| cidr.len == 0)
            || cidrs.iter().any(|cidr| cidr.contains(addr))
    }

    /// S-118: an entry as CIDRs.
    fn cidrs_of(&self, entry: &NodePortAddress) -> Vec<Cidr> {
        let cidr = |text| Cidr::parse(text).expect("a constant");
        match entry {
            // Families whose address is unknown or loopback are left out.
            NodePortAddress::Primary => {
                let addresses = Family::ALL
                    .into_iter()
                    .filter_map(|family| self.primary(family));
                let addresses = addresses.filter(|addr| !addr.is_loopback());
                addresses
                    .map(|addr| Cidr::new(addr, if addr.is_ipv4() { 32 } else { 128 }))
                    .collect()
            }
            NodePortAddress::Localhost => vec![cidr("127.0.0.0/8"), cidr("::1/128")],
            NodePortAddress::All => vec![cidr("0.0.0.0/0"), cidr("::/0")],
            NodePortAddress::Cidr(net) => vec![Cidr::new(net.addr(), net.prefix_len().into())],
        }
    }

    /// The endpoints that a new flow of a service port may get, and what S-124 asks of old ones.
    pub fn sets_of(&self, key: &PortKey) -> Option<Sets> {
        let ports = self.ports(key.family);
        let port = ports.iter().find(|port| port.key == *key)?;
        Some(self.sets(port))
    }

    /// S-124: true if the endpoint is ready or serving in the service port; `None` where there is
    /// no such port.
    pub fn is_kept(&self, key: &PortKey, at: SocketAddr) -> Option<bool> {
        let ports = self.ports(key.family);
        let port = ports.iter().find(|port| port.key == *key)?;
        let endpoints = self.endpoints(port);
        let endpoint = endpoints.get(&at);
        Some(endpoint.is_some_and(|endpoint| endpoint.is_ready || endpoint.is_serving))
    }
}
