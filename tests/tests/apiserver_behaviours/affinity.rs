//! Session affinity.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::topology::addresses::FAMILIES;
use tests::traffic::{Report, SocketKind};

use super::world::{Address, Caller, SOCKETS, World, node_ports};
use super::{Behaviour, behaviour};

pub const BEHAVIOURS: &[Behaviour] = &[
    behaviour(
        "should have session affinity work for service with type clusterIP [LinuxOnly]",
        "S-032, S-101, S-202",
        works_for_cluster_ip,
    ),
    behaviour(
        "should have session affinity timeout work for service with type clusterIP [LinuxOnly]",
        "S-032, S-102",
        timeout_works_for_cluster_ip,
    ),
    behaviour(
        "should be able to switch session affinity for service with type clusterIP [LinuxOnly]",
        "S-103",
        switches_for_cluster_ip,
    ),
    behaviour(
        "should have session affinity work for NodePort service [LinuxOnly]",
        "S-101",
        works_for_node_port,
    ),
    behaviour(
        "should have session affinity timeout work for NodePort service [LinuxOnly]",
        "S-102",
        timeout_works_for_node_port,
    ),
    behaviour(
        "should be able to switch session affinity for NodePort service [LinuxOnly]",
        "S-103",
        switches_for_node_port,
    ),
];

const SERVERS: &[&str] = &["a", "a2", "b", "b2"];
/// What the timeout tests set.
const TIMEOUT: Duration = Duration::from_secs(2);

fn with(affinity: Value, mut spec: Value) -> Value {
    for (key, value) in affinity.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec
}

fn on() -> Value {
    json!({"sessionAffinity": "ClientIP"})
}

fn short() -> Value {
    let config = json!({"clientIP": {"timeoutSeconds": TIMEOUT.as_secs()}});
    json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})
}

fn off() -> Value {
    json!({"sessionAffinity": "None", "sessionAffinityConfig": null})
}

/// All connections of `caller` go to one server, over TCP and UDP.
pub fn await_one(world: &mut World, caller: Caller, to: Address) -> Result<()> {
    for family in FAMILIES {
        for socket in SOCKETS {
            let one = |report: &Report| report.failed() == 0 && report.servers().len() == 1;
            let first = world.await_report(caller, socket, to.of(family), one)?;
            let again = world.await_report(caller, socket, to.of(family), one)?;
            let same = first.servers() == again.servers();
            ensure!(
                same,
                "{caller:?} {socket:?} {family:?}: {first:?}, {again:?}"
            );
        }
    }
    Ok(())
}

fn works(world: &mut World, name: &str, spec: Value, callers: &[Caller]) -> Result<()> {
    world.run_pods(name, SERVERS)?;
    let service = world.service(name, &with(on(), spec))?;
    let to = place(&service)?;
    for &caller in callers {
        await_one(world, caller, to)?;
    }
    Ok(())
}

fn place(service: &super::world::Service) -> Result<Address> {
    if service.object["spec"]["type"] == "NodePort" {
        service.node_port()
    } else {
        service.cluster_ip()
    }
}

const INSIDE: &[Caller] = &[Caller::Pod, Caller::Packets, Caller::Node, Caller::FarPod];
const AT_NODE_PORTS: &[Caller] = &[Caller::Outside, Caller::Pod, Caller::Packets, Caller::Node];

fn works_for_cluster_ip(world: &mut World) -> Result<()> {
    works(world, "aff-ip", json!({}), INSIDE)
}

fn works_for_node_port(world: &mut World) -> Result<()> {
    works(world, "aff-np", node_ports(31_081), AT_NODE_PORTS)
}

/// New connections faster than the timeout stay; after pauses that are longer, they spread.
fn timeout_works(world: &mut World, name: &str, spec: Value, caller: Caller) -> Result<()> {
    world.run_pods(name, SERVERS)?;
    let service = world.service(name, &with(short(), spec))?;
    let to = place(&service)?;
    world.await_report(caller, SocketKind::Tcp, to.of(FAMILIES[0]), |report| {
        report.servers().len() == 1 && report.failed() == 0
    })?;
    let mut servers = Vec::new();
    // A new binding is one of four: that ten of them are the same is no accident.
    for _ in 0..10 {
        let report = stays_for_twice_the_timeout(world, caller, to)?;
        servers.extend(report.servers().into_iter().map(str::to_owned));
        servers.sort();
        servers.dedup();
        if servers.len() > 1 {
            return Ok(());
        }
        // The pause is what is tested: there is nothing to wait for but time.
        std::thread::sleep(TIMEOUT + Duration::from_millis(600));
    }
    anyhow::bail!("bound to {servers:?} for ever")
}

/// The window slides with each new connection.
fn stays_for_twice_the_timeout(world: &mut World, caller: Caller, to: Address) -> Result<Report> {
    let start = Instant::now();
    let plan = tests::traffic::Plan::new(SocketKind::Tcp, to.of(FAMILIES[0])).timeout_ms(1_500);
    let mut last = Instant::now();
    let mut first: Option<Report> = None;
    while start.elapsed() < TIMEOUT * 2 {
        let report = world.probe(caller)?.connect(plan.clone())?;
        ensure!(report.failed() == 0, "{report:?}");
        // A machine that stood still for the timeout proves nothing.
        let is_in_time = last.elapsed() < TIMEOUT;
        last = Instant::now();
        let same = first
            .as_ref()
            .is_none_or(|it| it.servers() == report.servers());
        ensure!(same || !is_in_time, "{first:?}, then {report:?}");
        first = Some(report);
        std::thread::sleep(TIMEOUT / 4);
    }
    first.ok_or_else(|| anyhow::anyhow!("nothing was asked"))
}

fn timeout_works_for_cluster_ip(world: &mut World) -> Result<()> {
    timeout_works(world, "aff-time-ip", json!({}), Caller::Pod)
}

fn timeout_works_for_node_port(world: &mut World) -> Result<()> {
    timeout_works(world, "aff-time-np", node_ports(31_082), Caller::Outside)
}

fn switches(world: &mut World, name: &str, spec: Value, callers: &[Caller]) -> Result<()> {
    world.run_pods(name, SERVERS)?;
    let mut service = world.service(name, &spec)?;
    let to = place(&service)?;
    world.await_all(callers, to, SERVERS)?;
    world.change(&mut service, &on())?;
    for &caller in callers {
        await_one(world, caller, to)?;
    }
    world.change(&mut service, &off())?;
    world.await_all(callers, to, SERVERS)?;
    world.change(&mut service, &on())?;
    for &caller in callers {
        await_one(world, caller, to)?;
    }
    Ok(())
}

fn switches_for_cluster_ip(world: &mut World) -> Result<()> {
    switches(
        world,
        "aff-sw-ip",
        json!({}),
        &[Caller::Pod, Caller::Packets, Caller::Node],
    )
}

fn switches_for_node_port(world: &mut World) -> Result<()> {
    let callers = [Caller::Outside, Caller::Packets, Caller::Node];
    switches(world, "aff-sw-np", node_ports(31_083), &callers)
}
