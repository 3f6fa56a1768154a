//! What a load balancer, the kubelet and Prometheus see of a node with a running agent.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::http::get;
use tests::manifests::{Condition, Service};
use tests::net::{Netns, eventually};
use tests::rig::{Rig, TARGET_PORT};
use tests::rules;
use tests::topology::addresses::{self, FAMILIES, IpFamily};
use tests::topology::{Seen, Variant};

/// Until a change of an object is seen, on a machine whose cores are busy.
const SEEN: Duration = Duration::from_secs(20);
const HEALTH_PORT: u16 = 32_001;

/// Waits for this status and text.
fn until(netns: &Netns, to: SocketAddr, path: &str, (code, text): (u16, &str)) -> Result<()> {
    eventually(SEEN, || {
        let (status, rest) = get(netns, to, path)?;
        ensure!(status == code && rest.contains(text), "{status} {rest}");
        Ok(())
    })
    .with_context(|| format!("{to}{path}"))
}

fn at(family: IpFamily, port: u16) -> SocketAddr {
    (addresses::node(1).of(family), port).into()
}

/// A load balancer's Service with policy Local, as the API server completes it.
fn load_balancer(rig: &Rig) -> Service {
    Service::new("lb", 90)
        .port(90, 0, TARGET_PORT)
        .pods(["a", "b"].map(|pod| &rig.pods[pod]))
        .spec(json!({
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": HEALTH_PORT,
        }))
}

/// Gives the first Node these taints.
fn taint(rig: &Rig, taints: &[&str]) -> Result<u64> {
    let text = fs::read(rig.manifests.dir().join("cluster.json"))?;
    let mut list: Value = serde_json::from_slice(&text)?;
    let objects = list["items"].as_array_mut().context("no objects")?;
    let name = rig.cluster.nodes[0].name.as_str();
    for node in objects
        .iter_mut()
        .filter(|it| it["metadata"]["name"] == name)
    {
        let taint = |key: &&str| json!({"key": key, "effect": "NoSchedule"});
        node["spec"]["taints"] = taints.iter().map(taint).collect();
    }
    rig.manifests.write("cluster", objects)
}

#[test]
fn load_balancers_are_told_where_endpoints_are() -> Result<()> {
    rules(&["S-140", "S-141", "S-142", "S-143", "W-4"]);
    let rig = Rig::new(Variant::default(), &[])?;
    let outside = rig.cluster.client.place().netns;
    let service = load_balancer(&rig);
    rig.manifests.apply(&service)?;
    for family in FAMILIES {
        let to = at(family, HEALTH_PORT);
        let healthy = (200, "X-Load-Balancing-Endpoint-Weight: 1\r\n");
        until(&outside, to, "/anything", healthy)?;
    }
    // Draining: it serves, and fails the check.
    let draining = service
        .clone()
        .with_condition(&rig.pods["a"], Condition::Terminating);
    rig.manifests.apply(&draining)?;
    let to = at(IpFamily::V4, HEALTH_PORT);
    let failed = (503, r#""localEndpoints":0,"serviceProxyHealthy":true"#);
    until(&outside, to, "/", failed)?;
    // Policy Cluster closes the port.
    let cluster = service.spec(json!({"type": "LoadBalancer"}));
    rig.manifests.apply(&cluster)?;
    eventually(SEEN, || {
        ensure!(get(&outside, to, "/").is_err(), "the port is open");
        Ok(())
    })
}

#[test]
fn node_health_follows_the_node_and_not_the_agents_life() -> Result<()> {
    rules(&["S-145", "S-146", "S-148"]);
    let rig = Rig::new(Variant::default(), &[])?;
    let outside = rig.cluster.client.place().netns;
    for family in FAMILIES {
        let to = at(family, 10_256);
        until(&outside, to, "/healthz", (200, r#""nodeEligible":true"#))?;
    }
    taint(&rig, &["ToBeDeletedByClusterAutoscaler"])?;
    let to = at(IpFamily::V4, 10_256);
    until(&outside, to, "/healthz", (503, r#""nodeEligible":false"#))?;
    let (status, rest) = get(&outside, to, "/livez")?;
    ensure!(status == 200 && !rest.contains("nodeEligible"), "{rest}");

    // The status server is for the node alone.
    let status = at(IpFamily::V4, 10_249);
    ensure!(get(&outside, status, "/proxyMode").is_err(), "reachable");
    let inside = rig.cluster.nodes[0].place(Seen::BySocketHooks).netns;
    let local = SocketAddr::from(([127, 0, 0, 1], 10_249));
    for (path, text) in [
        ("/proxyMode", "shunt"),
        ("/healthz", "ok"),
        ("/configz", "shunt/v1alpha1"),
        ("/flagz", "\nmax-flows=262144\n"),
        ("/statusz", "\nPaths: /configz /flagz"),
        (
            "/metrics/slis",
            "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1",
        ),
        ("/metrics", r#"kubeproxy_proxy_livez_total{code="200"} 1"#),
        (
            "/metrics",
            r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"}"#,
        ),
    ] {
        until(&inside, local, path, (200, text))?;
    }
    Ok(())
}
