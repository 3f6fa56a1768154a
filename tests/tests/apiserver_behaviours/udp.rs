//! UDP clients that keep their socket while endpoints change, and packets of no flow.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::net::eventually;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Held, Probe, SocketKind};

use super::world::{
    Address, Caller, OTHER_TARGET_PORT, PATIENCE, PODS, Service, World, node_ports, port,
};
use super::{Behaviour, behaviour};

pub const BEHAVIOURS: &[Behaviour] = &[
    behaviour(
        "should be able to preserve UDP traffic when server pod cycles for a NodePort service",
        "S-124, S-126",
        pod_cycles_behind_a_node_port,
    ),
    behaviour(
        "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service",
        "S-124, S-126",
        pod_cycles_behind_a_cluster_ip,
    ),
    behaviour(
        "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service \
         and client is hostNetwork",
        "S-124, S-126, P-11",
        pod_cycles_and_client_is_host_network,
    ),
    behaviour(
        "should be able to preserve UDP traffic when server pod cycles for a ClusterIP service \
         with InternalTrafficPolicy set to Local",
        "S-106, S-124, S-126",
        pod_cycles_with_a_local_policy,
    ),
    behaviour(
        "should be able to preserve UDP traffic when initial unready endpoints get ready",
        "S-124, S-127",
        unready_endpoints_get_ready,
    ),
    behaviour(
        "should be able to cleanup conntrack entries when UDP service target port changes for a \
         NodePort service",
        "S-124, S-126",
        target_port_changes,
    ),
];

/// What asks again and again over one socket.
struct Sender {
    probe: Probe,
    number: usize,
}

impl Sender {
    /// Opens a connected UDP socket that no endpoint has to answer yet.
    fn new(world: &World, caller: Caller, to: Address, family: IpFamily) -> Result<Self> {
        let mut probe = world.another(caller)?;
        let held = Held::new(SocketKind::UdpConnected, to.of(family)).timeout_ms(300);
        let number = probe.prepare(held)?;
        Ok(Self { probe, number })
    }

    /// Asks until `server` answers.
    fn await_server(&mut self, server: &str) -> Result<()> {
        eventually(PATIENCE, || {
            let answer = self.probe.ask(self.number, 10)?;
            ensure!(answer.server == server, "{answer:?}");
            Ok(())
        })
        .with_context(|| format!("expecting {server}"))
    }
}

fn senders(world: &World, callers: &[Caller], to: Address) -> Result<Vec<Sender>> {
    let pairs = callers
        .iter()
        .flat_map(|&caller| FAMILIES.map(|family| (caller, family)));
    pairs
        .map(|(caller, family)| Sender::new(world, caller, to, family))
        .collect()
}

fn all_await(senders: &mut [Sender], server: &str) -> Result<()> {
    senders
        .iter_mut()
        .try_for_each(|sender| sender.await_server(server))
}

/// From no endpoint to one, to another, to none and back, with the same sockets.
pub fn cycle(world: &World, app: &str, callers: &[Caller], to: Address) -> Result<()> {
    let mut senders = senders(world, callers, to)?;
    for sender in &mut senders {
        // The first datagrams are sent while nobody can answer.
        ensure!(
            sender.probe.ask(sender.number, 10).is_err(),
            "who answered?"
        );
    }
    world.run_pods(app, &["a"])?;
    all_await(&mut senders, "a")?;
    world.run_pods(app, &["b"])?;
    world.end_pods(app, &["a"])?;
    all_await(&mut senders, "b")?;
    world.end_pods(app, &["b"])?;
    world.run_pods(app, &["a2"])?;
    all_await(&mut senders, "a2")
}

fn pod_cycles_behind_a_node_port(world: &mut World) -> Result<()> {
    let service = world.service("cycle-np", &node_ports(31_061))?;
    cycle(
        world,
        "cycle-np",
        &[Caller::Outside, Caller::Packets],
        service.node_port()?,
    )
}

fn pod_cycles_behind_a_cluster_ip(world: &mut World) -> Result<()> {
    let service = world.service("cycle-ip", &json!({}))?;
    cycle(world, "cycle-ip", &PODS, service.cluster_ip()?)
}

fn pod_cycles_and_client_is_host_network(world: &mut World) -> Result<()> {
    let service = world.service("cycle-host", &json!({}))?;
    cycle(world, "cycle-host", &[Caller::Node], service.cluster_ip()?)
}

fn pod_cycles_with_a_local_policy(world: &mut World) -> Result<()> {
    let spec = json!({"internalTrafficPolicy": "Local"});
    let to = world.service("cycle-local", &spec)?.cluster_ip()?;
    let mut senders = senders(world, &PODS, to)?;
    world.run_pods("cycle-local", &["a"])?;
    all_await(&mut senders, "a")?;
    world.run_pods("cycle-local", &["a2"])?;
    world.end_pods("cycle-local", &["a"])?;
    all_await(&mut senders, "a2")
}

fn unready_endpoints_get_ready(world: &mut World) -> Result<()> {
    let service = world.service("slow", &node_ports(31_062))?;
    let callers = [Caller::Outside, Caller::Packets];
    let mut senders = senders(world, &callers, service.node_port()?)?;
    world.run_pods("slow", &["a"])?;
    world.lab.set_ready("slow-a", "False")?;
    world.await_refused(&[Caller::Outside], service.node_port()?)?;
    for sender in &mut senders {
        ensure!(
            sender.probe.ask(sender.number, 10).is_err(),
            "who answered?"
        );
    }
    world.lab.set_ready("slow-a", "True")?;
    all_await(&mut senders, "a")
}

fn target_port_changes(world: &mut World) -> Result<()> {
    world.run_pods("retarget", &["a"])?;
    let mut service: Service = world.service("retarget", &node_ports(31_063))?;
    let callers = [Caller::Outside, Caller::Packets];
    let mut senders = senders(world, &callers, service.node_port()?)?;
    all_await(&mut senders, "a")?;
    let mut ports = ["TCP", "UDP"].map(|protocol| port(protocol, OTHER_TARGET_PORT));
    for port in &mut ports {
        port["nodePort"] = json!(31_063);
    }
    world.change(&mut service, &json!({"ports": ports}))?;
    world.end_pods("retarget", &["a"])?;
    world.run_pods("retarget", &["b"])?;
    all_await(&mut senders, "b")
}
