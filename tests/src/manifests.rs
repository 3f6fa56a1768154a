//! Objects as a user writes them into files, for agents that read manifests.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::topology::addresses::{self, Addresses, FAMILIES, IpFamily, SERVICES4, SERVICES6};
use crate::topology::{Cluster, Node, Pod};
use crate::traffic::monotonic_ns;

/// A folder of manifests that agents follow.
#[derive(Clone, Debug)]
pub struct Manifests {
    dir: PathBuf,
}

/// A dual-stack Service with its endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, in namespace `demo`.
    pub name: String,
    /// Its ClusterIPs.
    pub addresses: Addresses,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Further fields of `spec`.
    pub spec: Value,
    /// The addresses that its load balancer gave it.
    pub ingress: Vec<IpAddr>,
}

/// One port of a Service; a port with a node port makes the Service a NodePort Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    /// TCP or UDP.
    pub protocol: &'static str,
    /// On the ClusterIP.
    pub port: u16,
    /// On nodes; 0: none.
    pub node_port: u16,
    /// On pods.
    pub target_port: u16,
}

/// One endpoint, in the slices of both families.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Where.
    pub addresses: Addresses,
    /// The node it is on.
    pub node: String,
    /// Its conditions.
    pub condition: Condition,
}

/// Conditions of an endpoint that occur together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Ready and serving.
    Ready,
    /// Neither ready nor serving.
    NotReady,
    /// Terminating, and still serving.
    Terminating,
}

impl Service {
    /// Service `number`, with the ClusterIPs of [`addresses::service`] and no ports.
    pub fn new(name: &str, number: u8) -> Self {
        Self {
            name: name.to_owned(),
            addresses: addresses::service(number),
            ports: Vec::new(),
            endpoints: Vec::new(),
            spec: json!({}),
            ingress: Vec::new(),
        }
    }

    /// Adds one port for TCP and the same for UDP.
    pub fn port(mut self, port: u16, node_port: u16, target_port: u16) -> Self {
        let of = |protocol| Port {
            protocol,
            port,
            node_port,
            target_port,
        };
        self.ports.extend(["TCP", "UDP"].map(of));
        self
    }

    /// Replaces all endpoints by these pods, all ready.
    pub fn pods<'a>(mut self, pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        let ready = |pod: &Pod| Endpoint {
            addresses: pod.addresses,
            node: pod.node.clone(),
            condition: Condition::Ready,
        };
        self.endpoints = pods.into_iter().map(ready).collect();
        self
    }

    /// Adds a pod in the network of `node`.
    pub fn on_node(mut self, node: &Node) -> Self {
        self.endpoints.push(Endpoint {
            addresses: node.addresses,
            node: node.name.clone(),
            condition: Condition::Ready,
        });
        self
    }

    /// Makes it a Service of type `LoadBalancer` with these addresses.
    pub fn balanced(mut self, addresses: Addresses) -> Self {
        self.ingress = FAMILIES.map(|family| addresses.of(family)).to_vec();
        self
    }

    /// Gives the endpoint that is `pod` another condition.
    pub fn with_condition(mut self, pod: &Pod, condition: Condition) -> Self {
        for endpoint in &mut self.endpoints {
            if endpoint.addresses == pod.addresses {
                endpoint.condition = condition;
            }
        }
        self
    }

    /// Adds fields of `spec`.
    pub fn spec(mut self, spec: Value) -> Self {
        self.spec = spec;
        self
    }

    /// Its ClusterIP of `family`.
    pub fn cluster_ip(&self, family: IpFamily) -> IpAddr {
        self.addresses.of(family)
    }

    /// The Service and its two slices.
    pub fn objects(&self) -> Vec<Value> {
        let slices = FAMILIES.map(|family| self.slice(family));
        [self.service()].into_iter().chain(slices).collect()
    }

    fn service(&self) -> Value {
        let node_ports = self.ports.iter().any(|port| port.node_port != 0);
        let ports = self.ports.iter().map(|port| {
            let mut object = json!({
                "name": port.name(),
                "protocol": port.protocol,
                "port": port.port,
                "targetPort": port.target_port,
            });
            if port.node_port != 0 {
                object["nodePort"] = port.node_port.into();
            }
            object
        });
        let mut spec = json!({
            "type": match (node_ports, self.ingress.is_empty()) {
                (_, false) => "LoadBalancer",
                (true, true) => "NodePort",
                (false, true) => "ClusterIP",
            },
            "clusterIP": self.addresses.v4,
            "clusterIPs": [self.addresses.v4.to_string(), self.addresses.v6.to_string()],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": ports.collect::<Vec<_>>(),
        });
        for (key, value) in self.spec.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let ingress = self.ingress.iter().map(|ip| json!({"ip": ip}));
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": "demo"},
            "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress.collect::<Vec<_>>()}},
        })
    }

    fn slice(&self, family: IpFamily) -> Value {
        let (kind, suffix) = match family {
            IpFamily::V4 => ("IPv4", "v4"),
            IpFamily::V6 => ("IPv6", "v6"),
        };
        let endpoints = self.endpoints.iter().map(|endpoint| {
            json!({
                "addresses": [endpoint.addresses.of(family)],
                "nodeName": endpoint.node,
                "conditions": endpoint.condition.object(),
            })
        });
        let ports = self.ports.iter().map(|port| {
            json!({"name": port.name(), "protocol": port.protocol, "port": port.target_port})
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{suffix}", self.name),
                "namespace": "demo",
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": kind,
            "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": ports.collect::<Vec<_>>(),
        })
    }
}

impl Port {
    fn name(&self) -> String {
        format!("{}-{}", self.protocol.to_lowercase(), self.port)
    }
}

impl Condition {
    fn object(self) -> Value {
        let (ready, serving, terminating) = match self {
            Self::Ready => (true, true, false),
            Self::NotReady => (false, false, false),
            Self::Terminating => (false, true, true),
        };
        json!({"ready": ready, "serving": serving, "terminating": terminating})
    }
}

impl Manifests {
    /// Makes the folder for `cluster`, with its nodes and its service ranges in it.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let dir = cluster.sandbox().dir().join("manifests");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let manifests = Self { dir };
        let mut objects = vec![json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": [SERVICES4, SERVICES6]},
        })];
        for node in &cluster.nodes {
            let pods = addresses::pod(node.number, 0);
            let internal =
                |family| json!({"type": "InternalIP", "address": node.addresses.of(family)});
            objects.push(json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node.name},
                "spec": {"podCIDRs": [format!("{}/24", pods.v4), format!("{}/64", pods.v6)]},
                "status": {"addresses": FAMILIES.map(internal)},
            }));
        }
        manifests.write("cluster", &objects)?;
        Ok(manifests)
    }

    /// A folder of manifests that is there already.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a Service with its slices to one file, replacing what the file had, and returns the
    /// time of the completed write in nanoseconds of CLOCK_MONOTONIC.
    pub fn apply(&self, service: &Service) -> Result<u64> {
        self.write(&service.name, &service.objects())
    }

    /// Removes the file of a Service.
    pub fn delete(&self, service: &Service) -> Result<()> {
        let path = self.path(&service.name);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// Writes `objects` to the file `name`, at once: readers see all or none.
    pub fn write(&self, name: &str, objects: &[Value]) -> Result<u64> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let (path, unfinished) = (self.path(name), self.dir.with_extension("unfinished"));
        fs::write(&unfinished, serde_json::to_vec_pretty(&list)?)
            .and_then(|()| fs::rename(&unfinished, &path))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(monotonic_ns())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }
}
