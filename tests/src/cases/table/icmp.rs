//! ICMP errors: those that are translated, and those that a redirect answers with.

use proxy_common::{Counter::*, protocol};
use proxy_ebpf::packet::SEGMENTS_DIFFER;

use super::super::flows::{Flow, snat, stack};
use super::super::packets::*;
use super::super::{Families, case};
use super::*;

/// Bytes of transport that a short quote shows.
const SHORT: usize = 8;

pub fn cases() -> Vec<Case> {
    [
        translated(),
        idle(),
        about_a_header(),
        behind_headers(),
        without_ports(),
        last_hop(),
        too_big(),
        segments_at_the_bound(),
        too_big_fragments(),
        others(),
    ]
    .concat()
}

fn router() -> At {
    (Role::Router, 0)
}

fn node_flow() -> Flow {
    snat(CLIENT_AT, NODE_AT, SNAT_AT, REMOTE_AT, [UPLINK, UPLINK])
}

/// A UDP datagram as an error quotes it: its checksum stays as it was.
fn quoted_udp(src: At, dst: At) -> PacketSpec {
    let mut packet = udp(src, dst);
    packet.body = Body::UdpChecksum(0xbeef);
    packet
}

fn translated() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, quote, is_udp) in [
        ("TCP", tcp as fn(At, At, u8) -> PacketSpec, false),
        ("UDP", |src, dst, _| quoted_udp(src, dst), true),
    ] {
        let flow = |flow: Flow| if is_udp { flow.udp() } else { flow };
        let about = |src: At, dst: At, outer: At, by: At| {
            icmp_error(
                by,
                (outer.0, 0),
                IcmpKind::TooBig(1400),
                quote(src, dst, ACK),
                SHORT,
            )
        };
        let kept = about(POD_AT, REMOTE_AT, POD_AT, router());
        cases.push(
            case(
                format!("an error about {name} is left to the client's interface"),
                &["S-130", "P-1"],
                kept.clone(),
            )
            .ingress(UPLINK)
            .flow(flow(stack(POD_AT, VIP, REMOTE_AT)))
            .left_alone(OtherHook),
        );
        cases.push(
            case(
                format!("an error about {name} quotes what the client sent"),
                &["S-130"],
                kept,
            )
            .egress(POD)
            .flow(flow(stack(POD_AT, VIP, REMOTE_AT)))
            .passed(about(POD_AT, VIP, POD_AT, router()), &[Related]),
        );
        cases.push(
            case(
                format!("an error about redirected {name} goes to the client"),
                &["S-130", "P-2"],
                about(SNAT_AT, REMOTE_AT, SNAT_AT, router()),
            )
            .ingress(UPLINK)
            .flow(flow(node_flow()))
            .redirected(
                UPLINK,
                about(CLIENT_AT, NODE_AT, CLIENT_AT, router()),
                &[Related],
            ),
        );
        let client = (Role::Client, 0);
        cases.push(
            case(
                format!("an error about a reply over {name} goes to the backend"),
                &["S-130", "P-2"],
                about(NODE_AT, CLIENT_AT, NODE_AT, client),
            )
            .ingress(UPLINK)
            .flow(flow(node_flow()))
            .redirected(
                UPLINK,
                about(REMOTE_AT, SNAT_AT, REMOTE_AT, client),
                &[Related],
            ),
        );
    }
    cases
}

fn idle() -> Vec<Case> {
    let about = |dst| {
        let quoted = tcp(POD_AT, dst, ACK);
        icmp_error(
            router(),
            (POD_AT.0, 0),
            IcmpKind::TooBig(1400),
            quoted,
            SHORT,
        )
    };
    let flow = stack(POD_AT, VIP, REMOTE_AT).idle(5);
    vec![
        case(
            "an error does not keep the flow alive that it is about",
            &["S-122", "S-130"],
            about(REMOTE_AT),
        )
        .egress(POD)
        .flow(flow)
        .passed(about(VIP), &[Related])
        .leaves(&[flow]),
    ]
}

fn about_a_header() -> Vec<Case> {
    let about = |dst: At| {
        let quoted = tcp(POD_AT, dst, ACK);
        let kind = IcmpKind::ParameterProblem;
        icmp_error(router(), (Role::Pod, 0), kind, quoted, SHORT)
    };
    vec![
        case(
            "an error about a header quotes what the client sent",
            &["S-130"],
            about(REMOTE_AT),
        )
        .egress(POD)
        .flow(stack(POD_AT, VIP, REMOTE_AT))
        .passed(about(VIP), &[Related]),
    ]
}

/// Errors whose quoted packet has options or extension headers, or is a first fragment.
fn behind_headers() -> Vec<Case> {
    let options = |packet: PacketSpec| packet.extras(Extras::Options);
    let fragment = |packet: PacketSpec| packet.part(0, true);
    let mut cases = Vec::new();
    for (name, quote) in [
        ("options", &options as &dyn Fn(PacketSpec) -> PacketSpec),
        ("a fragment header", &fragment),
        ("both", &|packet| fragment(options(packet))),
    ] {
        let about = |src: At, dst: At, by: At| {
            let quoted = quote(quoted_udp(src, dst));
            icmp_error(by, (src.0, 0), IcmpKind::TooBig(1400), quoted, SHORT)
        };
        let kept = stack(POD_AT, VIP, REMOTE_AT).udp();
        let case = |who, error| {
            let name = format!("an error to {who} about a packet with {name}");
            case(name, &["S-130", "S-133"], error)
        };
        cases.extend([
            case("a client here", about(POD_AT, REMOTE_AT, router()))
                .egress(POD)
                .flow(kept)
                .passed(about(POD_AT, VIP, router()), &[Related]),
            case("a client outside", about(SNAT_AT, REMOTE_AT, router()))
                .ingress(UPLINK)
                .flow(node_flow().udp())
                .redirected(UPLINK, about(CLIENT_AT, NODE_AT, router()), &[Related]),
            case("a backend", about(NODE_AT, CLIENT_AT, router()))
                .ingress(UPLINK)
                .flow(node_flow().udp())
                .redirected(UPLINK, about(REMOTE_AT, SNAT_AT, router()), &[Related]),
        ]);
    }
    cases
}

/// Errors whose quoted packet shows no ports.
fn without_ports() -> Vec<Case> {
    let error = |to: At, quoted: PacketSpec| {
        let quoted_len = quoted.payload.len().max(SHORT);
        icmp_error(
            router(),
            (to.0, 0),
            IcmpKind::TooBig(1400),
            quoted,
            quoted_len,
        )
    };
    let many = udp(SNAT_AT, REMOTE_AT).extras(Extras::TooMany);
    let many_of_vip = udp(VIP, CLIENT_AT).extras(Extras::TooMany);
    let later = udp(SNAT_AT, REMOTE_AT).later(protocol::UDP, 9);
    let unread = |case: Case| Case {
        families: Families::V6,
        ..case.ingress(UPLINK).flow(node_flow().udp())
    };
    vec![
        unread(case(
            "an error about a packet with more headers than are walked",
            &["S-130", "S-133"],
            error(SNAT_AT, many),
        ))
        .left_alone(TooManyHeaders),
        unread(case(
            "an error to a ClusterIP about a packet with more headers than are walked",
            &["S-130", "S-133"],
            error(VIP, many_of_vip),
        ))
        .dropped(Unparsable),
        case(
            "an error about a later fragment, which has no ports",
            &["S-130", "S-131"],
            error(SNAT_AT, later),
        )
        .ingress(UPLINK)
        .flow(node_flow().udp())
        .left_alone(IcmpOther),
    ]
}

fn last_hop() -> Vec<Case> {
    let data = tcp(CLIENT_AT, NODE_AT, ACK).ttl(1);
    let reply = tcp(REMOTE_AT, SNAT_AT, ACK).ttl(1);
    let kept = tcp(POD_AT, VIP, ACK).ttl(1);
    let quoted = tcp(SNAT_AT, REMOTE_AT, ACK);
    let error = icmp_error(router(), (Role::Node, 0), IcmpKind::Refused, quoted, SHORT).ttl(1);
    vec![
        case(
            "a packet at its last hop is not redirected",
            &["P-3"],
            data.clone(),
        )
        .ingress(UPLINK)
        .flow(node_flow())
        .answered(error_of(&data, IcmpKind::TimeExceeded), TtlExceeded),
        case(
            "a reply at its last hop is not redirected",
            &["P-3"],
            reply.clone(),
        )
        .ingress(UPLINK)
        .flow(node_flow())
        .answered(error_of(&reply, IcmpKind::TimeExceeded), TtlExceeded),
        case("the stack counts hops itself", &["P-1"], kept.clone())
            .flow(stack(POD_AT, VIP, LOCAL_AT))
            .passed(kept.dst(LOCAL_AT), &[OriginalStack]),
        case(
            "an ICMP error at its last hop is dropped",
            &["P-3", "S-104"],
            error,
        )
        .ingress(UPLINK)
        .flow(node_flow())
        .dropped(TtlExceeded),
    ]
}

fn too_big() -> Vec<Case> {
    let gateway = (Role::OverlayGateway, SNAT_PORT);
    let backend = (Role::OverlayBackend, TARGET);
    let flow = snat(CLIENT_AT, NODE_AT, gateway, backend, [OVERLAY, UPLINK]);
    let data = tcp(CLIENT_AT, NODE_AT, ACK);
    let large = data.clone().len(1420);
    let many = data.clone().len(3000);
    let association = sctp(CLIENT_AT, NODE_AT).len(3000);
    let mtu = OVERLAY_MTU as u16;
    let segments = |segment_len, case: Case| Case {
        segment_len,
        ..case
    };
    let out = |packet: &PacketSpec| packet.clone().src(gateway).dst(backend);
    let case = |name, packet: &PacketSpec| {
        case(name, &["P-3"], packet.clone())
            .ingress(UPLINK)
            .flow(flow)
    };
    let fits = data.clone().len(1200);
    // IPv6 with a header of 40 bytes: 1500 in all.
    let full = data.len(1440);
    vec![
        super::super::case(
            "a packet of the uplink's MTU leaves as long as it came",
            &["S-134"],
            full.clone(),
        )
        .ingress(UPLINK)
        .flow(node_flow())
        .redirected(
            UPLINK,
            full.src(SNAT_AT).dst(REMOTE_AT),
            &[OriginalRedirect],
        ),
        case("a packet that fits the egress MTU is redirected", &fits).redirected(
            OVERLAY,
            out(&fits),
            &[OriginalRedirect],
        ),
        case("a packet larger than the egress MTU is answered", &large)
            .answered(error_of(&large, IcmpKind::TooBig(mtu)), TooBig),
        segments(
            1380,
            case("segments that fit the egress MTU are redirected", &many),
        )
        .redirected(OVERLAY, out(&many), &[OriginalRedirect]),
        segments(
            1440,
            case("segments larger than the egress MTU are answered", &many),
        )
        .answered(error_of(&many, IcmpKind::TooBig(mtu)), TooBig),
        segments(
            SEGMENTS_DIFFER,
            case("segments of SCTP are of any length", &association),
        )
        .flow(Flow {
            protocol: protocol::SCTP,
            ..flow
        })
        .redirected(OVERLAY, out(&association), &[OriginalRedirect]),
    ]
}

/// Segments that are as long as the egress MTU with their headers, and one byte longer.
fn segments_at_the_bound() -> Vec<Case> {
    let gateway = (Role::OverlayGateway, SNAT_PORT);
    let backend = (Role::OverlayBackend, TARGET);
    let flow = snat(CLIENT_AT, NODE_AT, gateway, backend, [OVERLAY, UPLINK]);
    let mut cases = Vec::new();
    for (families, ip) in [(Families::V4, 20), (Families::V6, 40)] {
        for (protocol, packet, flow, transport) in [
            ("TCP", tcp(CLIENT_AT, NODE_AT, ACK), flow, 20),
            ("UDP", udp(CLIENT_AT, NODE_AT), flow.udp(), 8),
        ] {
            let packet = packet.len(3000);
            let fits = OVERLAY_MTU - ip - transport;
            let case = |segment_len, flow: Flow| {
                let name = format!(
                    "segments of {segment_len} to an egress MTU of {}: {protocol} behind {ip}",
                    flow.path.mtu,
                );
                Case {
                    segment_len,
                    families,
                    ..case(name, &["P-3"], packet.clone())
                }
                .ingress(UPLINK)
                .flow(flow)
            };
            let out = packet.clone().src(gateway).dst(backend);
            let too_big = error_of(&packet, IcmpKind::TooBig(OVERLAY_MTU as u16));
            let mut unknown = flow;
            unknown.path.mtu = 0;
            cases.push(case(fits, flow).redirected(OVERLAY, out.clone(), &[OriginalRedirect]));
            cases.push(case(fits + 1, flow).answered(too_big, TooBig));
            cases.push(case(fits + 1, unknown).redirected(OVERLAY, out, &[OriginalRedirect]));
        }
    }
    cases
}

/// Without DF, as all fragments.
fn too_big_fragments() -> Vec<Case> {
    let gateway = (Role::OverlayGateway, SNAT_PORT);
    let backend = (Role::OverlayBackend, TARGET);
    let flow = snat(CLIENT_AT, NODE_AT, gateway, backend, [OVERLAY, UPLINK]).udp();
    let fragment = udp(CLIENT_AT, NODE_AT).len(1440).part(0, true);
    let mut narrow = flow;
    narrow.path.flags = 0;
    let out = fragment.clone().src(gateway).dst(backend);
    let too_big = IcmpKind::TooBig(OVERLAY_MTU as u16);
    vec![
        Case {
            families: Families::V4,
            ..case(
                "a larger one that routers may fragment enters a tunnel that does so",
                &["P-3", "S-131"],
                fragment.clone(),
            )
        }
        .ingress(UPLINK)
        .flow(flow)
        .redirected(OVERLAY, out, &[OriginalRedirect]),
        case(
            "a larger one that no tunnel fragments is answered",
            &["P-3", "S-131"],
            fragment.clone(),
        )
        .ingress(UPLINK)
        .flow(narrow)
        .answered(error_of(&fragment, too_big), TooBig),
    ]
}

fn others() -> Vec<Case> {
    let quoted = tcp(SNAT_AT, REMOTE_AT, ACK);
    let unknown = icmp_error(router(), (Role::Node, 0), IcmpKind::Refused, quoted, SHORT);
    let ping = echo((Role::Node, 0), (Role::Client, 0));
    let about_ping = icmp_error(router(), (Role::Node, 0), IcmpKind::Refused, ping, SHORT);
    let foreign = tcp((Role::Node, 4000), (Role::Foreign, 5000), ACK);
    let about_foreign = icmp_error(router(), (Role::Node, 0), IcmpKind::Refused, foreign, SHORT);
    vec![
        case(
            "an error that quotes no flow of ours",
            &["P-14", "S-130"],
            unknown,
        )
        .ingress(UPLINK)
        .left_alone(IcmpOther),
        case("an error about a ping", &["P-14"], about_ping)
            .ingress(UPLINK)
            .left_alone(IcmpOther),
        case("an error about a foreign flow", &["P-14"], about_foreign)
            .ingress(UPLINK)
            .left_alone(Foreign),
    ]
}
