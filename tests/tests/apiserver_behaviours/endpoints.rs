//! Endpoints: which pods answer, and what happens when there are none.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::rig::TARGET_PORT;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::SocketKind;

use super::world::{Caller, INSIDE, OTHER_TARGET_PORT, PODS, World, node_ports};
use super::{Behaviour, behaviour};

pub const BEHAVIOURS: &[Behaviour] = &[
    behaviour(
        "should serve a basic endpoint from pods",
        "S-040, S-042, S-046",
        endpoints_come_and_go,
    ),
    behaviour(
        "should be rejected when no endpoints exist",
        "S-104, S-105, S-201",
        no_endpoints_are_refused,
    ),
    behaviour(
        "should be rejected for evicted pods (no endpoints exist)",
        "S-104, S-109",
        evicted_pods_are_refused,
    ),
    behaviour(
        "should function for multiple endpoint-Services with same selector",
        "S-020, S-040",
        two_services_share_pods,
    ),
    behaviour(
        "should function for service endpoints using hostNetwork",
        "S-050, S-089, S-096",
        host_network_endpoints_answer,
    ),
    behaviour(
        "should be able to handle large requests: udp",
        "S-131",
        large_datagrams_arrive,
    ),
    behaviour(
        "should implement service.kubernetes.io/headless",
        "S-002, S-004, S-005",
        headless_slices_are_ignored,
    ),
    behaviour(
        "should support named targetPorts that resolve to different ports on different endpoints",
        "S-042, S-043, S-044",
        several_slices_are_one,
    ),
    behaviour(
        "should route traffic to an endpoint in the same zone when using PreferSameZone",
        "S-060, S-061, S-064, S-070, S-174",
        traffic_stays_in_its_zone,
    ),
    behaviour(
        "should create endpoints for unready pods",
        "S-046, S-068",
        unready_pods_are_published,
    ),
    behaviour(
        "should be able to connect to terminating and unready endpoints if \
         PublishNotReadyAddresses is true",
        "S-046, S-065, S-068",
        tolerant_services_reach_terminating_pods,
    ),
];

fn endpoints_come_and_go(world: &mut World) -> Result<()> {
    let to = world.service("basic", &json!({}))?.cluster_ip()?;
    world.await_refused(&PODS, to)?;
    world.run_pods("basic", &["a"])?;
    world.await_all(&INSIDE, to, &["a"])?;
    world.run_pods("basic", &["b"])?;
    world.await_all(&INSIDE, to, &["a", "b"])?;
    world.end_pods("basic", &["a"])?;
    world.await_all(&INSIDE, to, &["b"])?;
    world.end_pods("basic", &["b"])?;
    world.await_refused(&INSIDE, to)
}

fn no_endpoints_are_refused(world: &mut World) -> Result<()> {
    let service = world.service("rejected", &node_ports(31_021))?;
    let callers = [Caller::Pod, Caller::Packets, Caller::Node, Caller::FarPod];
    world.await_refused(&callers, service.cluster_ip()?)?;
    let outside = [Caller::Outside, Caller::Node, Caller::Pod];
    world.await_refused(&outside, service.node_port()?)
}

fn evicted_pods_are_refused(world: &mut World) -> Result<()> {
    world.run_pods("evicted", &["a"])?;
    let spec = json!({"publishNotReadyAddresses": true});
    let to = world.service("evicted", &spec)?.cluster_ip()?;
    world.await_all(&PODS, to, &["a"])?;
    let unready = json!([{"type": "Ready", "status": "False"}]);
    let evicted = json!({"phase": "Failed", "reason": "Evicted", "conditions": unready});
    world.lab.patch_status("pod", "evicted-a", &evicted)?;
    world.await_refused(&INSIDE, to)
}

fn two_services_share_pods(world: &mut World) -> Result<()> {
    world.run_pods("shared", &["a", "b"])?;
    let one = world.service("shared", &json!({}))?.cluster_ip()?;
    let two = world.service_of("shared-two", "shared", &node_ports(31_022))?;
    world.await_all(&INSIDE, one, &["a", "b"])?;
    world.await_all(&INSIDE, two.cluster_ip()?, &["a", "b"])?;
    world.await_servers(Caller::Outside, two.node_port()?, &["a", "b"])?;
    world.lab.delete(&["service", "shared"])?;
    world.await_silence(&PODS, one)?;
    world.await_all(&INSIDE, two.cluster_ip()?, &["a", "b"])
}

fn host_network_endpoints_answer(world: &mut World) -> Result<()> {
    world.run_host_pod("hostnet")?;
    let service = world.service("hostnet", &node_ports(31_023))?;
    let to = service.cluster_ip()?;
    let callers = [Caller::Pod, Caller::Packets, Caller::Node, Caller::FarPod];
    world.await_all(&callers, to, &["n1"])?;
    world.await_servers(Caller::Outside, service.node_port()?, &["n1"])?;
    let other = service.node_port_of("tcp", 2)?;
    world.await_servers(Caller::Outside, other, &["n1"])?;
    let own = world.own(Caller::Outside)?[0];
    for family in FAMILIES {
        let to = service.node_port()?.of(family);
        world.await_report(Caller::Outside, SocketKind::Tcp, to, |report| {
            let kept = report.seen_as.contains_key(&own.of(family));
            kept && report.seen_as.len() == 1
        })?;
    }
    Ok(())
}

fn large_datagrams_arrive(world: &mut World) -> Result<()> {
    world.run_pods("large", &["a", "b"])?;
    let service = world.service("large", &node_ports(31_024))?;
    let places = [
        (Caller::Packets, service.cluster_ip()?),
        (Caller::Pod, service.cluster_ip()?),
        (Caller::Outside, service.node_port()?),
        (Caller::Node, service.node_port()?),
    ];
    for (caller, to) in places {
        world.await_servers(caller, to, &["a", "b"])?;
        for family in FAMILIES {
            let plan = tests::traffic::Plan::new(SocketKind::Udp, to.of(family));
            let plan = plan.times(20).payload(2_000).timeout_ms(2_000);
            let report = world.probe(caller)?.connect(plan)?;
            ensure!(report.failed() == 0, "{caller:?} {to:?}: {report:?}");
        }
    }
    Ok(())
}

/// Slices by hand: one of each family, with a pod's address and one port.
fn slices(
    world: &World,
    (service, slice): (&str, &str),
    pod: &str,
    target_port: u16,
) -> Result<()> {
    let pod = world.pod(pod)?;
    for (family, kind) in FAMILIES.into_iter().zip(["IPv4", "IPv6"]) {
        let ports = ["TCP", "UDP"].map(|protocol| {
            json!({
                "name": protocol.to_lowercase(), "protocol": protocol, "port": target_port,
            })
        });
        world.lab.put(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{slice}-{}", kind.to_lowercase()),
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": kind,
            "endpoints": [{
                "addresses": [pod.addresses.of(family)], "conditions": {"ready": true},
            }],
            "ports": ports,
        }))?;
    }
    Ok(())
}

/// Sets or, ending in `-`, removes a label of a pair of slices.
fn label(world: &World, slice: &str, label: &str) -> Result<()> {
    let names = ["ipv4", "ipv6"].map(|family| format!("{slice}-{family}"));
    let words = ["label", "endpointslice", &names[0], &names[1], label];
    world.lab.kubectl(&words).map(drop)
}

fn headless_slices_are_ignored(world: &mut World) -> Result<()> {
    let to = world
        .service("custom", &json!({"selector": null}))?
        .cluster_ip()?;
    slices(world, ("custom", "custom"), "a", TARGET_PORT)?;
    world.await_all(&INSIDE, to, &["a"])?;
    label(world, "custom", "service.kubernetes.io/headless=")?;
    world.await_refused(&INSIDE, to)?;
    label(world, "custom", "service.kubernetes.io/headless-")?;
    world.await_all(&INSIDE, to, &["a"])
}

/// The second pair has other addresses, and another number for the same port.
fn several_slices_are_one(world: &mut World) -> Result<()> {
    let to = world
        .service("slices", &json!({"selector": null}))?
        .cluster_ip()?;
    slices(world, ("slices", "slices-one"), "a", TARGET_PORT)?;
    slices(world, ("slices", "slices-two"), "b", OTHER_TARGET_PORT)?;
    world.await_all(&INSIDE, to, &["a", "b"])?;
    world
        .lab
        .delete(&["endpointslice", "slices-one-ipv4", "slices-one-ipv6"])?;
    world.await_all(&INSIDE, to, &["b"])
}

fn traffic_stays_in_its_zone(world: &mut World) -> Result<()> {
    let label = |world: &World, node: &str, zone: &str| {
        let zone = format!("topology.kubernetes.io/zone{zone}");
        let words = ["label", "node", node, "--overwrite", &zone];
        world.lab.kubectl(&words).map(drop)
    };
    label(world, "n1", "=z1")?;
    label(world, "n2", "=z2")?;
    world.run_pods("zones", &["a", "b"])?;
    let spec = json!({"trafficDistribution": "PreferSameZone"});
    let to = world.service("zones", &spec)?.cluster_ip()?;
    world.await_all(&INSIDE, to, &["a"]).context("in z1")?;
    world.await_servers(Caller::FarPod, to, &["b"])?;
    // The node moves to a zone without endpoints: its own pod's hint stays what it was.
    label(world, "n1", "=z2")?;
    let moved = world.await_report(
        Caller::Packets,
        SocketKind::Tcp,
        to.of(IpFamily::V4),
        |it| it.servers().contains(&"b"),
    );
    moved.context("n1 in z2")?;
    label(world, "n1", "-")?;
    label(world, "n2", "-")?;
    world
        .await_all(&INSIDE, to, &["a", "b"])
        .context("without zones")
}

fn unready_pods_are_published(world: &mut World) -> Result<()> {
    world.run_pods("tolerant", &["a"])?;
    world.lab.set_ready("tolerant-a", "False")?;
    let spec = json!({"publishNotReadyAddresses": true});
    let mut service = world.service("tolerant", &spec)?;
    world.await_all(&PODS, service.cluster_ip()?, &["a"])?;
    world.change(&mut service, &json!({"publishNotReadyAddresses": false}))?;
    world.await_refused(&PODS, service.cluster_ip()?)?;
    world.lab.set_ready("tolerant-a", "True")?;
    world.await_all(&PODS, service.cluster_ip()?, &["a"])
}

fn tolerant_services_reach_terminating_pods(world: &mut World) -> Result<()> {
    world.run_pods("tolerant-term", &["a"])?;
    world.lab.set_ready("tolerant-term-a", "False")?;
    let mut spec = node_ports(31_025);
    spec["publishNotReadyAddresses"] = json!(true);
    let service = world.service("tolerant-term", &spec)?;
    let (to, node_port) = (service.cluster_ip()?, service.node_port()?);
    world.await_all(&PODS, to, &["a"])?;
    world.terminate("tolerant-term", "a")?;
    // Still there once the slices say that it ends: what is new after it follows later events.
    world.run_pods("tolerant-term", &["b"])?;
    world.await_all(&INSIDE, to, &["a", "b"])?;
    world.await_servers(Caller::Outside, node_port, &["a", "b"])
}
