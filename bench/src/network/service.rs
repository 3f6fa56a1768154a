//! The one Service that is dialled: a port whose backend is beside the clients, and one whose
//! backend is on the other node, each in a slice of its own.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use tests::rig::TARGET_PORT;
use tests::topology::Pod;
use tests::topology::addresses;

/// The namespace that it is in.
pub const NAMESPACE: &str = "demo";
const NAME: &str = "measured";

/// A port, for TCP and UDP.
pub struct Port {
    name: &'static str,
    /// At the ClusterIP.
    pub port: u16,
    /// At the node.
    pub node_port: u16,
}

/// To the first pod.
pub const NEAR: Port = Port {
    name: "near",
    port: 81,
    node_port: 30_081,
};
/// To the second pod.
pub const FAR: Port = Port {
    name: "far",
    port: 82,
    node_port: 30_082,
};

/// Its ClusterIP.
pub fn cluster_ip() -> Ipv4Addr {
    addresses::service(10).v4
}

/// The Service and its slices, with the first two pods behind it.
pub fn objects(pods: &[Pod]) -> Vec<Value> {
    let ports = [&NEAR, &FAR].into_iter().flat_map(|port| {
        ["TCP", "UDP"].map(|protocol| {
            json!({
                "name": port_name(port, protocol), "protocol": protocol, "port": port.port,
                "targetPort": TARGET_PORT, "nodePort": port.node_port,
            })
        })
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "type": "NodePort", "clusterIP": cluster_ip(), "clusterIPs": [cluster_ip()],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": ports.collect::<Vec<_>>(),
        },
    });
    let slices = [&NEAR, &FAR].into_iter().zip(pods);
    let slices = slices.map(|(port, pod)| slice(port, pod));
    std::iter::once(service).chain(slices).collect()
}

fn slice(port: &Port, pod: &Pod) -> Value {
    let ports = ["TCP", "UDP"].map(|protocol| {
        json!({"name": port_name(port, protocol), "protocol": protocol, "port": TARGET_PORT})
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{NAME}-{}", port.name), "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": NAME},
        },
        "addressType": "IPv4", "ports": ports,
        "endpoints": [{
            "addresses": [pod.addresses.v4], "nodeName": pod.node,
            "conditions": {"ready": true, "serving": true, "terminating": false},
        }],
    })
}

fn port_name(port: &Port, protocol: &str) -> String {
    format!("{}-{}", port.name, protocol.to_lowercase())
}
