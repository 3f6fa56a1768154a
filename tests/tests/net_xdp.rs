//! XDP in the driver: what it answers itself, what it leaves to tc, and that nothing is lost when
//! it comes and goes.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use etherparse::PacketBuilder;
use proxy_common::Counter;
use proxy_userspace::maps::Maps as _;
use serde_json::Value;
use tests::cases::packets::Tag;
use tests::crossing::{Counted, peers};
use tests::rig::{Client, Rig, Target, node_addresses};
use tests::rules;
use tests::topology::addresses::{FAMILIES, IpFamily, uplink};
use tests::topology::{Offloads, Variant};
use tests::traffic::{Held, Plan, SocketKind, StreamPlan};

use Client::Outside;
use Target::{ClusterIp, NodePort1, NodePort2};

/// Of each path, family and kind of socket.
const CONNECTIONS: u32 = 300;
/// Thousands of frames each way.
const STREAM_BYTES: u64 = 8 << 20;

/// A cluster whose nodes run XDP natively on their uplinks.
struct World {
    rig: Rig,
    /// At the other ends of the uplinks.
    _peers: Ebpf,
}

impl World {
    /// A sender that leaves checksums to its device is left to tc (P-10), so offloads are off.
    fn start() -> Result<Self> {
        let mut rig = Rig::without_agents(Variant {
            offloads: Offloads::Off,
            ..Variant::default()
        })?;
        let _peers = peers(&rig, &["n1", "n2"])?;
        rig.start_agents(&["--xdp", "native"])?;
        Ok(Self { rig, _peers })
    }
}

/// Translated packets of n1 by now, and those of them that XDP sent on itself.
fn translated(rig: &Rig) -> Result<[u64; 2]> {
    let maps = rig.agents[0].maps()?;
    let count = |counter: Counter| maps.counter(counter as u32);
    let [original, reply] = [Counter::OriginalRedirect, Counter::ReplyRedirect].map(count);
    Ok([original + reply, count(Counter::XdpAnswered)])
}

/// A SYN to a frontend, as it comes to n1 from a client that does not answer, with these tags in
/// it.
fn syn(rig: &Rig, target: Target, family: IpFamily, tags: &[Tag]) -> Result<Vec<u8>> {
    let shown = rig.cluster.nodes[0]
        .netns
        .run(&["ip", "link", "show", "up0"])?;
    let mut words = shown.split_whitespace();
    words
        .find(|word| *word == "link/ether")
        .context("an address")?;
    let digits = words.next().context("an address")?.split(':');
    let mac: Result<Vec<u8>, _> = digits.map(|it| u8::from_str_radix(it, 16)).collect();
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], mac?.as_slice().try_into()?);
    let (from, to) = (uplink(77).of(family), rig.address(target, family));
    let ip = match (from, to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => bail!("{from} to {to}"),
    };
    let mut frame = Vec::new();
    let tcp = ip.tcp(40_000, to.port(), 1, 64_240).syn();
    tcp.write(&mut frame, &[])?;
    let words = tags.iter().flat_map(|(kind, control)| [*kind, *control]);
    frame.splice(12..12, words.flat_map(u16::to_be_bytes));
    Ok(frame)
}

/// Frames with the tag of a VLAN inside, which has no device here: XDP passes them, and so does tc,
/// which finds the tag beside them. VLAN 0 is none: tc serves those.
#[test]
fn frames_of_a_vlan_pass_xdp_and_tc() -> Result<()> {
    rules(&["P-10", "P-14"]);
    const TIMES: u32 = 100;
    let World { mut rig, _peers } = World::start()?;
    // What is passed without a tag, XDP sends on once the neighbours are known.
    for family in FAMILIES {
        let plan = Plan::new(SocketKind::Tcp, rig.address(NodePort1("far"), family));
        let report = rig.client(Outside)?.connect(plan.times(10))?;
        ensure!(report.failed() == 0, "{report:?}");
    }
    let rows: [(&[Tag], &str); 4] = [
        (&[], "XdpAnswered"),
        (&[(0x8100, 7)], "Tagged"),
        (&[(0x88a8, 3), (0x8100, 7)], "Tagged"),
        (&[(0x8100, 5 << 13)], "OriginalRedirect"),
    ];
    for (tags, reason) in rows {
        for family in FAMILIES {
            let frame = syn(&rig, NodePort1("far"), family, tags)?;
            let before = Counted::by(&rig.agents[0])?;
            rig.cluster.net.send_frames("n1", &frame, TIMES)?;
            let row = format!("{tags:x?} {family:?}");
            tests::net::eventually(Duration::from_secs(10), || {
                before
                    .ensure_risen(&rig.agents[0], &[reason], TIMES.into())
                    .with_context(|| row.clone())
            })?;
            let risen = before.since(&rig.agents[0])?;
            let ends = ["XdpAnswered", "Tagged", "OriginalRedirect"];
            let others = ends.iter().filter(|name| **name != reason);
            let others: u64 = others.filter_map(|name| risen.get(*name)).sum();
            ensure!(tags.is_empty() || others == 0, "{row}: {risen:?}");
        }
    }
    Ok(())
}

/// How n1 runs XDP on its uplink.
fn mode_of_uplink(status: &Value) -> Result<&Value> {
    let interfaces = status["interfaces"].as_array().context("interfaces")?;
    let uplink = interfaces.iter().find(|it| it["name"] == "up0");
    Ok(&uplink.context("up0")?["xdp"])
}

#[test]
fn xdp_sends_to_remote_backends_and_back() -> Result<()> {
    rules(&["P-10", "S-091", "S-208"]);
    let World { mut rig, _peers } = World::start()?;
    ensure!(*mode_of_uplink(&rig.agents[0].status()?)? == "native");
    let before = translated(&rig)?;
    for family in FAMILIES {
        let to = rig.address(NodePort1("far"), family);
        for socket in [SocketKind::Tcp, SocketKind::Udp, SocketKind::UdpConnected] {
            let plan = Plan::new(socket, to).times(CONNECTIONS);
            let report = rig.client(Outside)?.connect(plan)?;
            ensure!(report.failed() == 0, "{family:?} {socket:?}: {report:?}");
            ensure!(report.servers() == ["b", "c"], "{family:?}: {report:?}");
        }
        let stream = StreamPlan::new(to, STREAM_BYTES);
        rig.client(Outside)?.stream(stream)?;
    }
    let after = translated(&rig)?;
    let [all, by_xdp] = [0, 1].map(|index| after[index] - before[index]);
    println!("{by_xdp} of {all} translated packets were sent on by XDP");
    ensure!(all > 20_000, "{all}");
    // The rest taught the kernel its neighbours, or went by tc in turn.
    ensure!(by_xdp * 100 >= all * 99, "{by_xdp} of {all}");
    Ok(())
}

#[test]
fn xdp_refuses_and_leaves_to_tc_what_it_cannot_do() -> Result<()> {
    rules(&["P-5", "P-10", "S-104"]);
    let World { mut rig, _peers } = World::start()?;
    for family in FAMILIES {
        // Backends beside the program: the stack has to see these packets.
        for (target, servers) in [
            (NodePort1("near"), &["a"][..]),
            (ClusterIp("near"), &["a"]),
            (NodePort1("all"), &["a", "b", "c"]),
            (NodePort2("near"), &["a"]),
        ] {
            let to = rig.address(target, family);
            for socket in [SocketKind::Tcp, SocketKind::Udp] {
                let plan = Plan::new(socket, to).times(CONNECTIONS);
                let report = rig.client(Outside)?.connect(plan)?;
                ensure!(report.failed() == 0, "{target:?} {socket:?}: {report:?}");
                ensure!(report.servers() == servers, "{target:?}: {report:?}");
            }
        }
        let to = rig.address(NodePort1("empty"), family);
        let plan = Plan::new(SocketKind::Tcp, to).times(3);
        let report = rig.client(Outside)?.connect(plan)?;
        ensure!(
            report.failures == [("ECONNREFUSED".to_owned(), 3)].into(),
            "{report:?}"
        );
    }
    Ok(())
}

#[test]
fn xdp_follows_a_neighbour_with_another_mac_address() -> Result<()> {
    rules(&["S-208"]);
    let World { mut rig, _peers } = World::start()?;
    for (number, family) in FAMILIES.into_iter().enumerate() {
        let to = rig.address(NodePort1("far"), family);
        let held = Held::new(SocketKind::Tcp, to);
        let (connection, _) = rig.client(Outside)?.open(held)?;
        // The first packets went by tc, and taught XDP the neighbour.
        by_xdp(&mut rig, connection)?;
        let before = next_hops(&rig)?;
        let mac = format!("02:00:00:00:77:0{number}");
        let [here, there] = &rig.cluster.nodes[..] else {
            anyhow::bail!("two nodes");
        };
        there
            .netns
            .run(&["ip", "link", "set", "up0", "address", &mac])?;
        let neighbour = node_addresses(2)[0].of(family).to_string();
        let replace = ["ip", "neigh", "replace", &neighbour, "lladdr", &mac];
        here.netns
            .run(&[&replace[..], &["dev", "up0", "nud", "reachable"]].concat())?;
        tests::net::eventually(Duration::from_secs(60), || {
            ensure!(next_hops(&rig)? != before, "the agent has not noticed");
            Ok(())
        })?;
        by_xdp(&mut rig, connection)?;
    }
    Ok(())
}

/// [`proxy_common::Config::next_hops`] on n1.
fn next_hops(rig: &Rig) -> Result<u32> {
    let config = rig.agents[0].maps()?.config().context("CONFIG")?;
    Ok(config.next_hops)
}

/// Asks over a connection until XDP has sent packets of it on itself. Every question is answered.
fn by_xdp(rig: &mut Rig, connection: usize) -> Result<()> {
    let [_, before] = translated(rig)?;
    for _ in 0..20 {
        rig.client(Outside)?.ask(connection, 64)?;
    }
    let [_, after] = translated(rig)?;
    ensure!(after >= before + 20, "{} by XDP", after - before);
    Ok(())
}

#[test]
fn xdp_comes_and_goes_under_traffic() -> Result<()> {
    rules(&["P-10", "S-170"]);
    let World { mut rig, _peers } = World::start()?;
    let to = rig.address(NodePort1("far"), FAMILIES[0]);
    let plan = Plan::new(SocketKind::Tcp, to).until_finish();
    rig.client(Outside)?.begin(plan)?;
    for (choice, mode) in [
        ("native", Value::from("native")),
        ("off", Value::Null),
        ("generic", "generic".into()),
        // A veth pair is left alone unless asked for.
        ("auto", Value::Null),
        ("native", "native".into()),
    ] {
        let agent = &mut rig.agents[0];
        agent.set("--xdp", choice)?;
        agent.kill()?;
        agent.run()?;
        ensure!(*mode_of_uplink(&agent.status()?)? == mode, "{choice}");
    }
    let [_, before] = translated(&rig)?;
    tests::net::eventually(Duration::from_secs(60), || {
        ensure!(translated(&rig)?[1] > before, "nothing more by XDP");
        Ok(())
    })?;
    let report = rig.client(Outside)?.finish()?;
    ensure!(
        report.failed() == 0 && report.answered() > 100,
        "{report:?}"
    );
    let agent = &mut rig.agents[0];
    agent.stop()?;
    agent.cleanup()?;
    let link = rig.cluster.nodes[0]
        .netns
        .run(&["ip", "link", "show", "up0"])?;
    ensure!(!link.contains("xdp"), "{link}");
    Ok(())
}
