//! Session affinity over real sockets: one binding per client and service port, by whatever
//! frontend and path.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::manifests::Service;
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::{Addresses, FAMILIES, IpFamily, balanced};
use tests::traffic::{Plan, Report, SocketKind};

use Client::{Node, NodeAsPackets, Outside, Pod, PodAsPackets};
use Target::{At, ClusterIp, NodePort1};

/// Far longer than a change takes to be seen.
const SEEN: Duration = Duration::from_secs(60);
const PORT: u16 = 99;
const VIRTUAL: Addresses = balanced(9);
/// All frontends of the Service.
const FRONTENDS: [Target; 3] = [ClusterIp("sticky"), NodePort1("sticky"), At(VIRTUAL, PORT)];
/// Connections of one look. Without a binding the chance that one of three gets all is one in
/// sixty thousand.
const CONNECTIONS: u32 = 11;
const SERVERS: &[&str] = &["a", "b", "c"];
/// How long all endpoints change, until each client was bound anew once. A client without a binding
/// goes to another place each second, so within a second nothing new is to be seen; the chance that
/// one of six clients is bound to the same of three in each of sixty seconds is nil.
const CHANGES: Duration = Duration::from_secs(60);

fn on() -> Value {
    json!({"sessionAffinity": "ClientIP"})
}

fn rig(arguments: &[&str]) -> Result<Rig> {
    let mut rig = Rig::without_agents(Variant::default())?;
    let service = Service::new("sticky", 60)
        .port(PORT, 30_000 + PORT, TARGET_PORT)
        .balanced(VIRTUAL)
        .pods(SERVERS.iter().map(|pod| &rig.pods[*pod]))
        .spec(on());
    rig.add("sticky", service)?;
    rig.start_agents(arguments)?;
    Ok(rig)
}

fn look(
    rig: &mut Rig,
    (client, target): (Client, Target),
    family: IpFamily,
    socket: SocketKind,
) -> Result<Report> {
    let plan = Plan::new(socket, rig.address(target, family)).times(CONNECTIONS);
    let plan = plan.payload(10).timeout_ms(3_000).max_failures(1);
    let report = rig.client(client)?.connect(plan)?;
    ensure!(report.failed() == 0, "{report:?}");
    Ok(report)
}

/// The one server that all connections get to.
fn bound_to(
    rig: &mut Rig,
    path: (Client, Target),
    family: IpFamily,
    socket: SocketKind,
) -> Result<String> {
    let report = look(rig, path, family, socket)?;
    let servers = report.servers();
    ensure!(
        servers.len() == 1,
        "{path:?} {family:?} {socket:?}: {report:?}"
    );
    Ok(servers[0].to_owned())
}

/// S-101: ClusterIP, node port and load balancer's address, connected and unconnected sockets.
fn frontends_share(rig: &mut Rig, clients: &[Client]) -> Result<()> {
    let protocols: [&[SocketKind]; 2] = [
        &[SocketKind::Tcp, SocketKind::TcpBlocking],
        &[SocketKind::Udp, SocketKind::UdpConnected],
    ];
    for &client in clients {
        for family in FAMILIES {
            for sockets in protocols {
                let mut servers = BTreeSet::new();
                for target in FRONTENDS {
                    if client == NodeAsPackets && matches!(target, NodePort1(_)) {
                        continue;
                    }
                    for &socket in sockets {
                        servers.insert(bound_to(rig, (client, target), family, socket)?);
                    }
                }
                let is_one = servers.len() == 1;
                ensure!(is_one, "{client:?} {family:?} {sockets:?}: {servers:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn frontends_of_a_service_port_share_a_binding() -> Result<()> {
    let mut rig = rig(&[])?;
    frontends_share(&mut rig, &[Pod, PodAsPackets, Node, NodeAsPackets, Outside])
}

#[test]
fn frontends_share_a_binding_without_socket_hooks() -> Result<()> {
    let mut rig = rig(&["--socket-lb", "off"])?;
    frontends_share(&mut rig, &[Pod, NodeAsPackets, Outside])
}

/// S-103: switched off all is forgotten, switched on again one server is chosen.
#[test]
fn affinity_is_switched_off_and_on() -> Result<()> {
    let mut rig = rig(&[])?;
    let paths = [
        (Pod, ClusterIp("sticky")),
        (Node, ClusterIp("sticky")),
        (Node, NodePort1("sticky")),
        (Outside, NodePort1("sticky")),
    ];
    for _ in 0..2 {
        let service = rig.services["sticky"].clone();
        rig.add("sticky", service.clone().spec(json!({})))?;
        for path in paths {
            for socket in [SocketKind::Tcp, SocketKind::Udp] {
                eventually(SEEN, || {
                    let report = look(&mut rig, path, IpFamily::V4, socket)?;
                    ensure!(report.servers() == SERVERS, "{report:?}");
                    Ok(())
                })
                .with_context(|| format!("switched off: {path:?} {socket:?}"))?;
            }
        }
        rig.add("sticky", service.spec(on()))?;
        for path in paths {
            for socket in [SocketKind::Tcp, SocketKind::Udp] {
                eventually(SEEN, || bound_to(&mut rig, path, IpFamily::V4, socket))
                    .context("switched on")?;
            }
        }
    }
    Ok(())
}

/// What the agent of n1 has published for the Service.
fn seen(rig: &mut Rig, servers: &[&str]) -> Result<()> {
    let words = [
        "service",
        "list",
        "-o",
        "json",
        "--bpffs",
        &rig.agents[0].bpffs(),
    ];
    let list: Vec<Value> = serde_json::from_str(&rig.agents[0].shunt(&words)?)?;
    let of_it = || list.iter().filter(|frontend| frontend["name"] == "sticky");
    ensure!(of_it().next().is_some(), "no frontend: {list:?}");
    for frontend in of_it() {
        let count = frontend["backends"].as_array().map_or(0, Vec::len);
        ensure!(count == servers.len(), "{frontend}");
    }
    Ok(())
}

/// S-103: while an endpoint is away its client is bound elsewhere, and stays there.
#[test]
fn clients_of_a_lost_endpoint_are_bound_anew() -> Result<()> {
    let mut rig = rig(&[])?;
    for socket in [SocketKind::Tcp, SocketKind::Udp, SocketKind::UdpConnected] {
        for path in [(Pod, ClusterIp("sticky")), (Outside, At(VIRTUAL, PORT))] {
            let old = bound_to(&mut rig, path, IpFamily::V4, socket)?;
            let others: Vec<&str> = SERVERS.iter().copied().filter(|it| *it != old).collect();
            let (all, fewer) = (
                rig.services["sticky"].clone(),
                rig.behind("sticky", &others),
            );
            rig.manifests.apply(&fewer)?;
            let new = eventually(SEEN, || {
                let new = bound_to(&mut rig, path, IpFamily::V4, socket)?;
                ensure!(new != old, "still {new}");
                Ok(new)
            })?;
            rig.manifests.apply(&all)?;
            eventually(SEEN, || seen(&mut rig, SERVERS))?;
            let kept = bound_to(&mut rig, path, IpFamily::V4, socket)?;
            ensure!(
                kept == new,
                "{path:?} {socket:?}: {old}, {new}, then {kept}"
            );
        }
    }
    Ok(())
}

/// S-103: when an endpoint comes back its old bindings are gone. A client that asks in between has
/// another one; a client that does not is bound to any of them, so not always to the old one.
#[test]
fn bindings_of_a_lost_endpoint_do_not_come_back_with_it() -> Result<()> {
    rules(&["S-103"]);
    let mut rig = rig(&[])?;
    let paths = [
        (PodAsPackets, ClusterIp("sticky")),
        (Node, ClusterIp("sticky")),
        (Outside, NodePort1("sticky")),
    ];
    for family in FAMILIES {
        let mut are_kept: Vec<(Client, SocketKind)> = Vec::new();
        for (client, _) in paths {
            are_kept.extend([(client, SocketKind::Tcp), (client, SocketKind::Udp)]);
        }
        let end = Instant::now() + CHANGES;
        while !are_kept.is_empty() && Instant::now() < end {
            let mut bound = Vec::new();
            for path in paths {
                for socket in [SocketKind::Tcp, SocketKind::Udp] {
                    bound.push((path, socket, bound_to(&mut rig, path, family, socket)?));
                }
            }
            for server in SERVERS {
                let others: Vec<&str> = SERVERS.iter().copied().filter(|it| it != server).collect();
                let all = rig.services["sticky"].clone();
                rig.manifests.apply(&rig.behind("sticky", &others))?;
                eventually(SEEN, || seen(&mut rig, &others))?;
                rig.manifests.apply(&all)?;
                eventually(SEEN, || seen(&mut rig, SERVERS))?;
            }
            for (path, socket, old) in bound {
                if bound_to(&mut rig, path, family, socket)? != old {
                    are_kept.retain(|kept| *kept != (path.0, socket));
                }
            }
        }
        ensure!(
            are_kept.is_empty(),
            "{family:?}: never bound anew: {are_kept:?}"
        );
    }
    Ok(())
}

/// S-178: bindings survive the agent.
#[test]
fn bindings_survive_a_restart_of_the_agent() -> Result<()> {
    let mut rig = rig(&[])?;
    let mut bound = Vec::new();
    for client in [Pod, PodAsPackets, Node, Outside] {
        for family in FAMILIES {
            for socket in [SocketKind::Tcp, SocketKind::Udp] {
                let path = (client, ClusterIp("sticky"));
                let server = bound_to(&mut rig, path, family, socket)?;
                bound.push((path, family, socket, server));
            }
        }
    }
    for agent in &mut rig.agents {
        agent.kill()?;
        agent.run()?;
    }
    for (path, family, socket, server) in bound {
        let again = bound_to(&mut rig, path, family, socket)?;
        ensure!(
            again == server,
            "{path:?} {family:?} {socket:?}: {server}, then {again}"
        );
    }
    Ok(())
}
