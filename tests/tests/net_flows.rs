//! The flow tables over real sockets: who stays in them, and who has to leave.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_common::Counter;
use serde_json::Value;
use tests::net::eventually;
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

/// S-215: beyond the limit of a second no connection begins, and those that are there go on.
#[test]
fn connections_beyond_the_limit_of_a_second_do_not_begin() -> Result<()> {
    const QUESTIONS: u32 = 30;
    rules(&["S-215"]);
    let mut rig = Rig::new(Variant::default(), &["--new-flows-per-sec", "3"])?;
    for (client, target) in PATHS {
        for family in FAMILIES {
            let who = format!("{client:?} {family:?}");
            let to = rig.address(target, family);
            let (number, _) = rig.client(client)?.open(Held::new(SocketKind::Tcp, to))?;
            let plan = Plan::new(SocketKind::UdpConnected, to).timeout_ms(100);
            let plan = plan.times(QUESTIONS).max_failures(QUESTIONS);
            let before = limited(&rig)?;
            let report = rig.client(client)?.connect(plan)?;
            let failed = u64::from(report.failed());
            ensure!(failed > 0 && failed < QUESTIONS.into(), "{who}: {report:?}");
            ensure!(limited(&rig)? > before, "{who}: none is counted");
            rig.client(client)?.ask(number, 10_000).context(who)?;
        }
    }
    Ok(())
}

/// New flows that n1 has dropped for want of a limit that is larger.
fn limited(rig: &Rig) -> Result<u64> {
    Ok(rig.agents[0]
        .maps()?
        .counter(Counter::NewFlowLimited as u32))
}

/// What a connection through a NodePort has carried is told while it lives, and of its backend when
/// it has ended.
#[test]
fn connections_and_backends_tell_what_they_have_carried() -> Result<()> {
    const ASKED: u64 = 10_000;
    const TIMES: u64 = 3;
    let mut rig = Rig::new(Variant::default(), &[])?;
    let bpffs = rig.agents[0].bpffs();
    let query = |rig: &Rig, words: &[&str]| -> Result<Vec<Value>> {
        let words = [words, &["-o", "json", "--bpffs", &bpffs]].concat();
        Ok(serde_json::from_str(&rig.agents[0].shunt(&words)?)?)
    };
    for family in FAMILIES {
        let to = rig.address(NodePort1("far"), family);
        let plan = Held::new(SocketKind::Tcp, to);
        let (number, _) = rig.client(Outside)?.open(plan)?;
        for _ in 0..TIMES {
            rig.client(Outside)?.ask(number, ASKED as usize)?;
        }
        let flows = query(&rig, &["flows", "--service", "far"])?;
        let frontend = Value::from(to.to_string());
        let flow = flows.iter().find(|flow| flow["frontend"] == frontend);
        let flow = flow.with_context(|| format!("{to} is not in {flows:?}"))?;
        let number = |key: &str| flow[key].as_u64().with_context(|| format!("{key}: {flow}"));
        // Payload and headers, and what was sent twice.
        let range = ASKED * TIMES..2 * ASKED * TIMES;
        ensure!(range.contains(&number("bytesTo")?), "{flow}");
        ensure!(range.contains(&number("bytesFrom")?), "{flow}");
        ensure!(
            number("packetsTo")? > TIMES && number("packetsFrom")? > TIMES,
            "{flow}"
        );
        ensure!(number("ageSecs")? < 3600, "{flow}");
    }
    // Connections that end tell all that they have carried.
    let before = carried_to(&query(&rig, &["service", "get", "far"])?)?;
    for family in FAMILIES {
        let to = rig.address(NodePort1("far"), family);
        let plan = Plan::new(SocketKind::Tcp, to).times(20);
        let report = rig.client(Outside)?.connect(plan.payload(ASKED as usize))?;
        ensure!(report.failed() == 0, "{family:?}: {report:?}");
    }
    let all = 20 * ASKED * FAMILIES.len() as u64;
    // The last FIN is on its way when its sender goes on.
    eventually(Duration::from_secs(30), || {
        let more = carried_to(&query(&rig, &["service", "get", "far"])?)? - before;
        ensure!((all..2 * all).contains(&more), "{more} of {all}");
        Ok(())
    })
}

/// Bytes to all backends of these frontends.
fn carried_to(frontends: &[Value]) -> Result<u64> {
    let mut backends = BTreeMap::new();
    for frontend in frontends {
        for backend in frontend["backends"].as_array().context("backends")? {
            let key = [&frontend["protocol"], &backend["address"]].map(Value::to_string);
            backends.insert(key, backend["bytesTo"].as_u64());
        }
    }
    Ok(backends.values().flatten().sum())
}
