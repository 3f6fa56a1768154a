//! Path MTU discovery through a frontend: a router on the way tells the sender, who knows nothing
//! of the translation, what fits (S-130).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use proxy_common::Counter;
use tests::crossing::peers;
use tests::manifests::Service;
use tests::net::{Netns, eventually};
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::addresses::{
    Addresses, FAMILIES, IpFamily, SERVICES4, SERVICES6, behind_uplink2, node, pod, uplink, uplink2,
};
use tests::topology::{Offloads, Variant, set_offloads};
use tests::traffic::{Plan, SocketKind, StreamPlan};

use Client::{NodeAsPackets, Outside, Outside2, PodAsPackets};
use Target::{ClusterIp, NodePort1};

/// MTU of the link in the middle; all others have 1500.
const SMALL: u32 = 1_300;
/// Many windows and many GSO packets.
const STREAM_BYTES: u64 = 4 << 20;
/// A datagram that fits every link but the small one.
const DATAGRAM: usize = 1_380;
/// How long the way may take to be learned, with both cores busy.
const LEARNED: Duration = Duration::from_secs(60);

/// A cluster with the Service `one`, whose only backend `b` is on n2.
fn rig(variant: Variant) -> Result<Rig> {
    let mut rig = Rig::without_agents(variant)?;
    let service = Service::new("one", 21).port(86, 30_086, TARGET_PORT);
    let service = service.pods([&rig.pods["b"]]);
    rig.add("one", service)?;
    Ok(rig)
}

/// A namespace that forwards between its links.
fn router(rig: &Rig, name: &str) -> Result<Netns> {
    let netns = rig.cluster.sandbox().netns(name)?;
    forward(&netns)?;
    Ok(netns)
}

fn forward(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv4/ip_forward", "1")?;
    netns.sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// A link `name` of `here` to `peer` of `there`, with these addresses.
fn link(
    rig: &Rig,
    (here, name, own): (&Netns, &str, Addresses),
    (there, peer, other): (&Netns, &str, Addresses),
    mtu: u32,
) -> Result<()> {
    here.ip(&format!(
        "link add {name} mtu {mtu} type veth peer name {peer} netns {} mtu {mtu}\n",
        there.name(),
    ))?;
    for (netns, link, Addresses { v4, v6 }) in [(here, name, own), (there, peer, other)] {
        set_offloads(&rig.cluster.variant, netns, link)?;
        netns.ip(&format!(
            "link set {link} up\naddr add {v4}/24 dev {link}\naddr add {v6}/64 dev {link} nodad\n"
        ))?;
    }
    Ok(())
}

/// Sends what n1 and the pods of n2 have to say to each other over a router with a small link:
/// n1 - br0 - narrow - small link - n2.
fn narrow_between_nodes(rig: &Rig) -> Result<()> {
    let narrow = router(rig, "narrow")?;
    let net = &rig.cluster.net;
    let [n1, n2] = [0, 1].map(|index| &rig.cluster.nodes[index].netns);
    let (here, there) = (uplink2(1), uplink2(12));
    link(rig, (n2, "side0", there), (&narrow, "eth1", here), SMALL)?;
    let own = uplink(50);
    net.ip(&format!(
        "link add narrow type veth peer name eth0 netns {}\nlink set narrow master br0 up\n",
        narrow.name(),
    ))?;
    narrow.ip(&format!(
        "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
        own.v4, own.v6,
    ))?;
    let (of_n1, of_n2) = (pod(1, 0), pod(2, 0));
    route(n1, (of_n2, PODS), own)?;
    route(&narrow, (of_n2, PODS), there)?;
    route(&narrow, (of_n1, PODS), node(1))?;
    route(n2, (of_n1, PODS), here)?;
    route(n2, (node(1), HOST), here)
}

/// Prefix lengths of the pods of one node.
const PODS: [u8; 2] = [24, 64];
/// Those of one address.
const HOST: [u8; 2] = [32, 128];

/// Sends what is to these networks, one of each family, by `via`.
fn route(netns: &Netns, (to, [v4, v6]): (Addresses, [u8; 2]), via: Addresses) -> Result<()> {
    netns.ip(&format!(
        "route replace {}/{v4} via {}\nroute replace {}/{v6} via {}\n",
        to.v4, via.v4, to.v6, via.v6,
    ))
}

/// Adds a client, [`Outside2`], behind a small link: n1 - br0 of the default gateway - small
/// link - wan - client.
fn narrow_before_client(rig: &mut Rig) -> Result<()> {
    let wan = router(rig, "wan")?;
    let net = &rig.cluster.net;
    forward(net)?;
    let client = rig.cluster.sandbox().netns("remote")?;
    let (here, there) = (uplink2(1), uplink2(2));
    link(rig, (net, "wan", here), (&wan, "eth0", there), SMALL)?;
    let (own, gateway) = (behind_uplink2(100), behind_uplink2(1));
    link(rig, (&client, "eth0", own), (&wan, "eth1", gateway), 1_500)?;
    for (netns, via) in [(&client, gateway), (&wan, here)] {
        netns.ip(&format!(
            "route add default via {}\nroute add default via {}\n",
            via.v4, via.v6
        ))?;
    }
    let n1 = node(1);
    route(net, (own, HOST), there)?;
    net.ip(&format!(
        "route add {SERVICES4} via {}\nroute add {SERVICES6} via {}\n",
        n1.v4, n1.v6,
    ))?;
    let mut outside = rig.cluster.client.clone();
    outside.netns = client;
    outside.addresses = own;
    rig.cluster.client2 = Some(outside);
    Ok(())
}

/// Who has to learn the MTU of the way to what.
struct Learner {
    netns: Netns,
    about: Addresses,
}

impl Learner {
    /// The MTU that is known beside the link's own.
    fn known(&self, family: IpFamily) -> Result<Option<u32>> {
        let to = self.about.of(family).to_string();
        let route = self.netns.run(&["ip", "route", "get", &to])?;
        let mut words = route.split_whitespace();
        match words.find(|word| *word == "mtu") {
            Some(_) => {
                let mtu = words.next().with_context(|| route.clone())?;
                Ok(Some(mtu.parse().with_context(|| route.clone())?))
            }
            None => Ok(None),
        }
    }
}

/// Lets a namespace forget all that it has learned of ways.
fn forget(netns: &Netns, family: IpFamily) -> Result<()> {
    let option = match family {
        IpFamily::V4 => "-4",
        IpFamily::V6 => "-6",
    };
    netns
        .run(&["ip", option, "route", "flush", "cache"])
        .map(drop)
}

/// Lets both ends forget: a peer that knows the way asks for segments that fit.
fn forget_everywhere(rig: &Rig, family: IpFamily) -> Result<()> {
    let cluster = &rig.cluster;
    let pods = cluster.pods.iter().map(|pod| &pod.netns);
    let nodes = cluster.nodes.iter().map(|node| &node.netns);
    let outside = cluster.client2.iter().chain([&cluster.client]);
    for netns in pods.chain(nodes).chain(outside.map(|it| &it.netns)) {
        forget(netns, family)?;
    }
    Ok(())
}

/// ICMP errors that n1 has translated.
fn translated(rig: &Rig) -> Result<u64> {
    Ok(rig.agents[0].maps()?.counter(Counter::Related as u32))
}

/// Sends too much at once with `send`: it arrives because `learner` is told, through n1.
fn check(
    rig: &mut Rig,
    learner: &Learner,
    family: IpFamily,
    send: impl FnOnce(&mut Rig) -> Result<()>,
) -> Result<()> {
    let known = learner.known(family)?;
    ensure!(known.is_none(), "{known:?} is known before");
    let before = translated(rig)?;
    send(rig)?;
    let known = learner.known(family)?;
    ensure!(known == Some(SMALL), "{known:?} was learned");
    let count = translated(rig)? - before;
    ensure!(count > 0, "no ICMP error was translated");
    Ok(())
}

fn check_row(
    rig: &mut Rig,
    (client, target): (Client, Target),
    learner: &Learner,
    family: IpFamily,
) -> Result<()> {
    let to = rig.address(target, family);
    forget_everywhere(rig, family)?;
    check(rig, learner, family, |rig| {
        let plan = StreamPlan::new(to, STREAM_BYTES);
        let stream = rig.client(client)?.stream(plan)?;
        ensure!(stream.bytes == STREAM_BYTES, "{stream:?}");
        Ok(())
    })
    .context("a stream")?;
    forget(&learner.netns, family)?;
    // The other way is known from the stream. A datagram that is too long is lost; what tells its
    // sender is the reason that a later one arrives, in fragments.
    check(rig, learner, family, |rig| {
        eventually(LEARNED, || {
            let plan = Plan::new(SocketKind::UdpConnected, to).payload(DATAGRAM);
            let report = rig.client(client)?.connect(plan.timeout_ms(500))?;
            ensure!(report.failed() == 0, "{report:?}");
            Ok(())
        })
    })
    .context("datagrams")
}

/// Rows of clients behind whose frontend the way is narrow.
fn clients_learn(rig: &mut Rig, rows: &[(Client, Target)]) -> Result<()> {
    let mut failures = Vec::new();
    for row in rows {
        let learner = Learner {
            netns: rig.place(row.0)?.netns,
            about: match row.1 {
                ClusterIp(name) => rig.services[name].addresses,
                _ => node(1),
            },
        };
        for family in FAMILIES {
            if let Err(error) = check_row(rig, *row, &learner, family) {
                failures.push(format!("{row:?} {family:?}: {error:#}"));
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Rows of what [`Outside2`] dials, the backend, and whom that takes for the client.
fn backends_learn(rig: &mut Rig, rows: &[(Target, &str, Addresses)]) -> Result<()> {
    let mut failures = Vec::new();
    for (target, backend, seen_as) in rows {
        let learner = Learner {
            netns: rig.pods[*backend].netns.clone(),
            about: *seen_as,
        };
        for family in FAMILIES {
            if let Err(error) = check_row(rig, (Outside2, *target), &learner, family) {
                failures.push(format!("{target:?} {family:?}: {error:#}"));
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// What a client sends is too long behind the frontend.
#[test]
fn clients_learn_the_way_to_the_backend() -> Result<()> {
    rules(&["S-130", "S-134"]);
    let mut rig = rig(Variant::default())?;
    narrow_between_nodes(&rig)?;
    rig.start_agents(&[])?;
    let rows = [
        (PodAsPackets, ClusterIp("one")),
        (NodeAsPackets, ClusterIp("one")),
        (Outside, NodePort1("one")),
        (Outside, ClusterIp("one")),
    ];
    clients_learn(&mut rig, &rows)
}

/// What a backend answers is too long on the way to the client: the router knows only the frontend.
#[test]
fn backends_learn_the_way_to_the_client() -> Result<()> {
    rules(&["S-130", "S-134"]);
    let mut rig = rig(Variant::default())?;
    narrow_before_client(&mut rig)?;
    rig.start_agents(&[])?;
    let client = rig.own_addresses(Outside2)[0];
    let rows = [
        (NodePort1("near"), "a", client),
        (ClusterIp("near"), "a", client),
        (NodePort1("one"), "b", node(1)),
        (ClusterIp("one"), "b", node(1)),
    ];
    backends_learn(&mut rig, &rows)
}

/// As [`rig`], for native XDP: a sender that leaves checksums to its device is left to tc (P-10).
fn rig_for_xdp() -> Result<Rig> {
    rig(Variant {
        offloads: Offloads::Off,
        ..Variant::default()
    })
}

/// Starts agents with native XDP on the uplinks. The program at the other ends lives as long as
/// what is returned.
fn start_xdp(rig: &mut Rig) -> Result<Ebpf> {
    let peers = peers(rig, &["n1", "n2"])?;
    rig.start_agents(&["--xdp", "native"])?;
    Ok(peers)
}

/// Does something of which XDP on n1 has to send on nearly everything, the ICMP errors too.
fn by_xdp(rig: &mut Rig, what: impl FnOnce(&mut Rig) -> Result<()>) -> Result<()> {
    use Counter::{Fragment, OriginalRedirect, Related, ReplyRedirect, XdpAnswered};
    let counted = |rig: &Rig| -> Result<[u64; 3]> {
        let maps = rig.agents[0].maps()?;
        let count = |counter: Counter| maps.counter(counter as u32);
        let sent = count(OriginalRedirect) + count(ReplyRedirect) + count(Fragment);
        Ok([sent, count(Related), count(XdpAnswered)])
    };
    let before = counted(rig)?;
    what(rig)?;
    let after = counted(rig)?;
    let [sent, related, answered] = [0, 1, 2].map(|index| after[index] - before[index]);
    println!("{answered} of {sent} packets and {related} ICMP errors were sent on by XDP");
    let by_tc = (sent + related).saturating_sub(answered);
    // The rest taught the kernel its neighbours, or went by tc in turn: fewer than there were
    // errors, which are few themselves.
    ensure!(by_tc * 100 <= sent, "{by_tc} of {sent} and {related} by tc");
    ensure!(by_tc < related, "{by_tc} by tc, and {related} errors");
    Ok(())
}

/// The same under native XDP, which sends to the backend on the other node itself.
#[test]
fn clients_learn_the_way_to_the_backend_by_xdp() -> Result<()> {
    rules(&["S-130", "S-134", "P-10"]);
    let mut rig = rig_for_xdp()?;
    narrow_between_nodes(&rig)?;
    let _peers = start_xdp(&mut rig)?;
    let rows = [(Outside, NodePort1("one")), (Outside, ClusterIp("one"))];
    by_xdp(&mut rig, |rig| clients_learn(rig, &rows))
}

/// And the way back.
#[test]
fn backends_learn_the_way_to_the_client_by_xdp() -> Result<()> {
    rules(&["S-130", "S-134", "P-10"]);
    let mut rig = rig_for_xdp()?;
    narrow_before_client(&mut rig)?;
    let _peers = start_xdp(&mut rig)?;
    let rows = [
        (NodePort1("one"), "b", node(1)),
        (ClusterIp("one"), "b", node(1)),
    ];
    by_xdp(&mut rig, |rig| backends_learn(rig, &rows))
}
