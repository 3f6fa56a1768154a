//! `shunt monitor` over real sockets: what it tells, by the agent and by the pins, and that the
//! datapath tells nothing when nobody listens.

use std::io::{BufRead as _, BufReader, Lines};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_common::{Counter, EVENTS_SIZE, Event, Monitor as Lease};
use proxy_userspace::datapath::pin::{PinKind, Pins};
use proxy_userspace::datapath::{environment, load, sys};
use proxy_userspace::maps::Maps as _;
use serde_json::Value;
use tests::net::eventually;
use tests::rig::{Client, Rig, Target};
use tests::topology::Variant;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Plan, SocketKind};

use std::os::fd::AsFd as _;

use Client::{Outside, PodAsPackets};
use Target::{ClusterIp, NodePort1};

/// For a change to be acted on, and a lease to end.
const SOON: Duration = Duration::from_secs(20);

/// A monitor on n1. Dropping it ends the process.
struct Monitor {
    child: Child,
    /// Nothing where nobody reads any more.
    events: Option<Lines<BufReader<ChildStdout>>>,
    notes: Lines<BufReader<ChildStderr>>,
}

impl Monitor {
    /// Starts one, and waits until it listens in the way that `note` is part of.
    fn start(rig: &Rig, words: &[&str], note: &str) -> Result<Self> {
        let bpffs = rig.agents[0].bpffs();
        let mut command = Command::new(tests::agent::binary()?);
        command.args(["monitor", "--bpffs", &bpffs]).args(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = rig.place(Client::Node)?.spawn(&mut command)?;
        let events = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let notes = BufReader::new(child.stderr.take().context("a pipe")?).lines();
        let mut monitor = Self {
            child,
            events: Some(events),
            notes,
        };
        monitor.await_note(note)?;
        Ok(monitor)
    }

    /// One that prints JSON.
    fn json(rig: &Rig, words: &[&str]) -> Result<Self> {
        Self::start(rig, &[words, &["-o", "json"]].concat(), "by the agent")
    }

    fn await_note(&mut self, part: &str) -> Result<()> {
        let mut said = Vec::new();
        for line in self.notes.by_ref() {
            let line = line?;
            if line.contains(part) {
                return Ok(());
            }
            said.push(line);
        }
        bail!("it ended without {part:?}: {said:?}");
    }

    /// The next line; `None` at the end.
    fn line(&mut self) -> Result<Option<String>> {
        let events = self.events.as_mut().context("nobody reads")?;
        Ok(events.next().transpose()?)
    }

    /// The next event.
    fn next(&mut self) -> Result<Value> {
        let line = self.line()?.context("it ended")?;
        serde_json::from_str(&line).with_context(|| format!("reading {line}"))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        send(self.child.id(), signal)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(process: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(process.try_into()?), signal)?)
}

/// One connection; what was dialed.
fn connect(rig: &mut Rig, client: Client, target: Target, family: IpFamily) -> Result<SocketAddr> {
    let to = rig.address(target, family);
    rig.client(client)?
        .connect(Plan::new(SocketKind::Tcp, to).times(1))?;
    Ok(to)
}

/// True while programs of n1 tell anything.
fn is_leased(rig: &Rig) -> Result<bool> {
    let pins = Pins::at(&rig.cluster.nodes[0].bpffs);
    let mut lease = Lease::default();
    let (map, _) = pins.map("MONITORS")?;
    let bytes = bytemuck::bytes_of_mut(&mut lease);
    sys::map_lookup(map.as_fd(), &0_u32.to_ne_bytes(), bytes)?;
    let jiffies = pins.open(PinKind::Programs, load::JIFFIES)?;
    let hz = rig.agents[0]
        .maps()?
        .config()
        .context("a configuration")?
        .hz;
    let now = environment::now_secs(jiffies.context("a clock")?.as_fd(), hz)?;
    Ok(lease.kinds != 0 && now < lease.until_secs)
}

fn ensure_backend(rig: &Rig, event: &Value, pods: &[&str]) -> Result<()> {
    let backend: SocketAddr = event["backend"].as_str().context("a backend")?.parse()?;
    let mut addresses = pods.iter().flat_map(|pod| {
        let addresses = rig.pods[*pod].addresses;
        FAMILIES.map(|family| SocketAddr::from((addresses.of(family), tests::rig::TARGET_PORT)))
    });
    ensure!(addresses.any(|it| it == backend), "{event:#}");
    Ok(())
}

#[test]
fn connections_are_told_as_they_begin_at_every_hook() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let mut monitor = Monitor::json(&rig, &["--type", "new-flow"])?;
    for family in FAMILIES {
        let to = connect(&mut rig, Client::Pod, ClusterIp("near"), family)?;
        let event = monitor.next()?;
        ensure!(
            event["type"] == "new-flow" && event["hook"] == "connect",
            "{event:#}"
        );
        ensure!(event["destination"] == to.to_string(), "{event:#}");
        ensure!(event["reason"] == "SocketConnected", "{event:#}");
        let service = event["service"].as_str().context("a service")?;
        ensure!(service.contains("/near:"), "{event:#}");
        ensure_backend(&rig, &event, &["a"])?;

        for (client, target) in [
            (PodAsPackets, ClusterIp("far")),
            (Outside, NodePort1("far")),
        ] {
            let to = connect(&mut rig, client, target, family)?;
            let event = monitor.next()?;
            ensure!(event["hook"] == "tc-ingress", "{event:#}");
            ensure!(event["destination"] == to.to_string(), "{event:#}");
            let source: SocketAddr = event["source"].as_str().context("a source")?.parse()?;
            let own = rig.own_addresses(client);
            ensure!(tests::rig::contains(&own, source.ip()), "{event:#}");
            ensure!(event["interface"].is_string(), "{event:#}");
            let service = event["service"].as_str().context("a service")?;
            ensure!(service.contains("/far:"), "{event:#}");
            ensure_backend(&rig, &event, &["b", "c"])?;
        }
    }
    Ok(())
}

#[test]
fn refusals_are_told_with_their_reasons() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let mut monitor = Monitor::json(&rig, &["--service", "empty"])?;
    // Not asked for.
    connect(&mut rig, PodAsPackets, ClusterIp("near"), IpFamily::V4)?;
    for client in [PodAsPackets, Outside] {
        let target = match client {
            Outside => NodePort1("empty"),
            _ => ClusterIp("empty"),
        };
        let to = connect(&mut rig, client, target, IpFamily::V4)?;
        let event = monitor.next()?;
        ensure!(event["type"] == "reject", "{event:#}");
        ensure!(event["reason"] == "RejectNoEndpoint", "{event:#}");
        ensure!(event["destination"] == to.to_string(), "{event:#}");
        ensure!(event["tcpFlags"][0] == "SYN", "{event:#}");
        ensure!(event["backend"].is_null(), "{event:#}");
    }
    // At the socket hook, where the kernel lets it refuse; else by the packet path.
    connect(&mut rig, Client::Pod, ClusterIp("empty"), IpFamily::V6)?;
    let event = monitor.next()?;
    ensure!(event["type"] == "reject", "{event:#}");
    let expected = match rig.agents[0].kernel()? >= (5, 18) {
        true => ("connect", "SocketRefused"),
        false => ("tc-ingress", "RejectNoEndpoint"),
    };
    let found = (event["hook"].as_str(), event["reason"].as_str());
    ensure!(found == (Some(expected.0), Some(expected.1)), "{event:#}");
    Ok(())
}

#[test]
fn changes_of_services_are_told_with_their_backends() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let mut monitor = Monitor::json(&rig, &["--type", "service-changed", "--service", "near"])?;
    let changed = rig.behind("near", &["a", "b"]);
    rig.add("near", changed)?;
    let added = rig.pods["b"].addresses;
    let mut families = Vec::new();
    // Of both families, TCP and UDP.
    while families.len() < 2 {
        let event = monitor.next()?;
        ensure!(event["type"] == "service-changed", "{event:#}");
        if event["protocol"] != "TCP" {
            continue;
        }
        ensure!(event["backends"]["before"] == 1, "{event:#}");
        ensure!(event["backends"]["after"] == 2, "{event:#}");
        ensure!(
            event["frontends"]["before"] == event["frontends"]["after"],
            "{event:#}"
        );
        let family = match event["family"].as_str() {
            Some("IPv4") => IpFamily::V4,
            _ => IpFamily::V6,
        };
        let backend = SocketAddr::from((added.of(family), tests::rig::TARGET_PORT));
        ensure!(event["added"] == serde_json::json!([backend]), "{event:#}");
        families.push(family);
    }
    Ok(())
}

#[test]
fn filters_choose_and_make_sense() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let backend = rig.pods["a"].addresses.v4.to_string();
    let backend = ["--backend", &backend, "-n", "1"];
    let mut by_backend = Monitor::json(&rig, &backend)?;
    let mut by_reason = Monitor::json(&rig, &["--reason", "rejectnoendpoint", "-n", "1"])?;
    let mut lines = Monitor::start(&rig, &["--type", "new-flow", "-n", "2"], "by the agent")?;
    for target in [ClusterIp("far"), ClusterIp("empty"), ClusterIp("near")] {
        connect(&mut rig, PodAsPackets, target, IpFamily::V4)?;
    }
    let near = rig.address(ClusterIp("near"), IpFamily::V4).to_string();
    let empty = rig.address(ClusterIp("empty"), IpFamily::V4).to_string();
    for (monitor, expected) in [(&mut by_backend, near), (&mut by_reason, empty)] {
        let event = monitor.next()?;
        ensure!(event["destination"] == expected, "{event:#}");
        // Each ends by itself.
        ensure!(monitor.line()?.is_none() && monitor.child.wait()?.success());
    }
    for service in ["/far:", "/near:"] {
        let line = lines.line()?.context("a line")?;
        ensure!(
            line.contains("  NEW-FLOW  ") && line.contains(service),
            "{line}"
        );
    }
    ensure!(lines.child.wait()?.success());

    for (flag, bad) in [
        ("--backend", "web"),
        ("--reason", "NoSuchReason"),
        ("--type", "old-flow"),
        ("--sample", "0"),
        ("-n", "0"),
    ] {
        let bpffs = rig.agents[0].bpffs();
        let words = ["monitor", "--bpffs", &bpffs, flag, bad];
        let error = rig.agents[0].shunt(&words).expect_err("it was taken");
        let text = format!("{error:#}");
        ensure!(text.contains(flag) && text.contains(bad), "{text}");
    }
    Ok(())
}

#[test]
fn a_monitor_goes_on_by_the_pins_while_no_agent_runs() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let mut monitor = Monitor::json(&rig, &["--type", "new-flow"])?;
    rig.agents[0].kill()?;
    monitor.await_note("by the pins")?;
    let to = connect(&mut rig, PodAsPackets, ClusterIp("near"), IpFamily::V4)?;
    let event = monitor.next()?;
    ensure!(event["destination"] == to.to_string(), "{event:#}");
    let service = event["service"].as_str().context("a service")?;
    ensure!(service.starts_with('#'), "{event:#}");

    // Two would take each other's events away.
    let bpffs = rig.agents[0].bpffs();
    let error = rig.agents[0].shunt(&["monitor", "--bpffs", &bpffs]);
    let text = format!("{:#}", error.expect_err("two read"));
    ensure!(text.contains("another monitor"), "{text}");

    rig.agents[0].run()?;
    monitor.await_note("by the agent")?;
    connect(&mut rig, PodAsPackets, ClusterIp("near"), IpFamily::V4)?;
    let event = monitor.next()?;
    let service = event["service"].as_str().context("a service")?;
    ensure!(service.contains("/near:"), "{event:#}");
    Ok(())
}

#[test]
fn nothing_is_told_when_the_last_monitor_is_gone() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    ensure!(!is_leased(&rig)?);
    let first = Monitor::json(&rig, &[])?;
    let second = Monitor::json(&rig, &["--sample", "2"])?;
    ensure!(is_leased(&rig)?);
    first.signal(Signal::SIGKILL)?;
    let mut second = second;
    second.signal(Signal::SIGTERM)?;
    ensure!(second.child.wait()?.success());
    let ends = |rig: &Rig| {
        eventually(SOON, || {
            ensure!(!is_leased(rig)?, "the datapath still tells");
            Ok(())
        })
    };
    ends(&rig)?;
    // The same where nobody is left to end the lease.
    rig.agents[0].kill()?;
    let alone = Monitor::start(&rig, &[], "by the pins")?;
    ensure!(is_leased(&rig)?);
    alone.signal(Signal::SIGKILL)?;
    ends(&rig)?;
    // And on an interrupt at once.
    let mut alone = Monitor::start(&rig, &[], "by the pins")?;
    alone.signal(Signal::SIGINT)?;
    ensure!(alone.child.wait()?.success() && !is_leased(&rig)?);
    Ok(())
}

#[test]
fn a_monitor_that_nobody_reads_ends_quietly() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    for listens in ["by the agent", "by the pins"] {
        if listens == "by the pins" {
            rig.agents[0].kill()?;
        }
        // As with `head -1` behind it.
        let mut monitor = Monitor::start(&rig, &["--type", "new-flow"], listens)?;
        connect(&mut rig, PodAsPackets, ClusterIp("near"), IpFamily::V4)?;
        ensure!(monitor.line()?.context("a line")?.contains("NEW-FLOW"));
        monitor.events = None;
        connect(&mut rig, PodAsPackets, ClusterIp("near"), IpFamily::V4)?;
        let status = monitor.child.wait()?;
        ensure!(status.code() == Some(0), "{listens}: {status}");
        let said: Vec<String> = monitor.notes.by_ref().collect::<Result<_, _>>()?;
        ensure!(said.is_empty(), "{listens}: {said:?}");
        eventually(SOON, || {
            ensure!(!is_leased(&rig)?, "{listens}: the datapath still tells");
            Ok(())
        })?;
    }
    Ok(())
}

/// More events than EVENTS holds, with room for their headers.
const MANY: u32 = 2 * EVENTS_SIZE / size_of::<Event>() as u32;

/// Events that are read between two connections.
const BETWEEN_CONNECTIONS: u64 = 1000;

/// Sends [`MANY`] datagrams to a Service without endpoints.
fn flood(rig: &mut Rig) -> Result<()> {
    let to = rig.address(ClusterIp("empty"), IpFamily::V4);
    let netns = rig.place(PodAsPackets)?.netns;
    netns.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        for _ in 0..MANY {
            socket.send_to(&[0], to)?;
        }
        Ok(())
    })?
}

/// Events that are not new flows and could be told, and those that found no room.
fn ended(rig: &Rig) -> Result<[u64; 2]> {
    const REASONS: [Counter; 3] = [
        Counter::RejectNoEndpoint,
        Counter::AnswerLimited,
        Counter::AnswerSuppressed,
    ];
    let maps = rig.agents[0].maps()?;
    let all = REASONS.map(|reason| maps.counter(reason as u32));
    Ok([all.iter().sum(), maps.counter(Counter::EventLost as u32)])
}

/// Fills EVENTS while its reader stands still: all of it is told, or counted and said to be lost.
fn check_full_ring(rig: &mut Rig, monitor: &mut Monitor, reader: u32) -> Result<()> {
    let before = ended(rig)?;
    let mut is_exact = true;
    let lost = loop {
        send(reader, Signal::SIGSTOP)?;
        let flooded = flood(rig);
        // A machine that takes seconds for this has told only a part.
        is_exact &= is_leased(rig)?;
        send(reader, Signal::SIGCONT)?;
        flooded?;
        match ended(rig)?[1] - before[1] {
            0 => eventually(SOON, || {
                ensure!(is_leased(rig)?, "nobody listens");
                Ok(())
            })?,
            lost => break lost,
        }
    };
    let mut all = ended(rig)?[0] - before[0];
    let (mut told, mut missed, mut new_flow) = (0, 0, None);
    while new_flow.is_none() || missed < lost || is_exact && told + missed < all {
        let event = monitor.next()?;
        if event["type"] == "lost" {
            missed += event["events"].as_u64().context("how many")?;
            continue;
        }
        // What is read makes room, so the last of these are told, and what is lost before them.
        if told % BETWEEN_CONNECTIONS == 0 {
            connect(rig, PodAsPackets, ClusterIp("near"), IpFamily::V4)?;
            all += 1;
        }
        told += 1;
        match event["type"].as_str() {
            Some("reject") => {}
            Some("new-flow") => new_flow = Some(event),
            _ => bail!("{event:#}"),
        }
    }
    ensure!(told + missed <= all, "{told} told, {missed} lost of {all}");
    println!("{all} events: {told} told, {missed} said to be lost, {lost} of them in the ring");
    Ok(())
}

#[test]
fn what_finds_no_room_is_counted_and_the_monitor_goes_on() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let types = ["--type", "reject,new-flow", "-o", "json"];
    let mut monitor = Monitor::start(&rig, &types, "by the agent")?;
    let agent = rig.agents[0].pid().context("an agent")?;
    check_full_ring(&mut rig, &mut monitor, agent)?;
    rig.agents[0].kill()?;
    monitor.await_note("by the pins")?;
    let reader = monitor.child.id();
    check_full_ring(&mut rig, &mut monitor, reader)
}
