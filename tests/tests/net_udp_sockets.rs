//! UDP sockets that the socket hooks connected to a backend: destroyed when it is gone.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Answer, Held, Plan, SocketKind};

use Client::{Node, Outside, Pod};
use Target::{ClusterIp, NodePort1};

/// Until a change has to be seen in traffic, on a machine whose cores are busy.
const SEEN: Duration = Duration::from_secs(20);
/// Connections after which each of three backends was certainly chosen.
const TRIES_MAX: usize = 60;

/// A held connection and who answers it.
type Open = (usize, Answer);

fn open(rig: &mut Rig, client: Client, to: SocketAddr) -> Result<Open> {
    rig.client(client)?
        .open(Held::new(SocketKind::UdpConnected, to))
}

/// Opens connections until two different servers answer.
fn open_two(rig: &mut Rig, client: Client, to: SocketAddr) -> Result<[Open; 2]> {
    let first = open(rig, client, to)?;
    for _ in 0..TRIES_MAX {
        let next = open(rig, client, to)?;
        if next.1.server != first.1.server {
            return Ok([first, next]);
        }
    }
    anyhow::bail!("all are answered by {}", first.1.server)
}

/// One client and target: the backend of one socket goes; that socket is told, and no other.
fn check(rig: &mut Rig, client: Client, target: Target, family: IpFamily) -> Result<()> {
    let to = rig.address(target, family);
    let [lost, kept] = open_two(rig, client, to)?;
    ensure!(
        lost.1.from == Some(to),
        "its peer is the frontend, not {:?}",
        lost.1.from
    );
    let gone = lost.1.server.clone();
    // Nobody translated this one: it is connected to the same backend by its own wish.
    let direct = open(rig, client, rig.pods[&gone].at(family, TARGET_PORT))?;
    ensure!(direct.1.server == gone, "{direct:?}");

    let others: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .filter(|pod| *pod != gone)
        .collect();
    rig.manifests.apply(&rig.behind("all", &others))?;
    eventually(SEEN, || {
        let answer = rig.client(client)?.ask(lost.0, 10);
        ensure!(answer.is_err(), "the socket lives: {answer:?}");
        Ok(())
    })?;
    for (number, answer) in [&kept, &direct] {
        let server = rig.client(client)?.ask(*number, 10)?.server;
        ensure!(server == answer.server, "{server} instead of {answer:?}");
    }
    // The application connects anew.
    let plan = Plan::new(SocketKind::UdpConnected, to).times(20);
    let report = rig.client(client)?.connect(plan)?;
    ensure!(
        report.failed() == 0 && !report.servers().contains(&gone.as_str()),
        "{report:?}"
    );
    rig.manifests.apply(&rig.services["all"].clone())?;
    eventually(SEEN, || {
        let plan = Plan::new(SocketKind::UdpConnected, to).times(40);
        let report = rig.client(client)?.connect(plan)?;
        ensure!(report.servers().len() == 3, "{report:?}");
        Ok(())
    })
}

#[test]
fn connected_sockets_of_a_lost_backend_are_destroyed() -> Result<()> {
    rules(&["S-123", "S-124", "S-205"]);
    let mut rig = Rig::new(Variant::default(), &["--socket-udp", "connected"])?;
    let status = rig.agents[0].status()?;
    ensure!(status["features"]["udpDestroy"] == true, "{status}");
    // Outside there are no hooks: the packet path moves its sockets, and nobody destroys them.
    let outside = rig.address(NodePort1("all"), IpFamily::V4);
    let far = open(&mut rig, Outside, outside)?;
    for (client, target) in [(Pod, ClusterIp("all")), (Node, ClusterIp("all"))] {
        for family in FAMILIES {
            check(&mut rig, client, target, family)
                .with_context(|| format!("{client:?} to {target:?} {family:?}"))?;
        }
    }
    rig.client(Outside)?.ask(far.0, 10)?;
    Ok(())
}

/// An own address is translated at the socket in every mode, since no packet path serves it (P-8).
#[test]
fn sockets_connected_to_an_own_address_are_destroyed_by_default() -> Result<()> {
    rules(&["S-124", "S-205"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    for family in FAMILIES {
        check(&mut rig, Node, NodePort1("all"), family).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}
