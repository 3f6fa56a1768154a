//! Load balancers' Services. What the cloud does is done by hand: it gives the Service an address
//! and routes that to a node (here the client's way to every such address leads to n1).

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::topology::addresses::{FAMILIES, balanced};
use tests::traffic::SocketKind;

use super::policies::{await_health, balanced as local_service};
use super::udp::cycle;
use super::world::{Address, Caller, INSIDE, PODS, Service, World, node_ports};
use super::{Behaviour, behaviour};

pub const BEHAVIOURS: &[Behaviour] = &[
    behaviour(
        "should work for type=LoadBalancer",
        "S-024, S-027, S-081",
        local_policy_keeps_the_client,
    ),
    behaviour(
        "should work from pods",
        "S-024, S-081, S-082",
        pods_use_the_virtual_address,
    ),
    behaviour(
        "should only target nodes with endpoints",
        "S-140, S-141",
        only_nodes_with_endpoints_are_healthy,
    ),
    behaviour(
        "should be able to change the type and ports of a TCP service; of a UDP service",
        "S-023, S-024, S-037",
        type_and_ports_change,
    ),
    behaviour(
        "should have session affinity work for LoadBalancer service with Local traffic policy",
        "S-032, S-101",
        affinity_holds_at_the_virtual_address,
    ),
    behaviour(
        "should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service \
         on different nodes",
        "S-124, S-126",
        pods_cycle_behind_the_virtual_address,
    ),
];

/// Gives the Service a virtual address, as a cloud would, and names it.
fn assign(world: &World, service: &Service, number: u8) -> Result<Address> {
    let addresses = balanced(number);
    let ingress = FAMILIES.map(|family| json!({"ip": addresses.of(family)}));
    let status = json!({"loadBalancer": {"ingress": ingress}});
    world.lab.patch_status("service", &service.name, &status)?;
    let to = service.cluster_ip()?;
    Ok(Address { addresses, ..to })
}

/// A Service of type LoadBalancer with a node port, which leaves clients as they are.
fn load_balancer(number: u16) -> Value {
    let mut spec = node_ports(number);
    spec["type"] = json!("LoadBalancer");
    spec
}

/// The addresses that the servers see.
fn await_seen(world: &mut World, caller: Caller, to: Address, seen: Caller) -> Result<()> {
    let own = world.own(seen)?;
    for family in FAMILIES {
        world.await_report(caller, SocketKind::Tcp, to.of(family), |report| {
            let mut seen = report.seen_as.keys();
            report.failed() == 0 && seen.all(|&ip| own.iter().any(|it| it.of(family) == ip))
        })?;
    }
    Ok(())
}

fn local_policy_keeps_the_client(world: &mut World) -> Result<()> {
    world.run_pods("lb-local", &["a", "b"])?;
    let (service, _) = local_service(world, "lb-local", 31_141)?;
    let to = assign(world, &service, 52)?;
    world.await_servers(Caller::Outside, to, &["a"])?;
    await_seen(world, Caller::Outside, to, Caller::Outside)
}

/// Pods and processes of a node reach every endpoint: for them the policy does not narrow.
fn pods_use_the_virtual_address(world: &mut World) -> Result<()> {
    world.run_pods("lb-pods", &["a", "b"])?;
    let (service, _) = local_service(world, "lb-pods", 31_142)?;
    let to = assign(world, &service, 53)?;
    world.await_all(&INSIDE, to, &["a", "b"])?;
    for caller in PODS {
        await_seen(world, caller, to, caller)?;
    }
    Ok(())
}

fn only_nodes_with_endpoints_are_healthy(world: &mut World) -> Result<()> {
    world.run_pods("lb-health", &["a"])?;
    let (service, health) = local_service(world, "lb-health", 31_143)?;
    let far = service.node_port_of("tcp", 2)?.at(health.port);
    await_health(world, health, "200").context("n1 has the endpoint")?;
    await_health(world, far, "503")?;
    world.run_pods("lb-health", &["b"])?;
    world.end_pods("lb-health", &["a"])?;
    await_health(world, health, "503")?;
    await_health(world, far, "200").context("n2 has the endpoint")
}

fn type_and_ports_change(world: &mut World) -> Result<()> {
    world.run_pods("lb-change", &["a", "b"])?;
    let mut service = world.service("lb-change", &json!({}))?;
    let cluster_ip = service.cluster_ip()?;
    world.await_all(&INSIDE, cluster_ip, &["a", "b"])?;
    world.change(&mut service, &node_ports(31_144))?;
    let first = service.node_port()?;
    world.await_servers(Caller::Outside, first, &["a", "b"])?;
    world.change(&mut service, &load_balancer(31_144))?;
    let virtual_address = assign(world, &service, 54)?;
    world.await_servers(Caller::Outside, virtual_address, &["a", "b"])?;
    world.change(&mut service, &load_balancer(31_145))?;
    world.await_servers(Caller::Outside, service.node_port()?, &["a", "b"])?;
    world.await_refused(&[Caller::Outside], first)?;
    world.await_servers(Caller::Outside, virtual_address, &["a", "b"])?;
    // Back to a ClusterIP: the node ports and the cloud's address go.
    let mut ports = super::world::ports();
    for index in [0, 1] {
        ports[index]["nodePort"] = json!(null);
    }
    let (last, plain) = (
        service.node_port()?,
        json!({"type": "ClusterIP", "ports": ports}),
    );
    world.change(&mut service, &plain)?;
    let none = json!({"loadBalancer": null});
    world.lab.patch_status("service", "lb-change", &none)?;
    world.await_refused(&[Caller::Outside], last)?;
    world.await_silence(&[Caller::Outside], virtual_address)?;
    world.await_all(&INSIDE, cluster_ip, &["a", "b"])
}

fn affinity_holds_at_the_virtual_address(world: &mut World) -> Result<()> {
    world.run_pods("lb-affinity", &["a", "a2", "b"])?;
    let (mut service, _) = local_service(world, "lb-affinity", 31_146)?;
    let to = assign(world, &service, 55)?;
    world.await_servers(Caller::Outside, to, &["a", "a2"])?;
    world.change(&mut service, &json!({"sessionAffinity": "ClientIP"}))?;
    for caller in [Caller::Outside, Caller::Packets] {
        super::affinity::await_one(world, caller, to)?;
    }
    Ok(())
}

fn pods_cycle_behind_the_virtual_address(world: &mut World) -> Result<()> {
    let service = world.service("cycle-lb", &load_balancer(31_147))?;
    let to = assign(world, &service, 56)?;
    cycle(world, "cycle-lb", &[Caller::Outside, Caller::Packets], to)
}
