//! Section 2: which service ports and which frontends there are.

use std::net::IpAddr;

use proxy_common::FrontendKind;
use proxy_userspace::objects::{Service, ServicePortSpec};
use proxy_userspace::settings::ExternalIps;

use super::address::{Cidr, parse};
use super::{Family, Oracle, Protocol};

/// S-020: what names a service port; the port name may be empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortKey {
    /// Namespace.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Name of the port.
    pub port: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Family: everything is done per service port and family (terms).
    pub family: Family,
}

/// A service port in one family.
#[derive(Clone, Debug)]
pub struct Port<'a> {
    /// Its name.
    pub key: PortKey,
    /// Its Service.
    pub service: &'a Service,
    /// Its entry.
    pub spec: &'a ServicePortSpec,
    /// The Service's ClusterIP of the family.
    pub cluster_ip: IpAddr,
}

/// Whether a traffic policy is Local.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Cluster.
    Cluster,
    /// Local.
    Local,
}

/// What is dialed: an address, or any accepted node address.
#[derive(Clone, Debug)]
pub struct Frontend<'a> {
    /// Its kind.
    pub kind: FrontendKind,
    /// `None` for a NodePort.
    pub addr: Option<IpAddr>,
    /// Port.
    pub number: u16,
    /// Whose it is.
    pub port: Port<'a>,
}

impl Port<'_> {
    fn type_(&self) -> &str {
        self.service.spec.type_.as_deref().unwrap_or("ClusterIP")
    }

    /// S-026: Local only if the field says so.
    pub fn internal_policy(&self) -> Policy {
        match self.service.spec.internal_traffic_policy.as_deref() {
            Some("Local") => Policy::Local,
            _ => Policy::Cluster,
        }
    }

    /// S-027: Local counts only for LoadBalancer, NodePort, and ClusterIP with externalIPs.
    pub fn external_policy(&self) -> Policy {
        let spec = &self.service.spec;
        let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
        let counts = match self.type_() {
            "LoadBalancer" | "NodePort" => true,
            "ClusterIP" => !spec.external_ips.is_empty(),
            _ => false,
        };
        if is_local && counts {
            Policy::Local
        } else {
            Policy::Cluster
        }
    }

    /// S-024: the addresses of load balancers that are served, of this family.
    pub fn load_balancer_ips(&self) -> Vec<IpAddr> {
        let ingress = self.service.status.load_balancer.ingress.iter();
        ingress
            .filter(|entry| matches!(entry.ip_mode.as_deref(), None | Some("VIP")))
            .filter_map(|entry| parse(entry.ip.as_deref()?))
            .filter(|addr| Family::of(*addr) == self.key.family)
            .collect()
    }

    /// S-028: the source ranges of the family; `None`: everybody is allowed.
    pub fn source_ranges(&self) -> Option<Vec<Cidr>> {
        let entries = self.service.spec.load_balancer_source_ranges.iter();
        let ranges: Vec<Cidr> = entries
            .filter_map(|text| Cidr::parse(text.trim()))
            .filter(|range| range.family() == self.key.family)
            .collect();
        // S-028: a prefix length of 0 makes the list count as empty, as do entries of the other
        // family only.
        let is_open = ranges.is_empty() || ranges.iter().any(|range| range.len == 0);
        (!is_open).then_some(ranges)
    }

    /// S-032: the affinity timeout in seconds; `None`: no affinity.
    pub fn affinity_timeout_secs(&self) -> Option<u32> {
        if self.service.spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let config = self.service.spec.session_affinity_config.as_ref();
        let client_ip = config.and_then(|config| config.client_ip.as_ref());
        let timeout = client_ip.and_then(|client_ip| client_ip.timeout_seconds);
        Some(timeout.unwrap_or(10_800))
    }
}

impl Oracle {
    /// Every service port of a family.
    pub fn ports(&self, family: Family) -> Vec<Port<'_>> {
        let mut ports = Vec::new();
        for service in self.objects.services() {
            // S-021: without a ClusterIP of the family there is nothing at all.
            let Some(cluster_ip) = cluster_ip(service, family) else {
                continue;
            };
            for spec in &service.spec.ports {
                let Some(protocol) = Protocol::from_api(spec.protocol.as_deref()) else {
                    continue;
                };
                let key = PortKey {
                    namespace: service.metadata.namespace.clone(),
                    service: service.metadata.name.clone(),
                    port: spec.name.clone(),
                    protocol,
                    family,
                };
                ports.push(Port {
                    key,
                    service,
                    spec,
                    cluster_ip,
                });
            }
        }
        ports
    }

    /// Every frontend of a family, also those that lose against another (S-034).
    pub fn frontends(&self, family: Family) -> Vec<Frontend<'_>> {
        let mut frontends = Vec::new();
        for port in self.ports(family) {
            let mut add = |kind, addr, number| {
                let port = port.clone();
                frontends.push(Frontend {
                    kind,
                    addr,
                    number,
                    port,
                });
            };
            let number = port.spec.port;
            add(FrontendKind::ClusterIp, Some(port.cluster_ip), number);
            for addr in port.load_balancer_ips() {
                add(FrontendKind::LoadBalancer, Some(addr), number);
            }
            for addr in self.external_ips(port.service, family) {
                add(FrontendKind::ExternalIp, Some(addr), number);
            }
            // S-030, S-036: a nodePort for every family with a ClusterIP; 0 is none.
            if port.spec.node_port != 0 {
                add(FrontendKind::NodePort, None, port.spec.node_port);
            }
        }
        frontends
    }

    /// The frontend that a destination's exact address has, or its number as a NodePort (`None`).
    pub fn frontend(
        &self,
        family: Family,
        addr: Option<IpAddr>,
        number: u16,
        protocol: Protocol,
    ) -> Option<Frontend<'_>> {
        let candidates = self.frontends(family).into_iter().filter(|frontend| {
            frontend.addr == addr
                && frontend.number == number
                && frontend.port.key.protocol == protocol
        });
        // S-034: ClusterIP, then LB VIP, then externalIP; the oldest; namespace and name.
        candidates.min_by_key(|frontend| {
            let rank = match frontend.kind {
                FrontendKind::ClusterIp => 0,
                FrontendKind::LoadBalancer => 1,
                FrontendKind::ExternalIp => 2,
                FrontendKind::NodePort => 3,
            };
            let metadata = &frontend.port.service.metadata;
            (
                rank,
                metadata.creation_timestamp.clone(),
                metadata.namespace.clone(),
                metadata.name.clone(),
            )
        })
    }

    /// S-025: of the family; valid on every type; can be switched off.
    fn external_ips(&self, service: &Service, family: Family) -> Vec<IpAddr> {
        if self.settings.external_ips == ExternalIps::Ignore {
            return Vec::new();
        }
        let entries = service.spec.external_ips.iter();
        entries
            .filter_map(|text| parse(text))
            .filter(|addr| Family::of(*addr) == family)
            .collect()
    }
}

/// S-005, S-021: the ClusterIP of a family.
pub fn cluster_ip(service: &Service, family: Family) -> Option<IpAddr> {
    let spec = &service.spec;
    // S-005: clusterIP empty or None, or any ExternalName: ignored.
    let first = spec.cluster_ip.as_deref().unwrap_or("");
    if first.is_empty() || first == "None" || spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    if spec.ip_families.is_empty() {
        // S-021: clusterIP when its family fits.
        return parse(first).filter(|addr| Family::of(*addr) == family);
    }
    // S-021: clusterIPs[i] where ipFamilies[i] is the family; S-022: the order does not matter.
    let position = spec
        .ip_families
        .iter()
        .position(|name| name == family.name())?;
    let text = spec.cluster_ips.get(position)?;
    parse(text).filter(|addr| Family::of(*addr) == family)
}
