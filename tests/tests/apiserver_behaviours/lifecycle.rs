//! Restarts: of the agents and of the API server.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Plan, SocketKind};

use super::world::{Address, Caller, INSIDE, PODS, World, node_ports};
use super::{Behaviour, behaviour};

pub const BEHAVIOURS: &[Behaviour] = &[
    behaviour(
        "should work after restarting kube-proxy",
        "S-007, S-120, S-178",
        agents_restart,
    ),
    behaviour(
        "should work after restarting apiserver",
        "S-006, S-008, S-179",
        api_server_restarts,
    ),
    behaviour(
        "agent in a pod reaches the server that KUBERNETES_SERVICE_HOST names",
        "S-179, S-183",
        agent_in_a_pod,
    ),
];

/// Connections made one after the other while `change` happens, none of which may fail.
fn without_a_failure(
    world: &mut World,
    to: Address,
    change: impl FnOnce(&mut World) -> Result<()>,
) -> Result<()> {
    let callers = [Caller::Pod, Caller::Packets];
    let mut running = Vec::new();
    for caller in callers {
        let mut probe = world.another(caller)?;
        let plan = Plan::new(SocketKind::Tcp, to.of(IpFamily::V4));
        probe.begin(plan.until_finish().payload(100))?;
        running.push((caller, probe));
    }
    change(world)?;
    for (caller, mut probe) in running {
        let report = probe.finish()?;
        ensure!(report.failed() == 0, "{caller:?}: {report:?}");
    }
    Ok(())
}

fn agents_restart(world: &mut World) -> Result<()> {
    world.run_pods("restart", &["a", "b"])?;
    let one = world.service("restart", &node_ports(31_101))?;
    let gone = world.service_of("restart-gone", "restart", &json!({}))?;
    let (to, gone) = (one.cluster_ip()?, gone.cluster_ip()?);
    world.await_all(&INSIDE, to, &["a", "b"])?;
    world.await_all(&PODS, gone, &["a", "b"])?;
    let mut held = Vec::new();
    for family in FAMILIES {
        let (number, answer) = world.hold(Caller::Packets, SocketKind::Tcp, to.of(family))?;
        held.push((number, answer.server));
    }
    let mut late = None;
    without_a_failure(world, to, |world| {
        for agent in &mut world.agents {
            agent.kill()?;
        }
        // What changes meanwhile is caught up with.
        world.lab.delete(&["service", "restart-gone"])?;
        let service = world.service_of("restart-late", "restart", &json!({}))?;
        late = Some(service.cluster_ip()?);
        world
            .await_all(&INSIDE, to, &["a", "b"])
            .context("with the agents dead")?;
        for agent in &mut world.agents {
            agent.run()?;
        }
        world.await_all(&INSIDE, to, &["a", "b"])
    })?;
    let late = late.context("it was just made")?;
    world.await_all(&INSIDE, late, &["a", "b"])?;
    world.await_silence(&PODS, gone)?;
    world.await_servers(Caller::Outside, one.node_port()?, &["a", "b"])?;
    for (number, server) in held {
        let answer = world.probe(Caller::Packets)?.ask(number, 1_000)?;
        ensure!(answer.server == server, "{answer:?} instead of {server}");
    }
    Ok(())
}

fn api_server_restarts(world: &mut World) -> Result<()> {
    world.run_pods("apirestart", &["a", "b"])?;
    let one = world.service("apirestart", &json!({}))?.cluster_ip()?;
    world.await_all(&INSIDE, one, &["a", "b"])?;
    without_a_failure(world, one, |world| {
        world.lab.stop_server()?;
        world
            .await_all(&INSIDE, one, &["a", "b"])
            .context("while it is away")?;
        world.lab.up()?;
        let two = world.service_of("apirestart-two", "apirestart", &json!({}))?;
        world.await_all(&INSIDE, two.cluster_ip()?, &["a", "b"])
    })
}

/// The variables that a pod gets name the `kubernetes` Service, which this agent is there to serve:
/// a deployment gives them another value.
fn agent_in_a_pod(world: &mut World) -> Result<()> {
    world.run_pods("inpod", &["a", "b"])?;
    let one = world.service("inpod", &json!({}))?.cluster_ip()?;
    world.await_all(&INSIDE, one, &["a", "b"])?;
    without_a_failure(world, one, |world| {
        let credentials = world.lab.pod_credentials("kube-system", "shunt")?;
        for agent in &mut world.agents {
            agent.stop()?;
            agent.set_pod(credentials.clone(), world.lab.address(), 6443);
            agent.run()?;
        }
        let two = world.service_of("inpod-two", "inpod", &json!({}))?;
        world.await_all(&INSIDE, two.cluster_ip()?, &["a", "b"])
    })
}
