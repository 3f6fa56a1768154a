//! The granular checks of Services: each kind of caller, each protocol.

use anyhow::{Result, ensure};
use tests::net::eventually;
use tests::rig::node_addresses;
use tests::topology::Seen;
use tests::topology::addresses::FAMILIES;
use tests::traffic::{Plan, Probe, SocketKind};

use super::world::{Caller, PATIENCE, SOCKETS, World, node_ports};
use super::{Behaviour, behaviour};

pub const BEHAVIOURS: &[Behaviour] = &[
    behaviour(
        "should function for pod-Service: http; udp",
        "S-020, S-023, S-200",
        pods_reach_services,
    ),
    behaviour(
        "should function for node-Service: http; udp",
        "S-080, S-204, P-8",
        nodes_reach_services,
    ),
    behaviour(
        "should function for endpoint-Service: http; udp",
        "S-094",
        endpoints_reach_their_service,
    ),
    behaviour(
        "should update endpoints: http; udp",
        "S-046, S-120",
        endpoints_are_updated,
    ),
    behaviour(
        "should be able to handle large requests: http",
        "S-020",
        large_requests_arrive,
    ),
    behaviour(
        "should check kube-proxy urls",
        "S-145, S-148",
        urls_of_kube_proxy_answer,
    ),
];

fn pods_reach_services(world: &mut World) -> Result<()> {
    world.run_pods("pod-service", &["a", "b"])?;
    let service = world.service("pod-service", &node_ports(31_121))?;
    let callers = [Caller::Pod, Caller::Packets, Caller::FarPod];
    world.await_all(&callers, service.cluster_ip()?, &["a", "b"])?;
    for node in [1, 2] {
        world.await_all(&callers, service.node_port_of("tcp", node)?, &["a", "b"])?;
    }
    Ok(())
}

/// A process of the node, at the ClusterIP, at its own node's port, and at the other node's.
fn nodes_reach_services(world: &mut World) -> Result<()> {
    world.run_pods("node-service", &["a", "b"])?;
    let service = world.service("node-service", &node_ports(31_122))?;
    world.await_servers(Caller::Node, service.cluster_ip()?, &["a", "b"])?;
    for node in [1, 2] {
        let to = service.node_port_of("tcp", node)?;
        world.await_servers(Caller::Node, to, &["a", "b"])?;
    }
    Ok(())
}

/// The dialling pod is one of the endpoints: it reaches itself, under its node's address, as well
/// as the others.
fn endpoints_reach_their_service(world: &mut World) -> Result<()> {
    world.run_pods("endpoint-service", &["a", "b"])?;
    let service = world.service("endpoint-service", &node_ports(31_123))?;
    let places = [
        service.cluster_ip()?,
        service.node_port()?,
        service.node_port_of("tcp", 2)?,
    ];
    for to in places {
        world.await_servers(Caller::Pod, to, &["a", "b"])?;
        for seen in [Seen::BySocketHooks, Seen::OnlyAsPackets] {
            let mut probe = Probe::start(world.pod("a")?.place(seen))?;
            for (family, socket) in FAMILIES
                .iter()
                .flat_map(|it| SOCKETS.map(|kind| (it, kind)))
            {
                let plan = Plan::new(socket, to.of(*family)).times(20).payload(10);
                let report = probe.connect(plan.timeout_ms(1_500))?;
                let all = report.failed() == 0 && report.servers() == ["a", "b"];
                ensure!(all, "{seen:?} {socket:?} {to:?}: {report:?}");
            }
        }
    }
    Ok(())
}

fn endpoints_are_updated(world: &mut World) -> Result<()> {
    world.run_pods("update", &["a", "a2", "b"])?;
    let service = world.service("update", &node_ports(31_124))?;
    let callers = [Caller::Pod, Caller::Packets, Caller::Node];
    let (to, node_port) = (service.cluster_ip()?, service.node_port()?);
    world.await_all(&callers, to, &["a", "a2", "b"])?;
    world.end_pods("update", &["a"])?;
    world.await_all(&callers, to, &["a2", "b"])?;
    world.await_servers(Caller::Outside, node_port, &["a2", "b"])?;
    world.run_pods("update", &["b2"])?;
    world.await_all(&callers, to, &["a2", "b", "b2"])
}

fn large_requests_arrive(world: &mut World) -> Result<()> {
    world.run_pods("large-tcp", &["a", "b"])?;
    let service = world.service("large-tcp", &node_ports(31_125))?;
    let places = [
        (Caller::Packets, service.cluster_ip()?),
        (Caller::Pod, service.cluster_ip()?),
        (Caller::Outside, service.node_port()?),
        (Caller::Outside, service.node_port_of("tcp", 2)?),
        (Caller::Node, service.node_port()?),
    ];
    for (caller, to) in places {
        world.await_servers(caller, to, &["a", "b"])?;
        for family in FAMILIES {
            let plan = Plan::new(SocketKind::Tcp, to.of(family));
            let report = world
                .probe(caller)?
                .connect(plan.times(20).payload(65_536))?;
            ensure!(report.failed() == 0, "{caller:?} {to:?}: {report:?}");
        }
    }
    Ok(())
}

/// `/healthz` on every address of the node, `/proxyMode` on its loopback.
fn urls_of_kube_proxy_answer(world: &mut World) -> Result<()> {
    let get = |netns: &tests::net::Netns, url: &str| {
        let words = ["curl", "-s", "-g", "-f", "--max-time", "5", url];
        eventually(PATIENCE, || netns.run(&words))
    };
    let own = node_addresses(1)[0];
    for family in FAMILIES {
        let url = format!(
            "http://{}/healthz",
            std::net::SocketAddr::from((own.of(family), 10_256))
        );
        let body = get(&world.cluster.client.netns, &url)?;
        ensure!(body.contains("lastUpdated"), "{url}: {body}");
    }
    let mode = get(&world.n1().netns, "http://127.0.0.1:10249/proxyMode")?;
    ensure!(!mode.is_empty(), "/proxyMode says nothing");
    Ok(())
}
