//! One Service and its slices -> its service ports in one family.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use proxy_common::FrontendKind;

use super::maglev::Algorithm;
use super::node::NodeFacts;
use super::{
    DesiredFrontend, DesiredPort, DesiredService, ServicePortName, TrafficPolicy, endpoints,
};
use crate::family::{IpFamily, Prefix, frontend_key, protocol_number};
use crate::ip_text::{parse_cidr, parse_ip};
use crate::objects::{ObjectName, Service, ServicePortSpec};
use crate::pipeline::packed::Slice;
use crate::settings::{ExternalIps, Settings};
use crate::sorted::SortedMap;

/// Affinity timeout when the field is absent (S-032).
const AFFINITY_TIMEOUT_DEFAULT_SECS: u32 = 10_800;

/// What a Service is computed from, beside itself.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The operator's decisions.
    pub settings: &'a Settings,
    /// The own node.
    pub node: &'a NodeFacts,
}

/// Computes a Service in one family, or `None` where it has nothing there (S-005, S-021).
/// Entries that cannot be used are left out one by one and described in `problems` (S-012).
pub fn desired<'a, A: IpFamily>(
    name: &Arc<ObjectName>,
    service: &Service,
    slices: impl Iterator<Item = (&'a str, &'a Slice)> + Clone,
    context: Context<'_>,
    problems: &mut Vec<String>,
) -> Option<DesiredService<A>> {
    if service.spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let cluster_ip = cluster_ip::<A>(service, problems)?;
    let addresses = Addresses::of(service, cluster_ip, context.settings, problems);
    let ranges = source_ranges::<A>(service, problems);
    let algorithm = Algorithm::of(&service.metadata, problems);
    let mut ports: SortedMap<Arc<ServicePortName>, DesiredPort<A>> = SortedMap::new();
    for spec in &service.spec.ports {
        let Some(name) = port_name(name, spec, problems) else {
            continue;
        };
        let merged = endpoints::merge::<A>(&name, slices.clone(), context.node, problems);
        let mut port = port(
            service,
            spec.node_port != 0,
            &addresses,
            &merged,
            context.node,
        );
        port.frontends = addresses.frontends(spec, name.protocol);
        let has = |is_wanted: fn(FrontendKind) -> bool| {
            let mut kinds = port.frontends.iter().map(|frontend| frontend.kind);
            kinds.any(is_wanted)
        };
        if has(|kind| kind != FrontendKind::ClusterIp) {
            port.tables = algorithm.tables(&port.cluster, &port.local);
        }
        if has(|kind| kind == FrontendKind::LoadBalancer) {
            port.source_ranges_have_node = contains_node(&ranges, context.node);
            port.source_ranges = ranges.clone();
        }
        let name = Arc::new(name);
        if ports.contains_key(&name) {
            problems.push(format!("spec.ports: {:?} is there twice", spec.name));
            continue;
        }
        ports.insert(name, port);
    }
    Some(DesiredService { ports, cluster_ip })
}

/// The port of the service health check, where there is one (S-029).
pub fn health_check_port(service: &Service) -> Option<u16> {
    let is_load_balancer = service.spec.type_.as_deref() == Some("LoadBalancer");
    let is_local = external_policy(service) == TrafficPolicy::Local;
    let port = service.spec.health_check_node_port;
    (is_load_balancer && is_local && port != 0).then_some(port)
}

/// The frontend addresses of a Service in one family.
struct Addresses<A> {
    cluster_ip: A,
    load_balancer: Vec<A>,
    external: Vec<A>,
}

impl<A: IpFamily> Addresses<A> {
    fn of(
        service: &Service,
        cluster_ip: A,
        settings: &Settings,
        problems: &mut Vec<String>,
    ) -> Self {
        let ingress = service.status.load_balancer.ingress.iter();
        // S-024: only addresses, and only where the node is meant to serve them.
        let vips = ingress
            .filter(|entry| matches!(entry.ip_mode.as_deref(), None | Some("" | "VIP")))
            .filter_map(|entry| entry.ip.as_deref());
        let external = match settings.external_ips {
            ExternalIps::Serve => service.spec.external_ips.as_slice(),
            ExternalIps::Ignore => &[],
        };
        let external = external.iter().map(String::as_str);
        Self {
            cluster_ip,
            load_balancer: usable(vips, "status.loadBalancer.ingress", problems),
            external: usable(external, "spec.externalIPs", problems),
        }
    }

    /// The frontends of one port: those that the Service itself asks for twice only once.
    fn frontends(&self, spec: &ServicePortSpec, protocol: u8) -> Vec<DesiredFrontend<A>> {
        let of = |addr: A, port: u16, kind: FrontendKind| DesiredFrontend {
            key: frontend_key(addr, port, protocol),
            kind,
        };
        let mut all = vec![of(self.cluster_ip, spec.port, FrontendKind::ClusterIp)];
        let vips = self.load_balancer.iter();
        all.extend(vips.map(|addr| of(*addr, spec.port, FrontendKind::LoadBalancer)));
        let external = self.external.iter();
        all.extend(external.map(|addr| of(*addr, spec.port, FrontendKind::ExternalIp)));
        if spec.node_port != 0 {
            all.push(of(A::UNSPECIFIED, spec.node_port, FrontendKind::NodePort));
        }
        all.sort_by_key(|frontend| (frontend.key, kind_rank(frontend.kind)));
        all.dedup_by_key(|frontend| frontend.key);
        all
    }
}

/// Less wins (S-034). A NodePort's key has no address, so it meets only NodePorts.
pub fn kind_rank(kind: FrontendKind) -> u8 {
    match kind {
        FrontendKind::ClusterIp => 0,
        FrontendKind::LoadBalancer => 1,
        FrontendKind::ExternalIp => 2,
        FrontendKind::NodePort => 3,
    }
}

/// The record of one port but for its frontends and source ranges.
fn port<A: IpFamily>(
    service: &Service,
    has_node_port: bool,
    addresses: &Addresses<A>,
    merged: &endpoints::Endpoints<'_, A>,
    node: &NodeFacts,
) -> DesiredPort<A> {
    let internal_policy = policy(service.spec.internal_traffic_policy.as_deref());
    let external_policy = external_policy(service);
    let is_external =
        has_node_port || !addresses.load_balancer.is_empty() || !addresses.external.is_empty();
    let mut sets = endpoints::sets(merged, node);
    // S-033: a set that nothing uses is left empty.
    if internal_policy == TrafficPolicy::Local && !is_external {
        sets.cluster = Arc::default();
    }
    let external_is_local = external_policy == TrafficPolicy::Local && is_external;
    if internal_policy == TrafficPolicy::Cluster && !external_is_local {
        sets.local = Arc::default();
    }
    let affinity_timeout_secs = affinity_timeout_secs(service);
    let mut backends = endpoints::backends(merged);
    if affinity_timeout_secs != 0 {
        endpoints::enter_sets(&mut backends, [&sets.cluster, &sets.local]);
    }
    DesiredPort {
        created: service
            .metadata
            .creation_timestamp
            .as_deref()
            .map(Arc::from),
        frontends: Vec::new(),
        backends,
        cluster: sets.cluster,
        local: sets.local,
        tables: None,
        has_endpoints: sets.has_endpoints,
        internal_policy,
        external_policy,
        affinity_timeout_secs,
        source_ranges: BTreeSet::new(),
        source_ranges_have_node: false,
    }
}

/// The ClusterIP of one family (S-021).
fn cluster_ip<A: IpFamily>(service: &Service, problems: &mut Vec<String>) -> Option<A> {
    let spec = &service.spec;
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    if first.is_empty() || first == "None" {
        return None;
    }
    let text = match spec.ip_families.iter().position(|family| family == A::NAME) {
        Some(index) if index < spec.cluster_ips.len() => spec.cluster_ips[index].as_str(),
        // The only family, with the address in the older field alone.
        Some(0) if spec.ip_families.len() == 1 => first,
        Some(_) => return None,
        None if spec.ip_families.is_empty() => first,
        None => return None,
    };
    usable([text].into_iter(), "spec.clusterIPs", problems).pop()
}

/// Addresses of this family that may be frontends; blank entries are silent (S-012), and so are
/// those of the other family.
fn usable<'a, A: IpFamily>(
    texts: impl Iterator<Item = &'a str>,
    field: &str,
    problems: &mut Vec<String>,
) -> Vec<A> {
    let mut usable = Vec::new();
    for text in texts.map(str::trim).filter(|text| !text.is_empty()) {
        let ip: Option<IpAddr> = parse_ip(text);
        let Some(ip) = ip else {
            problems.push(format!("{field}: {text:?} is no address"));
            continue;
        };
        let Some(addr) = A::from_ip(ip) else { continue };
        if ip.is_unspecified() || ip.is_loopback() || addr.is_multicast() {
            problems.push(format!("{field}: {text} cannot be served"));
            continue;
        }
        usable.push(addr);
    }
    usable
}

/// The identity of one port, or `None` where it cannot be served.
fn port_name(
    service: &Arc<ObjectName>,
    spec: &ServicePortSpec,
    problems: &mut Vec<String>,
) -> Option<ServicePortName> {
    let Some(protocol) = protocol_number(spec.protocol.as_deref()) else {
        problems.push(format!("spec.ports: unknown protocol {:?}", spec.protocol));
        return None;
    };
    if spec.port == 0 {
        problems.push(format!("spec.ports: {:?} has no port number", spec.name));
        return None;
    }
    Some(ServicePortName {
        service: service.clone(),
        port: spec.name.clone(),
        protocol,
    })
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    match text {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    }
}

/// S-027: old objects carry the field where it has no meaning.
fn external_policy(service: &Service) -> TrafficPolicy {
    let spec = &service.spec;
    match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => policy(spec.external_traffic_policy.as_deref()),
        None | Some("" | "ClusterIP") if !spec.external_ips.is_empty() => {
            policy(spec.external_traffic_policy.as_deref())
        }
        _ => TrafficPolicy::Cluster,
    }
}

fn affinity_timeout_secs(service: &Service) -> u32 {
    if service.spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = service.spec.session_affinity_config.as_ref();
    let client_ip = config.and_then(|config| config.client_ip.as_ref());
    client_ip
        .and_then(|client_ip| client_ip.timeout_seconds)
        .filter(|secs| *secs != 0)
        .unwrap_or(AFFINITY_TIMEOUT_DEFAULT_SECS)
}

/// `loadBalancerSourceRanges` of this family; empty allows everybody (S-028).
fn source_ranges<A: IpFamily>(
    service: &Service,
    problems: &mut Vec<String>,
) -> BTreeSet<Prefix<A>> {
    let mut ranges = BTreeSet::new();
    for text in &service.spec.load_balancer_source_ranges {
        let text = text.trim();
        match parse_cidr(text) {
            Some(net) => ranges.extend(Prefix::<A>::from_net(&net)),
            None if text.is_empty() => {}
            None => {
                problems.push(format!(
                    "spec.loadBalancerSourceRanges: {text:?} is no CIDR"
                ));
            }
        }
    }
    if ranges.iter().any(|range| range.len == 0) {
        ranges.clear();
    }
    ranges
}

/// S-114: a range contains the primary address of this node.
fn contains_node<A: IpFamily>(ranges: &BTreeSet<Prefix<A>>, node: &NodeFacts) -> bool {
    let Some(primary) = node.primary::<A>() else {
        return false;
    };
    ranges.iter().any(|range| {
        let len = u8::try_from(range.len).unwrap_or(u8::MAX);
        let net = ipnet::IpNet::new(range.addr.to_ip(), len);
        net.is_ok_and(|net| net.contains(&primary.to_ip()))
    })
}
