//! Segments outside of every window: netfilter calls them INVALID and does not translate them, and
//! who gets one with a wrong address resets the connection (upstream's e2e test "proxy should drop
//! INVALID conntrack entries").

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use etherparse::TcpHeader;
use socket2::{Domain, Protocol, Socket, Type};
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::rules;
use tests::topology::addresses::FAMILIES;
use tests::topology::{Firewall, Variant};
use tests::traffic::{Held, SocketKind};

use Client::{NodeAsPackets, Outside, PodAsPackets};
use Target::{ClusterIp, NodePort1};

/// Through the stack, with SNAT and redirect, and from a process of the node.
const PATHS: [(Client, Target); 5] = [
    (PodAsPackets, ClusterIp("near")),
    (PodAsPackets, ClusterIp("far")),
    (NodeAsPackets, ClusterIp("far")),
    (Outside, NodePort1("near")),
    (Outside, NodePort1("far")),
];
/// Stray segments of one connection.
const STRAYS: u32 = 10;
/// How far from each other: every window is smaller.
const STEP: u32 = 0x0a00_0000;

/// A segment with ACK and nothing else, which no connection waits for.
fn stray(src: SocketAddr, dst: SocketAddr, seq: u32) -> Result<Vec<u8>> {
    let mut header = TcpHeader::new(src.port(), dst.port(), seq, 1024);
    header.ack = true;
    header.acknowledgment_number = seq.rotate_left(16);
    header.checksum = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), &[])?
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &[])?
        }
        _ => anyhow::bail!("two families"),
    };
    Ok(header.to_bytes().to_vec())
}

/// Sends stray segments from `src`, which the namespace has, past its own TCP.
fn send_strays(src: SocketAddr, dst: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::for_address(src), Type::RAW, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(src.ip(), 0).into())?;
    for number in 1..=STRAYS {
        let segment = stray(src, dst, number * STEP)?;
        socket.send_to(&segment, &SocketAddr::new(dst.ip(), 0).into())?;
    }
    Ok(())
}

/// Packets that netfilter found INVALID on the nodes.
fn dropped(rig: &Rig) -> Result<u64> {
    let mut all = 0;
    for node in &rig.cluster.nodes {
        let rules = node
            .netns
            .run(&["nft", "list", "chain", "inet", "node", "forward"])?;
        let (_, rest) = rules
            .split_once("ct state invalid counter packets ")
            .context("no such rule")?;
        let count = rest.split_whitespace().next().context("no counter")?;
        all += count.parse::<u64>()?;
    }
    Ok(all)
}

fn check(rig: &mut Rig) -> Result<()> {
    for (client, target) in PATHS {
        for family in FAMILIES {
            let path = || format!("{client:?} to {target:?} {family:?}");
            let to = rig.address(target, family);
            let held = Held::new(SocketKind::Tcp, to);
            let (number, first) = rig.client(client)?.open(held)?;
            let pod = &rig.pods[&first.server];
            let backend = SocketAddr::new(pod.addresses.of(family), TARGET_PORT);
            pod.netns.enter(|| send_strays(backend, first.peer))??;
            let answer = rig.client(client)?.ask(number, 10_000);
            let answer = answer.with_context(|| format!("{} was reset", path()))?;
            ensure!(answer.server == first.server, "{}: {answer:?}", path());
        }
    }
    Ok(())
}

/// S-132, S-214: a stray segment of a backend is translated like any other, so its client knows the
/// connection and ignores the segment.
#[test]
fn stray_segments_reset_no_connection() -> Result<()> {
    rules(&["S-132"]);
    let variant = Variant {
        firewall: Firewall::None,
        ..Variant::default()
    };
    check(&mut Rig::new(variant, &[])?)
}

/// The same where the nodes drop what netfilter finds INVALID: it drops strays, and nothing else.
#[test]
fn stray_segments_reset_no_connection_where_invalid_ones_are_dropped() -> Result<()> {
    rules(&["S-132"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    for node in &rig.cluster.nodes {
        node.netns
            .sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "0")?;
    }
    check(&mut rig)?;
    ensure!(dropped(&rig)? > 0, "netfilter found no segment INVALID");
    Ok(())
}
