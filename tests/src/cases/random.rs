//! Random worlds and packets, built of the same parts as the cases.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proxy_common::config::flags::{KEEP_UNALLOCATED, MASQUERADE_ALL, MASQUERADE_ALWAYS};
use proxy_common::flow::seen::ANSWER;
use proxy_common::flow::{Path, path};
use proxy_common::frontend::flags::{HAS_ENDPOINTS, LOCAL_POLICY};
use proxy_common::{node, protocol};
use proxy_ebpf::Hook;

use super::flows::{Age, Flow, Halves, by, snat, stack};
use super::packets::*;
use super::world::*;
use super::{Case, case};

const CLIENTS: [Role; 7] = [
    Role::Client,
    Role::DarkClient,
    Role::Pod,
    Role::BridgedPod,
    Role::LocalBackend,
    Role::Node,
    Role::Foreign,
];
const BACKENDS: [Role; 5] = [
    Role::LocalBackend,
    Role::RemoteBackend,
    Role::OverlayBackend,
    Role::BridgedBackend,
    Role::Node,
];
const ANYONE: [Role; 14] = [
    Role::Client,
    Role::DarkClient,
    Role::Pod,
    Role::LocalBackend,
    Role::RemoteBackend,
    Role::OverlayBackend,
    Role::BridgedPod,
    Role::BridgedBackend,
    Role::Node,
    Role::PodGateway,
    Role::OverlayGateway,
    Role::ClusterIp,
    Role::Unallocated,
    Role::Router,
];

/// A client's address and port.
pub fn client() -> impl Strategy<Value = At> {
    (select(&CLIENTS[..]), select(&[CLIENT_PORT, 50124][..]))
}

/// The Service by either of its addresses.
pub fn dialed() -> impl Strategy<Value = At> {
    select(
        &[
            (Role::ClusterIp, PORT),
            (Role::Node, NODE_PORT),
            (Role::ClusterIp, 81),
        ][..],
    )
}

fn backend_at() -> impl Strategy<Value = At> {
    select(&BACKENDS[..]).prop_map(|role| (role, TARGET))
}

/// Any address with a port that means something.
fn any_at() -> impl Strategy<Value = At> {
    let ports = [PORT, NODE_PORT, TARGET, CLIENT_PORT, SNAT_PORT, 81, 9];
    (select(&ANYONE[..]), select(ports.to_vec()))
}

fn any_path() -> impl Strategy<Value = Path> {
    let kinds = [
        path::INGRESS_STACK,
        path::EGRESS_STACK,
        path::INGRESS_NEIGH,
        path::EGRESS_NEIGH,
        path::INGRESS_LOCAL,
    ];
    let interfaces = [UPLINK, LOCAL, OVERLAY, BRIDGE];
    (select(kinds.to_vec()), select(interfaces.to_vec()))
        .prop_map(|(kind, ifindex)| by(kind, ifindex))
}

const AGES: &[Age] = &[
    Age::Handshake,
    Age::Established,
    Age::Established,
    Age::Closed,
];

/// A known connection of any kind and state.
pub fn flow() -> impl Strategy<Value = Flow> {
    let parts = (
        client(),
        dialed(),
        backend_at(),
        any::<bool>(),
        any::<bool>(),
    );
    let ways = (
        any_path(),
        any_path(),
        select(&[UPLINK, LOCAL, OVERLAY][..]),
    );
    let idle = select(&[0, 1, 29, 31, 61, 119, 121, 151, 152, 86_400, 86_431, 86_432][..]);
    let halves = select(
        &[
            Halves::Both,
            Halves::Both,
            Halves::OriginalOnly,
            Halves::ReplyOnly,
        ][..],
    );
    let state = (idle, halves, select(AGES), 0_u8..32, 0_u32..4);
    (parts, ways, state).prop_map(|(parts, ways, state)| {
        let (client, dialed, backend, is_snat, is_udp) = parts;
        let (path, reply_path, out) = ways;
        let (idle_secs, halves, age, seen, moved) = state;
        let source = (Role::Node, SNAT_PORT);
        let flow = if is_snat {
            snat(client, dialed, source, backend, [out, UPLINK])
        } else if moved == 3 {
            Flow {
                path,
                reply_path,
                ..stack(client, dialed, backend)
            }
        } else {
            stack(client, dialed, backend)
        };
        let flow = if is_udp { flow.udp() } else { flow };
        Flow {
            idle_secs,
            halves,
            age,
            seen: if is_udp { seen & ANSWER } else { seen },
            generation: GENERATION - u32::from(moved == 0),
            ..flow
        }
    })
}

/// Any world; with known flows or without.
pub fn world(flows: impl Strategy<Value = Vec<Flow>>) -> impl Strategy<Value = World> {
    let spec = (select(&BACKENDS[..]), 0_u8..4).prop_map(|(role, state)| BackendSpec {
        state,
        ..backend(role)
    });
    let config = select(&[0, MASQUERADE_ALWAYS, MASQUERADE_ALL, KEEP_UNALLOCATED][..]);
    let flags = select(
        &[
            0,
            HAS_ENDPOINTS,
            HAS_ENDPOINTS,
            HAS_ENDPOINTS | LOCAL_POLICY,
        ][..],
    );
    let detector = select(&[Detector::Cidr, Detector::Cidr, Detector::None][..]);
    let ranges = vec(select(&CLIENTS[..]), 0..2);
    let fragment = (client(), dialed(), Just(0x4711), select(&[6_u8, 17][..]));
    let parts = (vec(spec, 0..5), config, flags, detector, ranges);
    (parts, vec(fragment, 0..2), flows).prop_map(|(parts, fragments, flows)| {
        let (backends, config_flags, frontend_flags, detector, source_ranges) = parts;
        World {
            backends,
            config_flags,
            frontend_flags,
            detector,
            source_ranges,
            fragments,
            flows,
            cluster_ip: node::cluster_ip::ACTIVE,
            ..World::default()
        }
    })
}

fn segment() -> impl Strategy<Value = PacketSpec> {
    let ends = prop_oneof![
        3 => (client(), dialed()),
        2 => (backend_at(), client()),
        2 => (backend_at(), Just((Role::Node, SNAT_PORT))),
        2 => (any_at(), any_at()),
    ];
    let flags = select(&[SYN, SYN, ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, 0][..]);
    let len = select(&[0_usize, 1, 12, 64, 1401, 1460, 3000][..]);
    let ttl = select(&[64_u8, 64, 64, 255, 2, 1, 0][..]);
    let part = select(&[(0, false), (0, false), (0, false), (0, true), (9, false)][..]);
    let options = select(&[Extras::None, Extras::None, Extras::Options, Extras::TooMany][..]);
    (ends, flags, 0..5, len, ttl, part, options).prop_map(
        |((src, dst), flags, kind, len, ttl, (offset, has_more), extras)| {
            let mut packet = match kind {
                0 | 1 => tcp(src, dst, flags),
                2 | 3 => udp(src, dst),
                _ => echo(src, dst),
            };
            packet = packet.len(len).ttl(ttl).extras(extras);
            match (offset, has_more) {
                (0, false) => packet,
                (0, true) => packet.part(0, true),
                (offset, _) => packet.later(protocol::UDP, offset),
            }
        },
    )
}

/// Any well-formed packet, ICMP errors included.
pub fn packet() -> impl Strategy<Value = PacketSpec> {
    let kinds = [
        IcmpKind::Refused,
        IcmpKind::TimeExceeded,
        IcmpKind::TooBig(1400),
    ];
    let error = (
        any_at(),
        any_at(),
        select(kinds.to_vec()),
        segment(),
        0_usize..40,
    );
    prop_oneof![
        3 => segment(),
        1 => error.prop_map(|(src, dst, kind, quoted, len)| {
            let quoted = quoted.len(20);
            icmp_error((src.0, 0), (dst.0, 0), kind, quoted, len)
        }),
    ]
}

/// A hook of any interface.
pub fn hook() -> impl Strategy<Value = (Hook, u32)> {
    let interfaces: Vec<u32> = DEVICES.iter().map(|device| device.ifindex).collect();
    (
        select(&[Hook::Ingress, Hook::Ingress, Hook::Egress][..]),
        select(interfaces),
    )
}

/// A packet that has to do with a flow, made of one that has not.
fn about(flow: &Flow, kind: u32, mut packet: PacketSpec) -> PacketSpec {
    let quote = |src: At, dst: At| {
        let quoted = match flow.protocol {
            protocol::TCP => tcp(src, dst, ACK),
            _ => udp(src, dst),
        };
        let kind = IcmpKind::TooBig(1400);
        icmp_error((Role::Router, 0), (src.0, 0), kind, quoted, 8)
    };
    (packet.src, packet.dst) = match kind {
        0 => return quote(flow.source, flow.backend).ttl(packet.ttl),
        1 => return quote(flow.dialed, flow.client).ttl(packet.ttl),
        2 | 3 => (flow.client, flow.dialed),
        4 | 5 => (flow.backend, flow.source),
        // Another flow that may want the same tuple.
        6 => (flow.client, (Role::ClusterIp, PORT)),
        _ => ((Role::Client, 1), (Role::Node, NODE_PORT)),
    };
    if !matches!(packet.body, Body::Tcp { .. }) || flow.protocol != protocol::TCP {
        packet.body = match (flow.protocol, &packet.part) {
            (protocol, Some(part)) if part.offset != 0 => Body::Raw(protocol),
            (protocol::TCP, _) => tcp(packet.src, packet.dst, ACK).body,
            _ => Body::Udp,
        };
    }
    packet
}

/// A world and a packet, mostly of a known flow; nothing is said of what comes of it.
pub fn any_case() -> impl Strategy<Value = Case> {
    let segment_len = select(&[0_u32, 0, 0, 1000, 1448][..]);
    let kinds = (0_u32..12, any::<prop::sample::Index>());
    let parts = (
        world(vec(flow(), 0..4)),
        packet(),
        hook(),
        segment_len,
        kinds,
    );
    parts.prop_map(
        |(mut world, packet, (hook, ifindex), segment_len, (kind, index))| {
            let packet = match world.flows.get(index.index(4)) {
                Some(flow) if kind < 8 => {
                    let packet = about(flow, kind, packet);
                    if let Some(part) = packet.part
                        && part.offset != 0
                    {
                        let known = (packet.src, packet.dst, packet.id, flow.protocol);
                        world.fragments.push(known);
                    }
                    packet
                }
                _ => packet,
            };
            Case {
                hook,
                ifindex,
                segment_len,
                ..case("a random case", &[], packet).world(world)
            }
        },
    )
}

/// The same with a packet that may be damaged: cut, or with a byte of its IP header changed.
pub fn any_damaged_case() -> impl Strategy<Value = Case> {
    let poke = proptest::option::of((0_usize..20, any::<u8>()));
    (any_case(), 0_usize..60, poke).prop_map(|(case, cut, poke)| {
        let len = case.packet.bytes::<proxy_ebpf::V4>().len();
        Case {
            // The kernel wants an Ethernet header and more.
            cut: cut.min(len.saturating_sub(40)),
            poke: poke.filter(|_| cut < 20),
            ..case
        }
    })
}
