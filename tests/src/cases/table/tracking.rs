//! Known flows: promotion, restoring, expiry, deciding anew, and clashes.

use proxy_common::Counter::*;
use proxy_common::flow::tcp as seen;
use proxy_common::protocol;

use super::super::case;
use super::super::flows::{Age, Flow, Halves, snat, stack};
use super::super::packets::*;
use super::*;

pub fn cases() -> Vec<Case> {
    [
        replies(),
        restoring(),
        endings(),
        anew(),
        expired(),
        clashes(),
        snat_ports(),
    ]
    .concat()
}

fn pod_flow() -> Flow {
    stack(POD_AT, VIP, LOCAL_AT)
}

fn replies() -> Vec<Case> {
    let handshake = Flow {
        age: Age::Handshake,
        ..pod_flow()
    };
    let reply = tcp(LOCAL_AT, POD_AT, SYN | ACK);
    let answer = udp(LOCAL_AT, POD_AT);
    let again = syn(POD_AT, VIP);
    vec![
        case("the first reply promotes a flow", &["S-122"], reply.clone())
            .egress(POD)
            .flow(handshake)
            .passed(reply.src(VIP), &[Promoted, ReplyStack])
            .leaves(&[pod_flow()]),
        case(
            "the first UDP reply promotes a flow",
            &["S-122"],
            answer.clone(),
        )
        .egress(POD)
        .flow(handshake.udp())
        .passed(answer.src(VIP), &[Promoted, ReplyStack])
        .leaves(&[pod_flow().udp()]),
        case(
            "a repeated SYN goes to the same backend",
            &["S-120"],
            again.clone(),
        )
        .world(with_backend(Role::RemoteBackend))
        .flow(handshake)
        .passed(again.dst(LOCAL_AT), &[OriginalStack])
        .leaves(&[handshake]),
    ]
}

fn restoring() -> Vec<Case> {
    let half = |halves| Flow {
        halves,
        idle_secs: 5,
        ..pod_flow()
    };
    let data = tcp(POD_AT, VIP, ACK);
    let reply = tcp(LOCAL_AT, POD_AT, ACK);
    let old = reply.clone().seq(1);
    let refused = World {
        backends: Vec::new(),
        frontend_flags: 0,
        ..World::default()
    };
    let excluded = World {
        source_ranges: vec![Role::Foreign],
        ..World::default()
    };
    vec![
        case(
            "a flow goes on where new ones are refused",
            &["S-111", "S-120"],
            data.clone(),
        )
        .world(refused)
        .flow(pod_flow())
        .passed(data.clone().dst(LOCAL_AT), &[OriginalStack]),
        case(
            "a flow goes on where source ranges refuse new ones",
            &["S-115", "S-120"],
            data.clone(),
        )
        .world(excluded)
        .flow(pod_flow())
        .passed(data.clone().dst(LOCAL_AT), &[OriginalStack]),
        case(
            "an old segment of a backend is translated like any other",
            &["S-132"],
            old.clone(),
        )
        .egress(POD)
        .flow(pod_flow())
        .passed(old.src(VIP), &[ReplyStack]),
        case(
            "a packet keeps its flow alive, both directions",
            &["S-122"],
            data.clone(),
        )
        .flow(half(Halves::Both))
        .passed(data.clone().dst(LOCAL_AT), &[OriginalStack])
        .leaves(&[pod_flow()]),
        case(
            "a lost Reply direction is put back",
            &["S-120"],
            data.clone(),
        )
        .flow(half(Halves::OriginalOnly))
        .passed(data.dst(LOCAL_AT), &[HalfRestored, OriginalStack])
        .leaves(&[pod_flow()]),
        case(
            "a lost Original direction is put back",
            &["S-120"],
            reply.clone(),
        )
        .egress(POD)
        .flow(half(Halves::ReplyOnly))
        .passed(reply.src(VIP), &[HalfRestored, ReplyStack])
        .leaves(&[pod_flow()]),
    ]
}

fn endings() -> Vec<Case> {
    let with = |tcp| Flow { tcp, ..pod_flow() };
    let fin = tcp(POD_AT, VIP, FIN | ACK);
    let reply_fin = tcp(LOCAL_AT, POD_AT, FIN | ACK);
    let reset = tcp(POD_AT, VIP, RST);
    vec![
        case("the client's FIN is remembered", &["S-121"], fin.clone())
            .flow(pod_flow())
            .passed(fin.dst(LOCAL_AT), &[OriginalStack])
            .leaves(&[with(seen::FIN_ORIGINAL)]),
        case(
            "the backend's FIN is remembered",
            &["S-121"],
            reply_fin.clone(),
        )
        .egress(POD)
        .flow(with(seen::FIN_ORIGINAL))
        .passed(reply_fin.src(VIP), &[ReplyStack])
        .leaves(&[with(seen::FIN_ORIGINAL | seen::FIN_REPLY)]),
        case("a reset is remembered", &["S-121"], reset.clone())
            .flow(pod_flow())
            .passed(reset.dst(LOCAL_AT), &[OriginalStack])
            .leaves(&[with(seen::RST)]),
    ]
}

fn anew() -> Vec<Case> {
    let remote = || with_backend(Role::RemoteBackend);
    let packet = syn(POD_AT, VIP);
    let datagram = udp(POD_AT, VIP);
    let data = tcp(POD_AT, VIP, ACK);
    let chunk = sctp(POD_AT, VIP);
    let same_port = (Role::LocalBackend, PORT);
    let closed = Flow {
        tcp: seen::RST,
        ..pod_flow()
    };
    let moved = Flow {
        generation: GENERATION - 1,
        ..pod_flow().udp()
    };
    let created = |flow: Flow, backend| Flow {
        age: Age::Handshake,
        ..stack(flow.client, flow.dialed, backend)
    };
    let tcp_flow = created(pod_flow(), REMOTE_AT);
    vec![
        case(
            "a SYN on a closed connection is decided anew",
            &["S-121"],
            packet.clone(),
        )
        .world(remote())
        .flow(closed)
        .passed(
            packet.clone().dst(REMOTE_AT),
            &[Redecided, NewFlow, OriginalStack],
        )
        .leaves(&[tcp_flow]),
        case(
            "UDP whose backend is gone is decided anew",
            &["S-124", "S-126"],
            datagram.clone(),
        )
        .world(remote())
        .flow(moved)
        .passed(
            datagram.clone().dst(REMOTE_AT),
            &[Redecided, NewFlow, OriginalStack],
        )
        .leaves(&[tcp_flow.udp()]),
        case(
            "TCP whose backend is gone stays with it",
            &["S-125"],
            data.clone(),
        )
        .world(remote())
        .flow(Flow {
            generation: GENERATION - 1,
            ..pod_flow()
        })
        .passed(data.clone().dst(LOCAL_AT), &[OriginalStack]),
        case(
            "SCTP whose backend is gone stays with it",
            &["S-125"],
            chunk.clone(),
        )
        .world(remote())
        .flow(Flow {
            generation: GENERATION - 1,
            protocol: protocol::SCTP,
            ..stack(POD_AT, VIP, same_port)
        })
        .passed(chunk.dst(same_port), &[OriginalStack]),
    ]
}

fn expired() -> Vec<Case> {
    let remote = || with_backend(Role::RemoteBackend);
    let packet = syn(POD_AT, VIP);
    let datagram = udp(POD_AT, VIP);
    let data = tcp(POD_AT, VIP, ACK);
    let idle = |idle_secs| Flow {
        idle_secs,
        ..pod_flow()
    };
    let waiting = |idle_secs| Flow {
        age: Age::Handshake,
        ..idle(idle_secs)
    };
    vec![
        case("TCP idle for less than a day", &["S-122"], data.clone())
            .flow(idle(24 * 3600))
            .passed(data.clone().dst(LOCAL_AT), &[OriginalStack])
            .leaves(&[pod_flow()]),
        case(
            "TCP idle for more than a day is unknown",
            &["S-122"],
            data.clone(),
        )
        .flow(idle(24 * 3600 + 1))
        .answered(reset_of(&data), RejectMidStream),
        case(
            "a UDP stream idle for too long is decided anew",
            &["S-122"],
            datagram.clone(),
        )
        .world(remote())
        .flow(idle(121).udp())
        .passed(datagram.clone().dst(REMOTE_AT), &[NewFlow, OriginalStack]),
        case(
            "a UDP flow without replies expires sooner",
            &["S-122"],
            datagram.clone(),
        )
        .world(remote())
        .flow(waiting(31).udp())
        .passed(datagram.dst(REMOTE_AT), &[NewFlow, OriginalStack]),
        case(
            "a TCP handshake without a reply expires",
            &["S-122"],
            packet.clone(),
        )
        .world(remote())
        .flow(waiting(61))
        .passed(packet.dst(REMOTE_AT), &[NewFlow, OriginalStack]),
    ]
}

fn clashes() -> Vec<Case> {
    let other = (Role::ClusterIp, 81);
    let packet = syn(POD_AT, VIP);
    let closed = Flow {
        tcp: seen::RST,
        ..pod_flow()
    };
    vec![
        case(
            "one client, two Services, one backend: another source port",
            &["S-099"],
            packet.clone(),
        )
        .flow(stack(POD_AT, other, LOCAL_AT))
        .passed(
            packet.dst(LOCAL_AT).src((Role::Pod, SNAT_PORT)),
            &[TupleClash, NewFlow, OriginalStack],
        ),
        case(
            "a connection to the backend itself, from the port of a flow to it",
            &["S-099"],
            syn(POD_AT, LOCAL_AT),
        )
        .flow(pod_flow())
        .passed(
            syn((Role::Pod, SNAT_PORT), LOCAL_AT),
            &[NewFlow, OriginalStack],
        ),
        case(
            "the same for a process of the node",
            &["S-099"],
            syn((Role::Node, CLIENT_PORT), REMOTE_AT),
        )
        .egress(UPLINK)
        .flow(stack((Role::Node, CLIENT_PORT), VIP, REMOTE_AT))
        .passed(
            syn((Role::Node, SNAT_PORT), REMOTE_AT),
            &[NewFlow, OriginalStack],
        ),
        case(
            "a connection to the backend itself, from the port of a closed flow",
            &["S-099", "S-121"],
            syn(POD_AT, LOCAL_AT),
        )
        .flow(closed)
        .left_alone(NotFrontend),
        case(
            "the backend's SYN-ACK on a closed flow ends it",
            &["S-099", "S-121"],
            tcp(LOCAL_AT, POD_AT, SYN | ACK),
        )
        .egress(POD)
        .flow(closed)
        .ends(Verdict::Pass, Out::Unchanged, &[Redecided, NotFrontend])
        .leaves(&[]),
    ]
}

fn snat_ports() -> Vec<Case> {
    let outside = syn(CLIENT_AT, NODE_AT);
    let taken = |client| snat(client, NODE_AT, SNAT_AT, REMOTE_AT, [UPLINK, UPLINK]);
    let expired = Flow {
        idle_secs: 24 * 3600 + 1,
        ..taken((Role::Foreign, 1))
    };
    vec![
        case("no SNAT port is free", &["P-13"], outside.clone())
            .ingress(UPLINK)
            .world(with_backend(Role::RemoteBackend))
            .flow(taken((Role::Foreign, 1)))
            .dropped(SnatPortsExhausted),
        case(
            "an expired flow's SNAT port is free",
            &["P-13"],
            outside.clone(),
        )
        .ingress(UPLINK)
        .world(with_backend(Role::RemoteBackend))
        .flow(expired)
        .redirected(
            UPLINK,
            outside.src(SNAT_AT).dst(REMOTE_AT),
            &[NewFlow, OriginalRedirect],
        ),
    ]
}
