//! The flow tables over real sockets: who stays in them, and who has to leave.

use anyhow::{Context, Result, ensure};
use tests::rig::{Client, Rig, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Held, Plan, SocketKind};

use Client::{NodeAsPackets, Outside, PodAsPackets};
use Target::{ClusterIp, NodePort1};

/// Entries of FLOWS; a connection needs two.
const MAX_FLOWS: &str = "1024";
/// Short connections of one client, family and protocol: more than fit.
const SHORT: u32 = 700;

/// Paths whose every connection is in the flow tables of n1.
const PATHS: [(Client, Target); 3] = [
    (PodAsPackets, ClusterIp("all")),
    (NodeAsPackets, ClusterIp("all")),
    (Outside, NodePort1("all")),
];

struct HeldConnection {
    client: Client,
    family: IpFamily,
    number: usize,
    server: String,
}

fn hold(rig: &mut Rig) -> Result<Vec<HeldConnection>> {
    let mut held = Vec::new();
    for (client, target) in PATHS {
        for family in FAMILIES {
            for _ in 0..5 {
                let plan = Held::new(SocketKind::Tcp, rig.address(target, family));
                let (number, answer) = rig.client(client)?.open(plan)?;
                held.push(HeldConnection {
                    client,
                    family,
                    number,
                    server: answer.server,
                });
            }
        }
    }
    Ok(held)
}

/// Connections that end, and questions that are answered, one after the other.
fn pass_by(rig: &mut Rig, socket: SocketKind) -> Result<()> {
    for (client, target) in PATHS {
        for family in FAMILIES {
            let plan = Plan::new(socket, rig.address(target, family)).times(SHORT);
            let report = rig.client(client)?.connect(plan.payload(10))?;
            ensure!(report.failed() == 0, "{client:?} {family:?}: {report:?}");
        }
    }
    Ok(())
}

fn ask_all(rig: &mut Rig, held: &[HeldConnection]) -> Result<()> {
    for one in held {
        let who = format!("{:?} {:?}", one.client, one.family);
        let answer = rig.client(one.client)?.ask(one.number, 10_000);
        let answer = answer.with_context(|| format!("{who} lost its connection"))?;
        ensure!(answer.server == one.server, "{who}: {answer:?}");
    }
    Ok(())
}

/// S-120, S-122: an idle connection is not lost to any number of closed ones.
#[test]
fn closed_connections_displace_no_live_one() -> Result<()> {
    rules(&["S-120", "S-122"]);
    let mut rig = Rig::new(Variant::default(), &["--max-flows", MAX_FLOWS])?;
    let held = hold(&mut rig)?;
    pass_by(&mut rig, SocketKind::Tcp)?;
    ask_all(&mut rig, &held)
}

/// The same for datagrams that were answered and are not a stream.
#[test]
fn answered_questions_displace_no_live_connection() -> Result<()> {
    rules(&["S-120", "S-122"]);
    let mut rig = Rig::new(Variant::default(), &["--max-flows", MAX_FLOWS])?;
    let held = hold(&mut rig)?;
    pass_by(&mut rig, SocketKind::UdpConnected)?;
    ask_all(&mut rig, &held)
}
