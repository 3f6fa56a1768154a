//! Known flows: promotion, restoring, expiry, deciding anew, and clashes.

use proxy_common::Counter::*;
use proxy_common::flow::seen::{FIN_ORIGINAL, FIN_REPLY, RST_ORIGINAL, RST_REPLY};
use proxy_common::{CLOSED_KEEPS_TUPLE_SECS, protocol};
use proxy_ebpf::pipeline::conntrack::RENEWAL_LAG_SECS;

use super::super::case;
use super::super::flows::{Flow, Halves, snat, stack};
use super::super::packets::*;
use super::*;

pub fn cases() -> Vec<Case> {
    [
        replies(),
        unconfirmed(),
        restoring(),
        endings(),
        resets(),
        anew(),
        stays(),
        expired(),
        streams(),
        clashes(),
        clashes_of_processes(),
        clashes_with_closed(),
        snat_ports(),
    ]
    .concat()
}

fn pod_flow() -> Flow {
    stack(POD_AT, VIP, LOCAL_AT)
}

fn replies() -> Vec<Case> {
    let accepted = tcp(LOCAL_AT, POD_AT, SYN | ACK);
    let acknowledged = tcp(POD_AT, VIP, ACK);
    let answer = udp(LOCAL_AT, POD_AT);
    let question = udp(POD_AT, VIP);
    let again = syn(POD_AT, VIP);
    let tcp = pod_flow();
    let udp = pod_flow().udp();
    vec![
        case(
            "a backend's SYN-ACK is remembered",
            &["S-122"],
            accepted.clone(),
        )
        .egress(POD)
        .flow(tcp.unanswered())
        .passed(accepted.src(VIP), &[ReplyStack])
        .leaves(&[tcp.answered()]),
        case(
            "the client's acknowledgement establishes a connection",
            &["S-122"],
            acknowledged.clone(),
        )
        .flow(tcp.answered())
        .passed(
            acknowledged.clone().dst(LOCAL_AT),
            &[Promoted, OriginalStack],
        )
        .leaves(&[tcp]),
        case(
            "without the backend's answer it does not",
            &["S-122"],
            acknowledged.clone(),
        )
        .flow(tcp.unanswered())
        .passed(acknowledged.dst(LOCAL_AT), &[OriginalStack])
        .leaves(&[tcp.unanswered()]),
        case("a UDP answer is remembered", &["S-122"], answer.clone())
            .egress(POD)
            .flow(udp.unanswered().idle(5))
            .passed(answer.clone().src(VIP), &[ReplyStack])
            .leaves(&[udp.answered()]),
        case(
            "a second answer in the same second",
            &["S-122"],
            answer.clone(),
        )
        .egress(POD)
        .flow(udp.answered())
        .passed(answer.src(VIP), &[ReplyStack])
        .leaves(&[udp.answered()]),
        case(
            "datagrams both ways and later ones are a stream",
            &["S-122"],
            question.clone(),
        )
        .flow(udp.answered().idle(1))
        .passed(question.dst(LOCAL_AT), &[Promoted, OriginalStack])
        .leaves(&[udp]),
        case(
            "a repeated SYN goes to the same backend",
            &["S-120"],
            again.clone(),
        )
        .world(with_backend(Role::RemoteBackend))
        .flow(tcp.unanswered())
        .passed(again.dst(LOCAL_AT), &[OriginalStack])
        .leaves(&[tcp.unanswered()]),
    ]
}

fn unconfirmed() -> Vec<Case> {
    let more = tcp(LOCAL_AT, POD_AT, ACK);
    let flow = pod_flow().answered();
    vec![
        case(
            "what the backend sends after its answer establishes nothing",
            &["S-122"],
            more.clone(),
        )
        .egress(POD)
        .flow(flow)
        .passed(more.src(VIP), &[ReplyStack])
        .leaves(&[flow]),
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
    let fin = tcp(POD_AT, VIP, FIN | ACK);
    let reply_fin = tcp(LOCAL_AT, POD_AT, FIN | ACK);
    let again = syn(POD_AT, VIP);
    let last = tcp(POD_AT, VIP, ACK);
    let flow = pod_flow();
    vec![
        case("the client's FIN is remembered", &["S-121"], fin.clone())
            .flow(flow)
            .passed(fin.clone().dst(LOCAL_AT), &[OriginalStack])
            .leaves(&[flow.ended(FIN_ORIGINAL)]),
        case(
            "the client's FIN is remembered in a lost direction too",
            &["S-120", "S-121"],
            fin.clone(),
        )
        .flow(Flow {
            halves: Halves::OriginalOnly,
            ..flow
        })
        .passed(fin.clone().dst(LOCAL_AT), &[HalfRestored, OriginalStack])
        .leaves(&[flow.ended(FIN_ORIGINAL)]),
        case(
            "a SYN on a connection that is closed on one side goes on",
            &["S-120", "S-121"],
            again.clone(),
        )
        .world(with_backend(Role::RemoteBackend))
        .flow(flow.ended(FIN_ORIGINAL))
        .passed(again.dst(LOCAL_AT), &[OriginalStack])
        .leaves(&[flow.ended(FIN_ORIGINAL)]),
        case(
            "the backend's FIN closes the connection",
            &["S-120", "S-121"],
            reply_fin.clone(),
        )
        .egress(POD)
        .flow(flow.ended(FIN_ORIGINAL))
        .passed(reply_fin.clone().src(VIP), &[Closed, ReplyStack])
        .leaves(&[flow.closed(FIN_ORIGINAL | FIN_REPLY)]),
        case(
            "the last acknowledgement of a closed connection",
            &["S-120", "S-121"],
            last.clone(),
        )
        .flow(flow.closed(FIN_ORIGINAL | FIN_REPLY))
        .passed(last.clone().dst(LOCAL_AT), &[OriginalStack])
        .leaves(&[flow.closed(FIN_ORIGINAL | FIN_REPLY)]),
        case(
            "a repeated FIN of a closed connection",
            &["S-120", "S-121"],
            reply_fin.clone(),
        )
        .egress(POD)
        .flow(flow.closed(FIN_ORIGINAL | FIN_REPLY).idle(3))
        .passed(reply_fin.src(VIP), &[ReplyStack])
        .leaves(&[flow.closed(FIN_ORIGINAL | FIN_REPLY)]),
        case(
            "a closed connection that was left in FLOWS",
            &["S-120", "S-121"],
            last.clone(),
        )
        .flow(flow.ended(FIN_ORIGINAL | FIN_REPLY))
        .passed(last.clone().dst(LOCAL_AT), &[Closed, OriginalStack])
        .leaves(&[flow.closed(FIN_ORIGINAL | FIN_REPLY)]),
    ]
}

fn resets() -> Vec<Case> {
    let reset = tcp(POD_AT, VIP, RST);
    let reply_reset = tcp(LOCAL_AT, POD_AT, RST);
    let last = tcp(POD_AT, VIP, ACK);
    let flow = pod_flow();
    vec![
        case("a reset closes the connection", &["S-121"], reset.clone())
            .flow(flow)
            .passed(reset.clone().dst(LOCAL_AT), &[Closed, OriginalStack])
            .leaves(&[flow.closed(RST_ORIGINAL)]),
        case("a reset that comes twice", &["S-121"], reset.clone())
            .flow(flow.closed(RST_ORIGINAL))
            .passed(reset.clone().dst(LOCAL_AT), &[OriginalStack])
            .leaves(&[flow.closed(RST_ORIGINAL)]),
        case(
            "a backend that refuses was never connected",
            &["S-121"],
            reply_reset.clone(),
        )
        .egress(POD)
        .flow(flow.unanswered())
        .passed(reply_reset.src(VIP), &[ReplyStack])
        .leaves(&[flow.unanswered().ended(RST_REPLY)]),
        case(
            "a segment that the reset has overtaken",
            &["S-120", "S-121"],
            last.clone(),
        )
        .flow(flow.closed(RST_ORIGINAL))
        .passed(last.clone().dst(LOCAL_AT), &[OriginalStack])
        .leaves(&[flow.closed(RST_ORIGINAL)]),
        case(
            "who goes on a second after a reset has not been reset",
            &["S-120", "S-132"],
            last.clone(),
        )
        .flow(flow.closed(RST_ORIGINAL).idle(1))
        .passed(last.clone().dst(LOCAL_AT), &[Promoted, OriginalStack])
        .leaves(&[flow]),
        case(
            "only one of two who reset each other goes on",
            &["S-120", "S-132"],
            last.clone(),
        )
        .flow(flow.closed(RST_ORIGINAL | RST_REPLY).idle(1))
        .passed(last.dst(LOCAL_AT), &[OriginalStack])
        .leaves(&[flow.closed(RST_REPLY)]),
    ]
}

fn anew() -> Vec<Case> {
    let remote = || with_backend(Role::RemoteBackend);
    let packet = syn(POD_AT, VIP);
    let datagram = udp(POD_AT, VIP);
    let moved = Flow {
        generation: GENERATION - 1,
        ..pod_flow().udp()
    };
    let created = |flow: Flow, backend| stack(flow.client, flow.dialed, backend).unanswered();
    let tcp_flow = created(pod_flow(), REMOTE_AT);
    let mut cases: Vec<Case> = [
        ("closed", RST_ORIGINAL),
        ("twice reset", RST_ORIGINAL | RST_REPLY),
        ("closed and reset", FIN_ORIGINAL | FIN_REPLY | RST_REPLY),
    ]
    .into_iter()
    .map(|(what, ends)| {
        let name = format!("a SYN on a {what} connection is decided anew");
        case(name, &["S-121"], packet.clone())
            .world(remote())
            .flow(pod_flow().closed(ends))
            .passed(
                packet.clone().dst(REMOTE_AT),
                &[Redecided, NewFlow, OriginalStack],
            )
            .leaves(&[tcp_flow])
    })
    .collect();
    cases.push(
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
    );
    cases
}

fn stays() -> Vec<Case> {
    let remote = || with_backend(Role::RemoteBackend);
    let data = tcp(POD_AT, VIP, ACK);
    let chunk = sctp(POD_AT, VIP);
    let same_port = (Role::LocalBackend, PORT);
    vec![
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

fn streams() -> Vec<Case> {
    let remote = || with_backend(Role::RemoteBackend);
    let datagram = udp(POD_AT, VIP);
    let idle = |idle_secs| pod_flow().idle(idle_secs);
    vec![
        case("a datagram of a UDP stream", &["S-122"], datagram.clone())
            .world(remote())
            .flow(idle(0).udp())
            .passed(datagram.clone().dst(LOCAL_AT), &[OriginalStack])
            .leaves(&[pod_flow().udp()]),
        case(
            "a UDP stream lives longer than a question",
            &["S-122"],
            datagram.clone(),
        )
        .world(remote())
        .flow(idle(120 + RENEWAL_LAG_SECS).udp())
        .passed(datagram.clone().dst(LOCAL_AT), &[OriginalStack]),
        case(
            "a UDP stream idle for too long is decided anew",
            &["S-122"],
            datagram.clone(),
        )
        .world(remote())
        .flow(idle(121 + RENEWAL_LAG_SECS).udp())
        .passed(datagram.clone().dst(REMOTE_AT), &[NewFlow, OriginalStack]),
    ]
}

fn expired() -> Vec<Case> {
    let remote = || with_backend(Role::RemoteBackend);
    let packet = syn(POD_AT, VIP);
    let datagram = udp(POD_AT, VIP);
    let data = tcp(POD_AT, VIP, ACK);
    let idle = |idle_secs| pod_flow().idle(idle_secs);
    let waiting = |idle_secs| pod_flow().unanswered().idle(idle_secs);
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
        .flow(idle(24 * 3600 + RENEWAL_LAG_SECS + 1))
        .answered(reset_of(&data), RejectMidStream),
        case(
            "a closed connection is forgotten sooner",
            &["S-122"],
            data.clone(),
        )
        .flow(pod_flow().closed(FIN_ORIGINAL | FIN_REPLY).idle(121))
        .answered(reset_of(&data), RejectMidStream),
        case(
            "a UDP flow without replies expires sooner",
            &["S-122"],
            datagram.clone(),
        )
        .world(remote())
        .flow(waiting(31).udp())
        .passed(datagram.clone().dst(REMOTE_AT), &[NewFlow, OriginalStack]),
        case(
            "so does a question that was answered",
            &["S-122"],
            datagram.clone(),
        )
        .world(remote())
        .flow(pod_flow().udp().answered().idle(31))
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
        case("the same with datagrams", &["S-099"], udp(POD_AT, LOCAL_AT))
            .flow(pod_flow().udp())
            .passed(
                udp((Role::Pod, SNAT_PORT), LOCAL_AT),
                &[NewFlow, OriginalStack],
            ),
        case(
            "what starts no connection keeps its port there",
            &["S-099"],
            tcp(POD_AT, LOCAL_AT, ACK).extras(Extras::Options),
        )
        .flow(pod_flow())
        .left_alone(NotFrontend),
        case(
            "behind a bridge the packet may have been translated at its port",
            &["S-099"],
            syn((Role::BridgedPod, CLIENT_PORT), LOCAL_AT),
        )
        .ingress(BRIDGE)
        .flow(stack((Role::BridgedPod, CLIENT_PORT), VIP, LOCAL_AT))
        .left_alone(NotFrontend),
    ]
}

fn clashes_of_processes() -> Vec<Case> {
    let process = syn((Role::Node, CLIENT_PORT), VIP);
    vec![
        case(
            "a process's connection to the backend itself, from the port of a flow to it",
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
            "a process has a connection to the backend itself from this port",
            &["S-099"],
            process.clone(),
        )
        .egress(UPLINK)
        .world(World {
            sockets: vec![((Role::Node, CLIENT_PORT), REMOTE_AT, protocol::TCP)],
            ..with_backend(Role::RemoteBackend)
        })
        .ends(
            Verdict::Redirect(UPLINK),
            Out::Packet(process.src((Role::Node, SNAT_PORT)).dst(REMOTE_AT)),
            &[TupleClash, NewFlow, OriginalRedirect],
        ),
    ]
}

fn clashes_with_closed() -> Vec<Case> {
    let closed = pod_flow().closed(RST_ORIGINAL);
    vec![
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
        idle_secs: 24 * 3600 + RENEWAL_LAG_SECS + 1,
        ..taken((Role::Foreign, 1))
    };
    let closed = |secs| taken((Role::Foreign, 1)).closed(RST_ORIGINAL).idle(secs);
    vec![
        case(
            "a closed flow keeps its SNAT port while packets may be on their way",
            &["P-13"],
            outside.clone(),
        )
        .ingress(UPLINK)
        .world(with_backend(Role::RemoteBackend))
        .flow(closed(CLOSED_KEEPS_TUPLE_SECS))
        .dropped(SnatPortsExhausted),
        case(
            "a closed flow's SNAT port is free soon",
            &["P-13"],
            outside.clone(),
        )
        .ingress(UPLINK)
        .world(with_backend(Role::RemoteBackend))
        .flow(closed(CLOSED_KEEPS_TUPLE_SECS + 1))
        .redirected(
            UPLINK,
            outside.clone().src(SNAT_AT).dst(REMOTE_AT),
            &[NewFlow, OriginalRedirect],
        )
        .leaves(&[taken(CLIENT_AT).unanswered()]),
        case(
            "a new SYN on a closed flow whose tuple is another's leaves that alone",
            &["P-13", "S-121"],
            syn((Role::Foreign, 1), NODE_AT),
        )
        .ingress(UPLINK)
        .world(with_backend(Role::RemoteBackend))
        .flow(Flow {
            halves: Halves::OriginalOnly,
            ..closed(1)
        })
        .flow(taken(CLIENT_AT))
        .ends(
            Verdict::Drop,
            Out::Unchanged,
            &[Redecided, SnatPortsExhausted],
        )
        .leaves(&[taken(CLIENT_AT)]),
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
