//! Source ports that clash: one client port towards several places that are one backend, and the
//! ports of this node's own sockets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_common::Counter;
use tests::manifests::Service;
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Held, Plan, Probe, SocketKind};

use Client::{Node, NodeAsPackets, Outside, Pod, PodAsPackets};
use SocketKind::{Tcp, UdpConnected};
use Target::{ClusterIp, Direct, NodePort1};

/// One connection of a row.
type Dial = (Client, Target);

/// Connections from one port, opened in this order, that all live together.
struct Row {
    name: &'static str,
    rules: &'static str,
    dials: [Dial; 2],
    sockets: &'static [SocketKind],
}

const BOTH: &[SocketKind] = &[Tcp, UdpConnected];
/// What the hooks translate at connect() (P-11).
const TRANSLATED: &[SocketKind] = &[Tcp];

const fn row(
    name: &'static str,
    rules: &'static str,
    dials: [Dial; 2],
    sockets: &'static [SocketKind],
) -> Row {
    Row {
        name,
        rules,
        dials,
        sockets,
    }
}

/// `near` and `near2` have the backend `a` beside the client, `one` and `one2` the remote `b`.
const ROWS: &[Row] = &[
    row(
        "a Service, then its backend",
        "S-099",
        [
            (PodAsPackets, ClusterIp("near")),
            (PodAsPackets, Direct("a")),
        ],
        BOTH,
    ),
    row(
        "a Service, then its remote backend",
        "S-099",
        [
            (PodAsPackets, ClusterIp("one")),
            (PodAsPackets, Direct("b")),
        ],
        BOTH,
    ),
    row(
        "a Service as packets, then by the socket",
        "S-099, S-206",
        [(PodAsPackets, ClusterIp("near")), (Pod, ClusterIp("near2"))],
        TRANSLATED,
    ),
    row(
        "two Services with one backend",
        "S-099",
        [
            (PodAsPackets, ClusterIp("near")),
            (PodAsPackets, ClusterIp("near2")),
        ],
        BOTH,
    ),
    row(
        "two Services with one remote backend",
        "S-099",
        [
            (PodAsPackets, ClusterIp("one")),
            (PodAsPackets, ClusterIp("one2")),
        ],
        BOTH,
    ),
    row(
        "a node's process and two Services with one remote backend",
        "S-099",
        [
            (NodeAsPackets, ClusterIp("one")),
            (NodeAsPackets, ClusterIp("one2")),
        ],
        BOTH,
    ),
    row(
        "outside and two node ports with one backend",
        "S-099, P-4",
        [(Outside, NodePort1("near")), (Outside, NodePort1("near2"))],
        BOTH,
    ),
    row(
        "outside and two node ports with one remote backend",
        "S-099",
        [(Outside, NodePort1("one")), (Outside, NodePort1("one2"))],
        BOTH,
    ),
    row(
        "outside, a node port and a ClusterIP of one backend",
        "S-097, S-099",
        [(Outside, NodePort1("near")), (Outside, ClusterIp("near"))],
        BOTH,
    ),
];

/// The first port of the rows: outside the ephemeral ports and the SNAT ranges.
const FIRST_PORT: u16 = 5_000;
/// Ports of one row, family and kind of socket.
const PORTS: u16 = 8;

fn rig(arguments: &[&str]) -> Result<Rig> {
    let mut rig = Rig::without_agents(Variant::default())?;
    for (name, number, port, pod) in [
        ("near2", 20, 85, "a"),
        ("one", 21, 86, "b"),
        ("one2", 22, 87, "b"),
    ] {
        let service = Service::new(name, number).port(port, 30_000 + port, TARGET_PORT);
        let service = service.pods([&rig.pods[pod]]);
        rig.add(name, service)?;
    }
    rig.start_agents(arguments)?;
    Ok(rig)
}

/// S-099: connections that one port has at the same time do not meet each other's answers.
#[test]
fn one_client_port_serves_connections_with_one_backend() -> Result<()> {
    let mut rig = rig(&[])?;
    let mut ports = (FIRST_PORT..).step_by(PORTS.into());
    let mut failures = Vec::new();
    for row in ROWS {
        for family in FAMILIES {
            for &socket in row.sockets {
                let first = ports.next().context("no port is left")?;
                for port in first..first + PORTS {
                    if let Err(error) = live_together(&mut rig, row.dials, socket, family, port) {
                        let (name, rules) = (row.name, row.rules);
                        failures.push(format!(
                            "{name} ({rules}) {family:?} {socket:?} port {port}: {error:#}"
                        ));
                    }
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn live_together(
    rig: &mut Rig,
    dials: [Dial; 2],
    socket: SocketKind,
    family: IpFamily,
    port: u16,
) -> Result<()> {
    let mut open = Vec::new();
    for (client, target) in dials {
        let to = rig.address(target, family);
        let source = (rig.own_addresses(client)[0].of(family), port).into();
        let held = Held::new(socket, to).from(source).timeout_ms(1_500);
        let (number, answer) = rig
            .client(client)?
            .open(held)
            .with_context(|| format!("opening {target:?}"))?;
        ensure!(answer.from == Some(to), "{target:?}: {answer:?}");
        open.push((client, target, number, answer));
    }
    let [first, second] = [&open[0].3, &open[1].3];
    ensure!(first.server == second.server, "two backends: {open:?}");
    ensure!(
        first.peer != second.peer,
        "the server cannot tell them apart: {open:?}"
    );
    for payload in [10, 3_000, 500] {
        for (client, target, number, first) in &open {
            let answer = rig
                .client(*client)?
                .ask(*number, payload)
                .with_context(|| format!("{target:?} beside the other"))?;
            ensure!(
                answer.server == first.server && answer.from == first.from,
                "{target:?}: {answer:?}"
            );
        }
    }
    Ok(())
}

/// Decision 0009: a closed connection's port is free for the next one, whichever way it goes.
#[test]
fn one_client_port_serves_connections_after_each_other() -> Result<()> {
    let mut rig = rig(&[])?;
    let mut port = FIRST_PORT;
    for row in ROWS {
        let [one, two] = row.dials;
        for family in FAMILIES {
            for &socket in row.sockets {
                // A client's own kernel keeps the tuple of a closed TCP connection for itself.
                let dials: &[Dial] = if socket == Tcp {
                    &[one, two]
                } else {
                    &[one, two, one]
                };
                for &(client, target) in dials {
                    let to = rig.address(target, family);
                    let source = (rig.own_addresses(client)[0].of(family), port).into();
                    let plan = Plan::new(socket, to).from(source).payload(100);
                    let report = rig.client(client)?.connect(plan.timeout_ms(1_500))?;
                    ensure!(
                        report.failed() == 0 && report.from.contains_key(&to),
                        "{} ({}) {family:?} {socket:?}, {target:?}: {report:?}",
                        row.name,
                        row.rules
                    );
                }
                port += 1;
            }
        }
    }
    Ok(())
}

/// Sockets of the node with ports of the SNAT range.
const OWNED: u16 = 60;
/// Connections that are given a port out of ten times as many. The chance that not one of them
/// would be given a port that is owned is two in a thousand.
const MASQUERADED: u32 = 60;

/// P-13: a port that a socket of this node has towards a backend is not given to another
/// connection to it.
#[test]
fn ports_of_host_sockets_are_not_taken() -> Result<()> {
    let mut rig = rig(&["--snat-ports", "20000-20599"])?;
    for family in FAMILIES {
        for socket in BOTH {
            let own = rig.own_addresses(Node)[0].of(family);
            let to = rig.address(Direct("b"), family);
            let mut held = Vec::new();
            for index in 0..OWNED {
                let source = (own, 20_000 + index * 10).into();
                let plan = Held::new(*socket, to).from(source);
                let (number, answer) = rig.client(Node)?.open(plan)?;
                ensure!(answer.peer == source, "{answer:?}");
                held.push(number);
            }
            let plan = Plan::new(*socket, rig.address(NodePort1("one"), family));
            let plan = plan.times(MASQUERADED).payload(100).timeout_ms(1_500);
            let report = rig.client(Outside)?.connect(plan)?;
            ensure!(
                report.count("b") == MASQUERADED && report.seen_as.contains_key(&own),
                "{socket:?} {family:?}: {report:?}"
            );
            for number in held {
                let answer = rig.client(Node)?.ask(number, 1_000);
                let answer = answer.with_context(|| format!("{socket:?} {family:?} was taken"))?;
                ensure!(
                    answer.server == "b" && answer.from == Some(to),
                    "{answer:?}"
                );
            }
        }
    }
    Ok(())
}

/// All SNAT ports of the node, and their number.
const FEW_PORTS: (&str, usize) = ("20000-20003", 4);
/// A closed connection keeps its port for ten seconds; then its next owner's SYN has to come.
const REUSED: Duration = Duration::from_secs(120);

/// Connections of one process.
struct Crowd {
    probe: Probe,
    held: Vec<usize>,
}

impl Crowd {
    fn new(rig: &Rig, held: Held, count: usize) -> Result<Self> {
        let mut probe = Probe::start(&rig.place(Outside)?)?;
        let opened = (0..count).map(|_| probe.open(held.clone()));
        let opened = opened.collect::<Result<Vec<_>>>()?;
        let held = opened.into_iter().map(|(number, _)| number).collect();
        Ok(Self { probe, held })
    }

    fn ask_all(&mut self) -> Result<()> {
        for &number in &self.held {
            let answer = self.probe.ask(number, 1_000)?;
            ensure!(answer.server == "b", "{answer:?}");
        }
        Ok(())
    }
}

fn refused(rig: &Rig) -> Result<u64> {
    let maps = rig.agents[0].maps()?;
    Ok(maps.counter(Counter::SnatPortsExhausted as u32))
}

/// P-13: with every port in use a new connection is dropped and counted, and nobody else is hurt.
fn check_refusal(rig: &mut Rig, plan: Plan, crowds: [&mut Crowd; 2]) -> Result<()> {
    let before = refused(rig)?;
    let report = rig.client(Outside)?.connect(plan.timeout_ms(300))?;
    ensure!(report.failures.contains_key("TIMEOUT"), "{report:?}");
    ensure!(report.answered() == 0, "{report:?}");
    let count = refused(rig)? - before;
    ensure!(count > 0, "no refusal was counted");
    for crowd in crowds {
        crowd.ask_all().context("a live one")?;
    }
    Ok(())
}

#[test]
fn connections_beyond_the_last_port_wait_for_one() -> Result<()> {
    rules(&["P-13"]);
    let (range, ports) = FEW_PORTS;
    let mut rig = rig(&["--snat-ports", range])?;
    let mut crowds = Vec::new();
    for family in FAMILIES {
        for &socket in BOTH {
            let to = rig.address(NodePort1("one"), family);
            let held = Held::new(socket, to);
            let mut stay = Crowd::new(&rig, held.clone(), ports / 2)?;
            let mut go = Crowd::new(&rig, held, ports - ports / 2)?;
            let plan = Plan::new(socket, to).payload(10);
            check_refusal(&mut rig, plan, [&mut stay, &mut go])
                .with_context(|| format!("{socket:?} {family:?}"))?;
            crowds.push((family, socket, stay, go));
        }
    }
    // UDP flows end by time alone.
    for (family, socket, mut stay, go) in crowds {
        if socket != Tcp {
            continue;
        }
        let freed = go.held.len();
        drop(go);
        let to = rig.address(NodePort1("one"), family);
        let mut next = eventually(REUSED, || {
            Crowd::new(&rig, Held::new(socket, to).timeout_ms(2_000), freed)
        })?;
        let plan = Plan::new(socket, to).payload(10);
        check_refusal(&mut rig, plan, [&mut stay, &mut next])
            .with_context(|| format!("after some were closed, {family:?}"))?;
    }
    Ok(())
}
