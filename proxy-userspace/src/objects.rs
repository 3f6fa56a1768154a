//! The API objects as far as shunt reads them: trimmed at decoding, so that a field nobody uses
//! never takes memory. Field meanings are those of the Kubernetes API (core/v1,
//! discovery.k8s.io/v1, networking.k8s.io/v1); which are read, and which on purpose are not, is in
//! the rules S-0xx.

mod fields;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `metadata`, trimmed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels, as far as they are read.
    #[serde(deserialize_with = "fields::labels_read")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, as far as they are read.
    #[serde(deserialize_with = "fields::annotations_read")]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339; decides collisions (S-034).
    pub creation_timestamp: Option<String>,
    /// Set while the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// Opaque version of the object.
    pub resource_version: Option<String>,
}

/// A v1 Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Metadata.
    pub metadata: Metadata,
    /// Spec.
    pub spec: ServiceSpec,
    /// Status.
    pub status: ServiceStatus,
}

/// `spec` of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// ClusterIP, NodePort, LoadBalancer or ExternalName; absent: ClusterIP.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// First ClusterIP, `None` or empty.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// ClusterIPs by family.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Families of `cluster_ips`, in its order.
    pub ip_families: Vec<String>,
    /// External addresses.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePortSpec>,
    /// Cluster or Local.
    pub internal_traffic_policy: Option<String>,
    /// Cluster or Local.
    pub external_traffic_policy: Option<String>,
    /// Client CIDRs of load balancer frontends.
    pub load_balancer_source_ranges: Vec<String>,
    /// Port of the service health check.
    pub health_check_node_port: u16,
    /// None or ClientIP.
    pub session_affinity: Option<String>,
    /// Affinity timeout.
    pub session_affinity_config: Option<SessionAffinityConfig>,
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePortSpec {
    /// Name; may be empty in a Service with one port.
    pub name: String,
    /// TCP, UDP or SCTP; absent: TCP.
    pub protocol: Option<String>,
    /// Port of every frontend but NodePort.
    pub port: u16,
    /// NodePort; 0: none.
    pub node_port: u16,
}

/// `spec.sessionAffinityConfig`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    /// For ClientIP.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// 1 to 86,400; absent: 10,800 (S-032).
    pub timeout_seconds: Option<u32>,
}

/// `status` of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// Load balancer addresses.
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    /// Its addresses.
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One address of a load balancer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// Address; absent where there is only a hostname.
    pub ip: Option<String>,
    /// VIP (or absent) or Proxy (S-024).
    pub ip_mode: Option<String>,
}

/// A discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Metadata; the label `kubernetes.io/service-name` names the Service.
    pub metadata: Metadata,
    /// IPv4, IPv6 or FQDN.
    pub address_type: String,
    /// Endpoints; `null` is an empty list.
    #[serde(deserialize_with = "fields::null_as_default")]
    pub endpoints: Vec<Endpoint>,
    /// Ports; `null` is an empty list.
    #[serde(deserialize_with = "fields::null_as_default")]
    pub ports: Vec<EndpointPort>,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Only the first is used (S-045).
    pub addresses: Vec<String>,
    /// Conditions.
    pub conditions: EndpointConditions,
    /// The node it runs on (S-048).
    pub node_name: Option<String>,
    /// Topology hints.
    pub hints: Option<EndpointHints>,
}

/// Conditions of an endpoint, with the meaning of absence in S-046.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointConditions {
    /// Absent: true.
    pub ready: Option<bool>,
    /// Absent: true.
    pub serving: Option<bool>,
    /// Absent: false.
    pub terminating: Option<bool>,
}

/// `hints` of an endpoint.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    /// Zones that should use it.
    #[serde(deserialize_with = "fields::null_as_default")]
    pub for_zones: Vec<HintName>,
    /// Nodes that should use it.
    #[serde(deserialize_with = "fields::null_as_default")]
    pub for_nodes: Vec<HintName>,
}

/// One name of a hint.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HintName {
    /// Zone or node.
    pub name: String,
}

/// One port of a slice.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Absent: ignored; empty is a name (S-043).
    pub name: Option<String>,
    /// Absent: TCP.
    pub protocol: Option<String>,
    /// Absent or 0: ignored.
    pub port: Option<u16>,
}

/// A v1 Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// Metadata; the label `topology.kubernetes.io/zone` is the zone.
    pub metadata: Metadata,
    /// Spec.
    pub spec: NodeSpec,
    /// Status.
    pub status: NodeStatus,
}

/// `spec` of a Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Pod CIDRs of the node (NodeCIDR mode).
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// The first of them; alone in files that no API server has completed.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// Taints (S-145).
    pub taints: Vec<Taint>,
}

impl NodeSpec {
    /// The pod CIDRs.
    pub fn networks(&self) -> &[String] {
        match (self.pod_cidrs.as_slice(), &self.pod_cidr) {
            ([], Some(first)) => std::slice::from_ref(first),
            (all, _) => all,
        }
    }
}

/// A taint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its key.
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Addresses (S-171).
    pub addresses: Vec<NodeAddress>,
}

/// One address of a Node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAddress {
    /// InternalIP, ExternalIP, Hostname ...
    #[serde(rename = "type")]
    pub type_: String,
    /// Text.
    pub address: String,
}

/// A networking.k8s.io/v1 ServiceCIDR.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceCidr {
    /// Metadata.
    pub metadata: Metadata,
    /// Spec.
    pub spec: ServiceCidrSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceCidrSpec {
    /// One or two CIDRs.
    pub cidrs: Vec<String>,
}

/// Which watched kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// v1 Node.
    Node,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
}

/// A decoded object of any watched kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A Node.
    Node(Node),
    /// A ServiceCIDR.
    ServiceCidr(ServiceCidr),
}

/// Namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectName {
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What a source (API server or manifests) tells the agent. The order of one list is
/// `Restarted`, any number of `Applied`, `Listed`: what was known and not seen again is gone.
#[expect(
    clippy::large_enum_variant,
    reason = "an object is moved once, from its source to the store; a box would cost more"
)]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ObjectEvent {
    /// A complete list of this kind begins.
    Restarted(Kind),
    /// The object exists and looks like this.
    Applied(Object),
    /// The object is gone, or hidden by a label (S-002, S-004).
    Deleted(Kind, ObjectName),
    /// The list that `Restarted` began is complete.
    Listed(Kind),
    /// A file is read again, or is gone: what was `Rejected` in it holds only if it is said again.
    Reread {
        /// The file.
        place: String,
    },
    /// An object could not be decoded: `place` says file, line and field, or the API path. What was
    /// known of it stays as it is, and everything else goes on.
    Rejected {
        /// The object, where it could be told.
        object: Option<(Kind, ObjectName)>,
        /// File and line, or API path.
        place: String,
        /// What is wrong, with the field.
        error: String,
    },
}

impl Object {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::ServiceCidr(object) => &object.metadata,
        }
    }
}
