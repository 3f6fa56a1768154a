//! A cluster of any size, one object after the other: nothing of it is kept.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Endpoints in one slice, as the controller makes them.
const SLICE_MAX: u32 = 100;
/// Endpoints of one Service that have an address of their own range.
const STRIDE: u32 = 1 << 10;
/// Nodes that the endpoints are spread over.
const NODES: u32 = 100;
/// The namespace of all objects.
pub const NAMESPACE: &str = "bench";
/// The port of every Service.
pub const PORT: u16 = 80;

/// How many objects.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services.
    pub services: u32,
    /// Endpoints in total, spread evenly.
    pub endpoints: u32,
}

impl Size {
    /// Endpoints of one Service.
    pub fn endpoints_of(self, service: u32) -> u32 {
        let (each, more) = (
            self.endpoints / self.services,
            self.endpoints % self.services,
        );
        each + u32::from(service < more)
    }

    /// The slices of a Service, as the first list has them.
    pub fn slices(self, service: u32) -> impl Iterator<Item = Value> {
        let count = self.endpoints_of(service).div_ceil(SLICE_MAX);
        (0..count).map(move |index| slice(self, service, index, 0))
    }

    /// Services in an order that jumps about.
    pub fn spread(self, change: u32) -> u32 {
        (u64::from(change) * 7919 % u64::from(self.services)) as u32
    }

    /// The addresses behind a Service after a number of changes.
    pub fn backends(self, service: u32, round: u32) -> BTreeSet<Ipv4Addr> {
        let all = 0..self.endpoints_of(service);
        all.map(|position| endpoint(service, position, round))
            .collect()
    }
}

/// A ClusterIP Service of one port, as the API server stores it.
pub fn service(number: u32) -> Value {
    let address = cluster_ip(number).to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name(number), "namespace": NAMESPACE,
            "labels": {"app": name(number)},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": 8080}],
        },
    })
}

/// One slice of a Service. `round` counts the changes of its first endpoint.
pub fn slice(size: Size, service: u32, index: u32, round: u32) -> Value {
    let count = size.endpoints_of(service);
    let range = index * SLICE_MAX..count.min((index + 1) * SLICE_MAX);
    let endpoints: Vec<Value> = range
        .map(|position| {
            json!({
                "addresses": [endpoint(service, position, round)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node-{}", (service + position) % NODES + 1),
                "targetRef": {
                    "kind": "Pod", "namespace": NAMESPACE,
                    "name": format!("{}-{position}", name(service)),
                },
                "zone": "zone-a",
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": slice_name(service, index), "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": name(service),
                "endpointslice.kubernetes.io/managed-by": "bench",
            },
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

/// Adds what an API server writes into every object, so that decoding costs what it costs.
pub fn stored(mut object: Value, version: u64) -> Value {
    let metadata = &mut object["metadata"];
    metadata["uid"] = json!(format!("00000000-0000-4000-8000-{version:012}"));
    metadata["resourceVersion"] = json!(version.to_string());
    metadata["creationTimestamp"] = json!("2024-05-06T07:08:09Z");
    metadata["managedFields"] = json!([{
        "manager": "kube-controller-manager", "operation": "Update",
        "apiVersion": "v1", "time": "2024-05-06T07:08:09Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {
            "f:ports": {".": {}}, "f:sessionAffinity": {}, "f:type": {}}},
    }]);
    object
}

/// The address of an endpoint; the first one of a Service moves with every change.
pub fn endpoint(service: u32, position: u32, round: u32) -> Ipv4Addr {
    let round = if position == 0 { round } else { 0 };
    // From 11.0.0.0 on, each change 32 million further, always below loopback.
    let number = service.wrapping_mul(STRIDE / 8).wrapping_add(position);
    Ipv4Addr::from((11 << 24) + number % (1 << 30) + (round % 32) * (1 << 25))
}

/// The ClusterIP of a Service.
pub fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number)
}

/// The name of a slice.
pub fn slice_name(service: u32, index: u32) -> String {
    format!("{}-{index}", name(service))
}

/// The name of a Service.
pub fn name(number: u32) -> String {
    format!("service-{number}")
}
