//! What happens to traffic while something changes: endpoints, Services, interfaces, the agent.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::manifests::{Condition, Service};
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target, serve};
use tests::rules;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::topology::{Seen, Variant};
use tests::traffic::{Held, Plan, Probe, Report, SocketKind};

use Client::{Node, Outside, Pod, PodAsPackets};
use Target::{ClusterIp, NodePort1};

/// Until a change has to be seen in traffic, on a machine whose cores are busy.
const SEEN: Duration = Duration::from_secs(60);
/// Of a removed backend, from the completed write to its last connection's start.
const REMOVAL_MS: u64 = 1_000;

/// Between the connections of a test that takes as long as two restarts do: a closed connection
/// keeps its SNAT port for a while.
const PACE_MS: u64 = 3;

/// The packet path, the socket path, and the way from outside.
const PATHS: [(Client, Target); 3] = [
    (Pod, ClusterIp("all")),
    (PodAsPackets, ClusterIp("all")),
    (Outside, NodePort1("all")),
];

/// Some connections to `target`.
fn connect(rig: &mut Rig, client: Client, target: Target, family: IpFamily) -> Result<Report> {
    let plan = Plan::new(SocketKind::Tcp, rig.address(target, family));
    rig.client(client)?
        .connect(plan.times(40).timeout_ms(3_000).max_failures(1))
}

/// Waits until exactly `servers` answer.
fn await_servers(
    rig: &mut Rig,
    (client, target): (Client, Target),
    family: IpFamily,
    servers: &[&str],
) -> Result<()> {
    eventually(SEEN, || {
        let report = connect(rig, client, target, family)?;
        ensure!(
            report.failed() == 0 && report.servers() == servers,
            "{report:?}"
        );
        Ok(())
    })
    .with_context(|| format!("{client:?} to {target:?} {family:?}, expecting {servers:?}"))
}

/// S-216: no connection fails, and the removed backend gets none soon after the write.
#[test]
fn removing_a_backend_fails_no_connection() -> Result<()> {
    rules(&["S-216"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    for (client, target) in PATHS {
        for family in FAMILIES {
            let to = rig.address(target, family);
            await_servers(&mut rig, (client, target), family, &["a", "b", "c"])?;
            rig.client(client)?
                .begin(Plan::new(SocketKind::Tcp, to).until_finish())?;
            let (all, two) = (rig.services["all"].clone(), rig.behind("all", &["a", "c"]));
            let written = rig.manifests.apply(&two)?;
            // Another client sees when it has happened; the first goes on meanwhile.
            await_servers(&mut rig, (Node, ClusterIp("all")), family, &["a", "c"])?;
            await_servers(
                &mut rig,
                (Client::OtherNode, ClusterIp("all")),
                family,
                &["a", "c"],
            )?;
            let report = rig.client(client)?.finish()?;
            rig.manifests.apply(&all)?;
            ensure!(report.failed() == 0, "{client:?} {family:?}: {report:?}");
            let last = report
                .answers
                .get("b")
                .context("b was never reached")?
                .last_start_ns;
            let late_ms = last.saturating_sub(written) / 1_000_000;
            ensure!(
                late_ms < REMOVAL_MS,
                "{client:?}: b was reached {late_ms} ms later"
            );
        }
    }
    Ok(())
}

/// S-120: what exists goes on, on every path, when its endpoint and even its Service is gone.
#[test]
fn open_connections_outlive_their_backend_and_service() -> Result<()> {
    rules(&["S-120"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    let mut held = Vec::new();
    for (client, target) in PATHS {
        for family in FAMILIES {
            for _ in 0..6 {
                let plan = Held::new(SocketKind::Tcp, rig.address(target, family));
                let (number, answer) = rig.client(client)?.open(plan)?;
                held.push((client, number, answer.server));
            }
        }
    }
    let none = rig.behind("all", &[]);
    rig.manifests.apply(&none)?;
    for (client, target) in PATHS {
        await_refused(&mut rig, client, target)?;
    }
    ask_all(&mut rig, &held).context("without endpoints")?;
    rig.manifests.delete(&none)?;
    // What says that the deletion was seen: another Service that is written after it.
    let late = Service::new("late", 99)
        .port(99, 0, TARGET_PORT)
        .pods([&rig.pods["a"]]);
    rig.manifests.apply(&late)?;
    rig.services.insert("late", late);
    await_servers(
        &mut rig,
        (PodAsPackets, ClusterIp("late")),
        IpFamily::V4,
        &["a"],
    )?;
    ask_all(&mut rig, &held).context("without the Service")
}

fn await_refused(rig: &mut Rig, client: Client, target: Target) -> Result<()> {
    for family in FAMILIES {
        eventually(SEEN, || {
            let report = connect(rig, client, target, family)?;
            ensure!(report.failures.contains_key("ECONNREFUSED"), "{report:?}");
            Ok(())
        })
        .with_context(|| format!("{client:?} to {target:?} {family:?} is not refused"))?;
    }
    Ok(())
}

/// Every held connection still talks to the server that it was opened to.
fn ask_all(rig: &mut Rig, held: &[(Client, usize, String)]) -> Result<()> {
    for (client, number, server) in held {
        let answer = rig.client(*client)?.ask(*number, 100_000);
        let answer = answer.with_context(|| format!("{client:?} lost {number}, to {server}"))?;
        ensure!(
            answer.server == *server,
            "{client:?}: {answer:?} instead of {server}"
        );
    }
    Ok(())
}

/// S-124, S-126: a client that keeps its 5-tuple moves on when its backend is gone, and only then.
#[test]
fn udp_moves_when_its_backend_is_gone() -> Result<()> {
    rules(&["S-124", "S-126", "S-205"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    for client in [Pod, PodAsPackets, Outside] {
        let target = if client == Outside {
            NodePort1("all")
        } else {
            ClusterIp("all")
        };
        for (family, socket) in FAMILIES.map(|family| (family, SocketKind::UdpConnected)) {
            let to = rig.address(target, family);
            let (number, first) = rig.client(client)?.open(Held::new(socket, to))?;
            let others: Vec<_> = ["a", "b", "c"]
                .into_iter()
                .filter(|s| *s != first.server)
                .collect();
            let all = rig.services["all"].clone();

            let terminating = all
                .clone()
                .with_condition(&rig.pods[&first.server], Condition::Terminating);
            rig.manifests.apply(&terminating)?;
            await_servers(&mut rig, (PodAsPackets, ClusterIp("all")), family, &others)?;
            let answer = rig.client(client)?.ask(number, 10)?;
            ensure!(
                answer.server == first.server,
                "a serving endpoint lost its flow: {answer:?}"
            );

            let gone = rig.behind("all", &others);
            rig.manifests.apply(&gone)?;
            let moved = eventually(SEEN, || {
                let answer = rig.client(client)?.ask(number, 10)?;
                ensure!(answer.server != first.server, "{answer:?}");
                Ok(())
            });
            moved.with_context(|| format!("{client:?} {family:?}"))?;
            rig.manifests.apply(&all)?;
            await_servers(
                &mut rig,
                (PodAsPackets, ClusterIp("all")),
                family,
                &["a", "b", "c"],
            )?;
        }
    }
    Ok(())
}

/// A pod that starts after the agent gets a link that nobody has seen before.
#[test]
fn interfaces_that_appear_later_are_served() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let late_client = rig.cluster.add_pod(0, "late-cl")?;
    let late_server = rig.cluster.add_pod(0, "late-sv")?;
    let _server = serve(&late_server)?;
    let service = rig.services["near"]
        .clone()
        .pods([&rig.pods["a"], &late_server]);
    rig.manifests.apply(&service)?;
    let mut probe = Probe::start(late_client.place(Seen::OnlyAsPackets))?;
    for family in FAMILIES {
        let plan = Plan::new(SocketKind::Tcp, rig.address(ClusterIp("near"), family)).times(40);
        eventually(SEEN, || {
            let report = probe.connect(plan.clone().timeout_ms(300).max_failures(1))?;
            ensure!(report.failed() == 0, "{report:?}");
            ensure!(report.servers() == ["a", "late-sv"], "{report:?}");
            Ok(())
        })?;
        await_servers(
            &mut rig,
            (Outside, NodePort1("near")),
            family,
            &["a", "late-sv"],
        )?;
    }
    Ok(())
}

/// S-120 and design.md section 5: a restart is no event for traffic, and neither is a dead agent.
#[test]
fn traffic_flows_while_the_agent_is_dead_and_after_its_restart() -> Result<()> {
    rules(&["S-120", "S-178", "S-180"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    let mut held = Vec::new();
    for (client, target) in PATHS {
        for family in FAMILIES {
            let to = rig.address(target, family);
            let held_one = rig.client(client)?.open(Held::new(SocketKind::Tcp, to));
            let (number, answer) = held_one.with_context(|| format!("{client:?} {to}"))?;
            held.push((client, number, answer.server));
        }
        let plan = Plan::new(SocketKind::Tcp, rig.address(target, IpFamily::V4));
        rig.client(client)?
            .begin(plan.until_finish().pause_ms(PACE_MS))?;
    }
    for end in [tests::agent::Agent::kill, tests::agent::Agent::stop] {
        for agent in &mut rig.agents {
            end(agent)?;
        }
        for family in FAMILIES {
            let servers = &["a", "b", "c"];
            await_servers(&mut rig, (Node, ClusterIp("all")), family, servers)
                .context("with the agents dead")?;
        }
        for agent in &mut rig.agents {
            agent.run()?;
        }
    }
    for (client, _) in PATHS {
        let report = rig.client(client)?.finish()?;
        ensure!(report.failed() == 0, "{client:?}: {report:?}");
    }
    ask_all(&mut rig, &held)?;
    // The restarted agents do their work.
    let two = rig.behind("all", &["b", "c"]);
    rig.manifests.apply(&two)?;
    for path in PATHS {
        await_servers(&mut rig, path, IpFamily::V4, &["b", "c"])?;
    }
    Ok(())
}

/// What changes while no agent runs is caught up with.
#[test]
fn a_restarted_agent_catches_up() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    for agent in &mut rig.agents {
        agent.kill()?;
    }
    let one = rig.behind("all", &["c"]);
    rig.manifests.apply(&one)?;
    for agent in &mut rig.agents {
        agent.run()?;
    }
    for path in PATHS {
        for family in FAMILIES {
            await_servers(&mut rig, path, family, &["c"])?;
        }
    }
    Ok(())
}
