//! Traffic policies and terminating endpoints.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::net::eventually;
use tests::topology::addresses::FAMILIES;
use tests::traffic::SocketKind;

use super::world::{Address, Caller, INSIDE, PATIENCE, PODS, Service, World, node_ports};
use super::{Behaviour, behaviour};

pub const BEHAVIOURS: &[Behaviour] = &[
    behaviour(
        "should respect internalTrafficPolicy=Local Pod to Pod",
        "S-026, S-071, S-106",
        internal_local_pod_to_pod,
    ),
    behaviour(
        "should respect internalTrafficPolicy=Local Pod (hostNetwork: true) to Pod",
        "S-026, S-089, S-093, S-106",
        internal_local_node_to_pod,
    ),
    behaviour(
        "should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)",
        "S-026, S-048, S-106",
        internal_local_to_host_pod,
    ),
    behaviour(
        "should support externalTrafficPolicy=Local for type=NodePort",
        "S-027, S-081, S-082, S-107",
        external_local_node_port,
    ),
    behaviour(
        "should fail health check node port if there are only terminating endpoints",
        "S-029, S-140, S-141, S-142, W-4",
        health_port_fails_while_terminating,
    ),
    behaviour(
        "should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy \
         changes",
        "S-027, S-029, S-143",
        health_port_follows_the_policy,
    ),
    behaviour(
        "should fallback to terminating endpoints when there are no ready endpoints with \
         internalTrafficPolicy=Cluster",
        "S-062, S-066, S-068",
        internal_cluster_falls_back,
    ),
    behaviour(
        "should fallback to local terminating endpoints when there are no ready endpoints with \
         internalTrafficPolicy=Local",
        "S-065, S-066, S-106",
        internal_local_falls_back,
    ),
    behaviour(
        "should fallback to terminating endpoints when there are no ready endpoints with \
         externallTrafficPolicy=Cluster",
        "S-062, S-066, S-068",
        external_cluster_falls_back,
    ),
    behaviour(
        "should fallback to local terminating endpoints when there are no ready endpoints with \
         externalTrafficPolicy=Local",
        "S-065, S-066, S-107",
        external_local_falls_back,
    ),
];

fn internal_local() -> Value {
    json!({"internalTrafficPolicy": "Local"})
}

fn external_local(number: u16) -> Value {
    let mut spec = node_ports(number);
    spec["externalTrafficPolicy"] = json!("Local");
    spec
}

fn internal_local_pod_to_pod(world: &mut World) -> Result<()> {
    world.run_pods("itp-pods", &["a"])?;
    let to = world.service("itp-pods", &internal_local())?.cluster_ip()?;
    world.await_all(&PODS, to, &["a"])?;
    world.await_silence(&[Caller::FarPod], to)
}

fn internal_local_node_to_pod(world: &mut World) -> Result<()> {
    world.run_pods("itp-node", &["a", "b"])?;
    let to = world.service("itp-node", &internal_local())?.cluster_ip()?;
    world.await_servers(Caller::Node, to, &["a"])?;
    world.end_pods("itp-node", &["a"])?;
    world.await_silence(&[Caller::Node], to)?;
    world.await_servers(Caller::FarPod, to, &["b"])
}

fn internal_local_to_host_pod(world: &mut World) -> Result<()> {
    world.run_host_pod("itp-host")?;
    let to = world.service("itp-host", &internal_local())?.cluster_ip()?;
    world.await_all(&INSIDE, to, &["n1"])?;
    world.await_silence(&[Caller::FarPod], to)
}

fn external_local_node_port(world: &mut World) -> Result<()> {
    world.run_pods("etp", &["b"])?;
    let service = world.service("etp", &external_local(31_041))?;
    let (near, far) = (service.node_port()?, service.node_port_of("tcp", 2)?);
    world.await_servers(Caller::Outside, far, &["b"])?;
    let own = world.own(Caller::Outside)?[0];
    for family in FAMILIES {
        world.await_report(Caller::Outside, SocketKind::Tcp, far.of(family), |report| {
            let seen = report.seen_as.keys().collect::<Vec<_>>();
            seen == [&own.of(family)]
        })?;
    }
    world.await_silence(&[Caller::Outside], near)?;
    // In-cluster clients of the node get what the way through a load balancer would give.
    world.await_all(&[Caller::Pod, Caller::Packets, Caller::Node], near, &["b"])?;
    world.await_all(&INSIDE, service.cluster_ip()?, &["b"])?;
    world.run_pods("etp", &["a"])?;
    world.await_servers(Caller::Outside, near, &["a"])
}

/// A load balancer's Service with policy Local, and its health port on n1.
pub fn balanced(world: &World, name: &str, number: u16) -> Result<(Service, Address)> {
    let mut spec = external_local(number);
    spec["type"] = json!("LoadBalancer");
    let service = world.service(name, &spec)?;
    let port = service.object["spec"]["healthCheckNodePort"].as_u64();
    let port = port.context("no health port")?.try_into()?;
    let health = service.node_port()?.at(port);
    Ok((service, health))
}

/// What a load balancer's probe at `to` hears: an HTTP status, or that nothing listens.
pub fn await_health(world: &World, to: Address, expected: &str) -> Result<()> {
    for family in FAMILIES {
        let url = format!("http://{}/", to.of(family));
        let probe = ["curl", "-s", "-g", "-o", "/dev/null", "--max-time", "5"];
        let words = [&probe[..], &["-w", "%{http_code}", &url]].concat();
        eventually(PATIENCE, || {
            let status = world.cluster.client.netns.run(&words);
            let status = status.unwrap_or_else(|_| "nothing".to_owned());
            ensure!(status == expected, "{url} says {status}, not {expected}");
            Ok(())
        })?;
    }
    Ok(())
}

fn health_port_fails_while_terminating(world: &mut World) -> Result<()> {
    world.run_pods("health", &["a", "b"])?;
    let (service, health) = balanced(world, "health", 31_044)?;
    await_health(world, health, "200")?;
    world.terminate("health", "a")?;
    await_health(world, health, "503")?;
    // Traffic still flows.
    world.await_servers(Caller::Outside, service.node_port()?, &["a"])
}

fn health_port_follows_the_policy(world: &mut World) -> Result<()> {
    world.run_pods("health-etp", &["a", "b"])?;
    let (mut service, health) = balanced(world, "health-etp", 31_045)?;
    let node_port = service.node_port()?;
    await_health(world, health, "200")?;
    world.await_servers(Caller::Outside, node_port, &["a"])?;
    world.change(&mut service, &json!({"externalTrafficPolicy": "Cluster"}))?;
    await_health(world, health, "nothing")?;
    world.await_servers(Caller::Outside, node_port, &["a", "b"])?;
    world.change(&mut service, &json!({"externalTrafficPolicy": "Local"}))?;
    world.await_servers(Caller::Outside, node_port, &["a"])
}

fn internal_cluster_falls_back(world: &mut World) -> Result<()> {
    world.run_pods("term-itp", &["a", "b"])?;
    let to = world.service("term-itp", &json!({}))?.cluster_ip()?;
    world.await_all(&INSIDE, to, &["a", "b"])?;
    world.terminate("term-itp", "a")?;
    world.await_all(&INSIDE, to, &["b"])?;
    world.terminate("term-itp", "b")?;
    world.await_all(&INSIDE, to, &["a", "b"])?;
    world.end_pods("term-itp", &["a", "b"])?;
    world.await_refused(&INSIDE, to)
}

fn internal_local_falls_back(world: &mut World) -> Result<()> {
    world.run_pods("term-itpl", &["a", "b"])?;
    let to = world
        .service("term-itpl", &internal_local())?
        .cluster_ip()?;
    world.await_all(&INSIDE, to, &["a"])?;
    world.terminate("term-itpl", "a")?;
    world.await_all(&INSIDE, to, &["a"])?;
    world.await_servers(Caller::FarPod, to, &["b"])?;
    world.end_pods("term-itpl", &["a"])?;
    world.await_silence(&INSIDE, to)
}

fn external_cluster_falls_back(world: &mut World) -> Result<()> {
    world.run_pods("term-etp", &["b"])?;
    let service = world.service("term-etp", &node_ports(31_042))?;
    let to = service.node_port()?;
    let callers = [Caller::Outside, Caller::Packets, Caller::Node];
    world.await_all(&callers, to, &["b"])?;
    world.terminate("term-etp", "b")?;
    world.await_all(&callers, to, &["b"])?;
    world.end_pods("term-etp", &["b"])?;
    world.await_refused(&callers, to)
}

fn external_local_falls_back(world: &mut World) -> Result<()> {
    world.run_pods("term-etpl", &["a", "b"])?;
    let service = world.service("term-etpl", &external_local(31_043))?;
    let to = service.node_port()?;
    world.await_servers(Caller::Outside, to, &["a"])?;
    world.terminate("term-etpl", "a")?;
    world.await_all(&INSIDE, service.cluster_ip()?, &["b"])?;
    world.await_servers(Caller::Outside, to, &["a"])?;
    world.end_pods("term-etpl", &["a"])?;
    world.await_silence(&[Caller::Outside], to)?;
    world.await_all(&[Caller::Packets, Caller::Node], to, &["b"])
}
