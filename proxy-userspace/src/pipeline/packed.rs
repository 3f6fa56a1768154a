//! Objects as the store keeps them: small, because there are as many as the cluster has.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use proxy_common::{Addr4, Addr6};

use crate::family::{IpFamily, protocol_number};
use crate::ip_text::parse_ip;
use crate::objects::{
    self, EndpointHints, EndpointSlice, Metadata, ObjectName, Service, ServiceSpec, ServiceStatus,
};

/// What is packed of a Service.
type Parts = (
    Option<String>,
    BTreeMap<String, String>,
    ServiceSpec,
    ServiceStatus,
);

/// A Service as bytes: its many texts in one allocation. Equal Services are equal bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackedService(Box<[u8]>);

impl PackedService {
    /// Packs what is read of a Service but for its name.
    pub fn pack(service: &Service) -> Self {
        let Metadata {
            annotations,
            creation_timestamp,
            ..
        } = &service.metadata;
        let parts = (
            creation_timestamp,
            annotations,
            &service.spec,
            &service.status,
        );
        let bytes = postcard::to_allocvec(&parts);
        let bytes = bytes.expect("texts, numbers and lists are always written");
        Self(bytes.into_boxed_slice())
    }

    /// The Service of this name again.
    pub fn unpack(&self, name: &ObjectName) -> Service {
        let read: Result<Parts, _> = postcard::from_bytes(&self.0);
        let (creation_timestamp, annotations, spec, status) = read.expect("written by `pack`");
        let metadata = Metadata {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            annotations,
            creation_timestamp,
            ..Metadata::default()
        };
        Service {
            metadata,
            spec,
            status,
        }
    }
}

/// An EndpointSlice, resolved as far as that needs nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// `IPv4`, `IPv6`, or nothing that is served.
    family: Option<Family>,
    /// Ports that can match a service port.
    pub ports: Arc<Vec<SlicePort>>,
    /// Endpoints with an address that packets may be sent to, in the slice's order.
    pub endpoints: Box<[SliceEndpoint]>,
    /// Addresses that cannot be used (S-050).
    unusable: Box<[String]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    V4,
    V6,
}

/// A port of a slice (S-043).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SlicePort {
    /// Its name, which may be empty.
    pub name: Box<str>,
    /// IP protocol.
    pub protocol: u8,
    /// Never 0.
    pub number: u16,
}

/// An endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceEndpoint {
    /// Its only address that is used (S-045), of the slice's family.
    pub addr: IpAddr,
    /// Ready; absent counts as true (S-046).
    pub is_ready: bool,
    /// Serving; absent counts as true.
    pub is_serving: bool,
    /// Terminating; absent counts as false.
    pub is_terminating: bool,
    /// The node it runs on.
    pub node_name: Option<Arc<String>>,
    /// Topology hints.
    pub hints: Option<Arc<EndpointHints>>,
}

impl Slice {
    /// True if its addresses are of this family.
    pub fn is_of<A: IpFamily>(&self) -> bool {
        match self.family {
            Some(Family::V4) => A::NAME == Addr4::NAME,
            Some(Family::V6) => A::NAME == Addr6::NAME,
            None => false,
        }
    }

    /// Addresses of its endpoints that cannot be used.
    pub fn unusable(&self) -> &[String] {
        &self.unusable
    }
}

/// Makes slices; texts that many of them have are kept once.
#[derive(Debug, Default)]
pub struct Packer {
    ports: Pool<Vec<SlicePort>>,
    nodes: Pool<String>,
    hints: Pool<EndpointHints>,
}

impl Packer {
    /// Packs a slice.
    pub fn pack(&mut self, slice: EndpointSlice) -> Slice {
        let (family, usable): (_, fn(&str) -> Option<IpAddr>) = match slice.address_type.as_str() {
            Addr4::NAME => (Some(Family::V4), usable::<Addr4>),
            Addr6::NAME => (Some(Family::V6), usable::<Addr6>),
            _ => (None, |_| None),
        };
        let mut endpoints = Vec::new();
        let mut unusable = Vec::new();
        if family.is_some() {
            endpoints.reserve_exact(slice.endpoints.len());
            for mut endpoint in slice.endpoints {
                match endpoint.addresses.first().map(|text| usable(text)) {
                    Some(Some(addr)) => endpoints.push(self.endpoint(addr, endpoint)),
                    Some(None) => unusable.push(endpoint.addresses.swap_remove(0)),
                    None => {}
                }
            }
        }
        let ports = slice.ports.into_iter().filter_map(port).collect();
        Slice {
            family,
            ports: self.ports.share(ports),
            endpoints: endpoints.into_boxed_slice(),
            unusable: unusable.into_boxed_slice(),
        }
    }

    fn endpoint(&mut self, addr: IpAddr, endpoint: objects::Endpoint) -> SliceEndpoint {
        let conditions = endpoint.conditions;
        SliceEndpoint {
            addr,
            is_ready: conditions.ready.unwrap_or(true),
            is_serving: conditions.serving.unwrap_or(true),
            is_terminating: conditions.terminating.unwrap_or(false),
            node_name: endpoint.node_name.map(|name| self.nodes.share(name)),
            hints: endpoint.hints.map(|hints| self.hints.share(hints)),
        }
    }
}

/// The address, unless no packet may be sent there (S-050).
fn usable<A: IpFamily>(text: &str) -> Option<IpAddr> {
    let addr = parse_ip(text).and_then(A::from_ip)?;
    let is_usable = !addr.is_loopback() && !addr.is_multicast() && addr != A::UNSPECIFIED;
    is_usable.then(|| addr.to_ip())
}

fn port(port: objects::EndpointPort) -> Option<SlicePort> {
    Some(SlicePort {
        protocol: protocol_number(port.protocol.as_deref())?,
        number: port.port.filter(|number| *number != 0)?,
        name: port.name?.into_boxed_str(),
    })
}

/// Values that are kept once however often they are asked for, as long as anybody has them.
#[derive(Debug)]
struct Pool<T> {
    all: HashSet<Arc<T>, RandomState>,
    /// When values that nobody has are looked for.
    sweep_at: usize,
}

/// Least size at which a pool is swept.
const SWEEP_MIN: usize = 1024;

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self {
            all: HashSet::default(),
            sweep_at: SWEEP_MIN,
        }
    }
}

impl<T: Eq + Hash> Pool<T> {
    fn share(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.all.get(&value) {
            return known.clone();
        }
        if self.all.len() >= self.sweep_at {
            self.all.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = SWEEP_MIN.max(2 * self.all.len());
        }
        let value = Arc::new(value);
        self.all.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{ServicePortSpec, SessionAffinityConfig};

    #[test]
    fn packed_service_is_the_same_again() {
        let name = ObjectName {
            namespace: "shop".into(),
            name: "web".into(),
        };
        let service = Service {
            metadata: Metadata {
                namespace: "shop".into(),
                name: "web".into(),
                creation_timestamp: Some("2024-01-01T00:00:00Z".into()),
                ..Metadata::default()
            },
            spec: ServiceSpec {
                type_: Some("LoadBalancer".into()),
                cluster_ips: vec!["10.96.1.1".into(), "fd00::1".into()],
                ports: vec![ServicePortSpec {
                    port: 80,
                    node_port: 30080,
                    ..ServicePortSpec::default()
                }],
                session_affinity_config: Some(SessionAffinityConfig::default()),
                ..ServiceSpec::default()
            },
            ..Service::default()
        };
        let packed = PackedService::pack(&service);
        assert_eq!(packed.unpack(&name), service);
        let mut other = service.clone();
        other.spec.ports[0].node_port += 1;
        assert_ne!(PackedService::pack(&other), packed);
    }

    #[test]
    fn pool_forgets_what_nobody_has() {
        let mut pool = Pool::default();
        let kept = pool.share(0);
        for value in 1..10 * SWEEP_MIN {
            pool.share(value);
        }
        assert!(pool.all.len() <= SWEEP_MIN);
        assert!(Arc::ptr_eq(&kept, &pool.share(0)));
    }
}
