//! The Services that the rows dial. Their pods are those of the rig: `client` and `a` on n1, `b`
//! and `c` on n2; `n1` and `n2` are pods in the networks of the nodes.

use anyhow::Result;
use serde_json::{Value, json};
use tests::manifests::{Condition, Service};
use tests::rig::{Rig, TARGET_PORT};
use tests::topology::Variant;
use tests::topology::addresses::{Addresses, balanced, node, uplink};

/// The load balancer's address of `ranges`: for the client outside only.
pub const RANGES: Addresses = balanced(1);
/// That of `open`.
pub const OPEN: Addresses = balanced(2);
/// That of `local`.
pub const LOCAL: Addresses = balanced(3);
/// That of `bound`, which n1 has on its loopback interface.
pub const BOUND: Addresses = balanced(4);
/// That of `closed`, which has source ranges and no endpoints.
pub const CLOSED: Addresses = balanced(5);
/// That of `external`, as an external IP.
pub const EXTERNAL: Addresses = balanced(6);
/// Of `on-node`, whose external IP is n1's own.
pub const ON_NODE_PORT: u16 = 110;

/// Name, number, pods and the spec's further fields. The port is 90 more than the number, the node
/// port 30,000 more than that.
type Line = (&'static str, u8, &'static [&'static str], fn() -> Value);

const LINES: &[Line] = &[
    ("int-near", 21, &["a", "b"], internal_local),
    ("int-far", 22, &["b"], internal_local),
    ("ext-near", 23, &["a", "b"], external_local),
    ("ext-far", 24, &["b", "c"], external_local),
    ("ext-one", 25, &["a"], external_local),
    ("unready", 26, &["a", "b"], nothing),
    ("dying", 27, &["a", "b"], nothing),
    ("drain", 28, &["a", "b"], external_local),
    ("on-n1", 29, &[], nothing),
    ("on-n2", 30, &[], nothing),
    ("ranges", 31, &["a"], source_ranges),
    ("open", 32, &["a"], nothing),
    ("local", 33, &["b"], external_local),
    ("bound", 34, &["a"], nothing),
    ("closed", 35, &[], source_ranges),
    ("external", 36, &["a"], external_ip),
    ("on-node", 20, &["a"], node_ip),
    ("sticky", 37, &["a", "b", "c"], affinity),
];

fn nothing() -> Value {
    json!({})
}

fn internal_local() -> Value {
    json!({"internalTrafficPolicy": "Local"})
}

fn external_local() -> Value {
    json!({"externalTrafficPolicy": "Local"})
}

fn source_ranges() -> Value {
    let Addresses { v4, v6 } = uplink(100);
    json!({"loadBalancerSourceRanges": [format!("{v4}/32"), format!("{v6}/128")]})
}

fn external_ip() -> Value {
    json!({"externalIPs": [EXTERNAL.v4, EXTERNAL.v6]})
}

fn node_ip() -> Value {
    json!({"externalIPs": [node(1).v4, node(1).v6]})
}

fn affinity() -> Value {
    json!({"sessionAffinity": "ClientIP"})
}

/// The rig with all Services written and no agents.
pub fn rig() -> Result<Rig> {
    let mut rig = Rig::without_agents(Variant::default())?;
    for number in [1, 2] {
        rig.serve_on_node(number)?;
    }
    let Addresses { v4, v6 } = BOUND;
    // With the scope of other loopback addresses it is not chosen as a source towards pods.
    rig.cluster.nodes[0].netns.ip(&format!(
        "addr add {v4}/32 dev lo scope host\naddr add {v6}/128 dev lo nodad\n"
    ))?;
    for &(name, number, pods, spec) in LINES {
        let port = u16::from(number) + 90;
        let service = Service::new(name, number)
            .port(port, 30_000 + port, TARGET_PORT)
            .pods(pods.iter().map(|pod| &rig.pods[*pod]))
            .spec(spec());
        let service = adjust(&rig, name, service);
        rig.add(name, service)?;
    }
    Ok(rig)
}

fn adjust(rig: &Rig, name: &str, service: Service) -> Service {
    let [a, b] = ["a", "b"].map(|pod| &rig.pods[pod]);
    match name {
        "unready" => service
            .with_condition(a, Condition::NotReady)
            .with_condition(b, Condition::NotReady),
        "dying" => service
            .with_condition(a, Condition::Terminating)
            .with_condition(b, Condition::NotReady),
        "drain" => service.with_condition(a, Condition::Terminating),
        "on-n1" => service.on_node(&rig.cluster.nodes[0]),
        "on-n2" => service.on_node(&rig.cluster.nodes[1]),
        "ranges" => service.balanced(RANGES),
        "open" => service.balanced(OPEN),
        "local" => service.balanced(LOCAL),
        "bound" => service.balanced(BOUND),
        "closed" => service.balanced(CLOSED),
        _ => service,
    }
}
