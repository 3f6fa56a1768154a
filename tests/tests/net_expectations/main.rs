//! One table of expectations, written from the rules, through both paths: the same rows hold with
//! socket hooks and without, for pods, processes of a node, its host-network pods and clients
//! outside, over TCP and both kinds of UDP.

mod ping;
mod rows;
mod services;

use anyhow::{Context, Result, ensure};
use tests::rig::{Client, Rig, Target, contains, node_addresses};
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Plan, Report, SocketKind};

use rows::{Expect, Row, Served, Source};

/// Connections of one row, family and kind of socket that is served. With three backends the
/// chance that one of them gets none is below one in ten million.
const CONNECTIONS: u32 = 42;
/// Limit of a wait for an answer: longer than a retransmission.
const ANSWER_MS: u64 = 3_000;
/// Limit of a wait for nothing: an answer would take a hundredth of it.
const SILENCE_MS: u64 = 300;

/// What the agents were told, as far as it changes what servers see.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Masquerade {
    Needed,
    Always,
}

/// What the agents were told of sockets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hooks {
    On,
    Off,
}

#[test]
fn expectations_hold_with_socket_hooks() -> Result<()> {
    check(Hooks::On, Masquerade::Needed, &[], rows::ROWS)
}

#[test]
fn expectations_hold_on_the_packet_path() -> Result<()> {
    check(Hooks::Off, Masquerade::Needed, &[], rows::ROWS)
}

#[test]
fn expectations_hold_with_socket_hooks_and_masquerade_always() -> Result<()> {
    check(Hooks::On, Masquerade::Always, &[], rows::ROWS)
}

#[test]
fn expectations_hold_on_the_packet_path_and_masquerade_always() -> Result<()> {
    check(Hooks::Off, Masquerade::Always, &[], rows::ROWS)
}

#[test]
fn everything_is_masqueraded_with_socket_hooks() -> Result<()> {
    let arguments = &["--masquerade-all"];
    check(
        Hooks::On,
        Masquerade::Needed,
        arguments,
        rows::MASQUERADE_ALL,
    )
}

#[test]
fn everything_is_masqueraded_on_the_packet_path() -> Result<()> {
    let arguments = &["--masquerade-all"];
    check(
        Hooks::Off,
        Masquerade::Needed,
        arguments,
        rows::MASQUERADE_ALL,
    )
}

/// S-119d: loopback serves node ports where it is named.
#[test]
fn loopback_serves_node_ports_where_it_is_named() -> Result<()> {
    let arguments = &["--nodeport-addresses", "primary,localhost"];
    check(Hooks::On, Masquerade::Needed, arguments, rows::LOOPBACK)
}

/// Runs all rows and reports every one that fails.
fn check(hooks: Hooks, masquerade: Masquerade, more: &[&str], rows: &[Row]) -> Result<()> {
    let mut rig = services::rig()?;
    let mut arguments = more.to_vec();
    arguments.extend(match hooks {
        Hooks::On => ["--socket-lb", "on"],
        Hooks::Off => ["--socket-lb", "off"],
    });
    arguments.extend(match masquerade {
        Masquerade::Needed => ["--masquerade", "needed"],
        Masquerade::Always => ["--masquerade", "always"],
    });
    rig.start_agents(&arguments)?;
    let mut failures = Vec::new();
    for row in rows {
        if row.served == Served::BySocketsOnly && hooks == Hooks::Off {
            continue;
        }
        for family in FAMILIES {
            for socket in row.sockets() {
                if let Err(error) = check_row(&mut rig, row, masquerade, family, socket) {
                    failures.push(format!("{row} {family:?} {socket:?}: {error:#}"));
                }
            }
        }
    }
    failures.extend(ping::check(&rig)?);
    let count = failures.len();
    ensure!(count == 0, "{count} failed:\n{}", failures.join("\n"));
    Ok(())
}

fn check_row(
    rig: &mut Rig,
    row: &Row,
    masquerade: Masquerade,
    family: IpFamily,
    socket: SocketKind,
) -> Result<()> {
    // The other node remembers whom it sent to its pods without masquerading, and would take the
    // answers to a direct connection from the same port for theirs (decision 0009).
    match row.to {
        Target::NodePort2(_) => rig.use_port_range(row.from, 59_000, 60_999)?,
        _ => rig.use_port_range(row.from, 32_768, 58_999)?,
    }
    let to = rig.address(row.to, family);
    let plan = Plan::new(socket, to);
    let client = rig.client(row.from)?;
    match row.expect {
        Expect::Refused => {
            let report = client.connect(plan.times(2).timeout_ms(ANSWER_MS))?;
            let refused = report.failures.get("ECONNREFUSED");
            ensure!(refused == Some(&2), "not refused: {report:?}");
        }
        Expect::Silence => {
            let report = client.connect(plan.timeout_ms(SILENCE_MS))?;
            let silent = report.failures.get("TIMEOUT");
            ensure!(silent == Some(&1), "not dropped: {report:?}");
        }
        Expect::Dropped => {
            let report = client.connect(plan.timeout_ms(SILENCE_MS))?;
            let names = ["TIMEOUT", "ETIMEDOUT", "EPERM"];
            let is_dropped = names.iter().any(|name| report.failures.contains_key(*name));
            ensure!(is_dropped, "not dropped: {report:?}");
        }
        Expect::Answer(servers, source) => {
            let plan = plan.times(CONNECTIONS).payload(300).max_failures(3);
            let report = client.connect(plan.timeout_ms(ANSWER_MS))?;
            ensure!(report.failed() == 0, "{report:?}");
            ensure!(report.servers() == servers, "other servers: {report:?}");
            let asked = report.from.keys().all(|from| *from == to);
            ensure!(asked, "{to} answered as {:?}", report.from);
            check_source(rig, row.from, source, masquerade, &report)?;
        }
    }
    Ok(())
}

/// The address that servers saw is the one that the rules want.
fn check_source(
    rig: &Rig,
    client: Client,
    source: Source,
    masquerade: Masquerade,
    report: &Report,
) -> Result<()> {
    let wanted = match (source, masquerade) {
        (Source::Anyone, _) => return Ok(()),
        (Source::Kept, _) | (Source::KeptWherePossible(_), Masquerade::Needed) => {
            rig.own_addresses(client)
        }
        (Source::Node(node), _) | (Source::KeptWherePossible(node), Masquerade::Always) => {
            node_addresses(node)
        }
    };
    let wrong = report.seen_as.keys().find(|&&ip| !contains(&wanted, ip));
    ensure!(
        wrong.is_none(),
        "servers saw {:?}, not {source:?}",
        report.seen_as
    );
    report.seen_as.keys().next().context("nobody was seen")?;
    Ok(())
}
