//! New flows and their replies, by where the client and the backend are.

use proxy_common::Counter::*;
use proxy_common::config::flags::{MASQUERADE_ALL, MASQUERADE_ALWAYS};
use proxy_common::flow::{flags, path};
use proxy_common::frontend::flags::{HAS_ENDPOINTS, LOCAL_POLICY};
use proxy_ebpf::V4;

use super::super::case;
use super::super::flows::{Flow, by, snat, stack};
use super::super::packets::{ACK, tcp};
use super::*;

pub fn cases() -> Vec<Case> {
    [
        cluster_ip(),
        cluster_ip_known(),
        cluster_ip_from_outside(),
        node_port(),
        node_port_known(),
        masquerade(),
        local_policy(),
        local_policy_without_detector(),
        ways(),
    ]
    .concat()
}

/// What is remembered of a redirected flow's way.
fn ways() -> Vec<Case> {
    let (own, process) = ((Role::LocalBackend, CLIENT_PORT), (Role::Node, CLIENT_PORT));
    let (to_itself, of_process) = (syn(own, VIP), syn(process, VIP));
    let there = [LOCAL, LOCAL];
    let hairpin = snat(own, VIP, SNAT_LOCAL_AT, LOCAL_AT, there).unanswered();
    let from_node = stack(process, VIP, REMOTE_AT).unanswered();
    vec![
        case(
            "a flow of a backend to itself says so",
            &["S-094"],
            to_itself.clone(),
        )
        .ingress(LOCAL)
        .redirected(
            LOCAL,
            to_itself.src(SNAT_LOCAL_AT).dst(LOCAL_AT),
            &[NewFlow, OriginalRedirect],
        )
        .leaves(&[Flow {
            flags: flags::SNAT | flags::HAIRPIN,
            ..hairpin
        }]),
        case(
            "answers to a process of the node end there",
            &["P-7"],
            of_process.clone(),
        )
        .egress(UPLINK)
        .world(with_backend(Role::RemoteBackend))
        .ends(
            Verdict::Redirect(UPLINK),
            Out::Packet(of_process.dst(REMOTE_AT)),
            &[NewFlow, OriginalRedirect],
        )
        .leaves(&[Flow {
            path: by(path::EGRESS_NEIGH, UPLINK),
            reply_path: by(path::INGRESS_LOCAL, UPLINK),
            flags: flags::SNAT,
            ..from_node
        }]),
    ]
}

fn with_flags(config_flags: u32, backend: Role) -> World {
    World {
        config_flags,
        ..with_backend(backend)
    }
}

fn cluster_ip() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, packet) in first_packets(POD_AT, VIP) {
        let out = packet.clone().dst(LOCAL_AT);
        cases.push(
            case(
                format!("a pod reaches a local backend over {name} with its own address"),
                &["S-090", "S-091", "P-1"],
                packet.clone(),
            )
            .passed(out, &[NewFlow, OriginalStack]),
        );
        let out = packet.clone().dst(REMOTE_AT);
        cases.push(
            case(
                format!("a pod reaches a remote backend over {name} with its own address"),
                &["S-090", "P-2"],
                packet,
            )
            .world(with_backend(Role::RemoteBackend))
            .passed(out, &[NewFlow, OriginalStack]),
        );
    }
    cases
}

fn cluster_ip_known() -> Vec<Case> {
    let mut cases = Vec::new();
    let reply = tcp(LOCAL_AT, POD_AT, ACK);
    cases.push(
        case(
            "a reply passes the backend's interface as it is",
            &["P-1"],
            reply.clone(),
        )
        .ingress(LOCAL)
        .flow(stack(POD_AT, VIP, LOCAL_AT))
        .left_alone(OtherHook),
    );
    cases.push(
        case(
            "a reply shows the ClusterIP when it leaves",
            &["P-1"],
            reply.clone(),
        )
        .egress(POD)
        .flow(stack(POD_AT, VIP, LOCAL_AT))
        .passed(reply.src(VIP), &[ReplyStack]),
    );
    let reply = tcp(REMOTE_AT, POD_AT, ACK);
    cases.push(
        case(
            "a remote backend's reply shows the ClusterIP",
            &["P-1", "P-2"],
            reply.clone(),
        )
        .egress(POD)
        .flow(stack(POD_AT, VIP, REMOTE_AT))
        .passed(reply.src(VIP), &[ReplyStack]),
    );
    let data = tcp(POD_AT, VIP, ACK).len(700);
    cases.push(
        case(
            "an established flow keeps its backend",
            &["S-120"],
            data.clone(),
        )
        .world(with_backend(Role::RemoteBackend))
        .flow(stack(POD_AT, VIP, LOCAL_AT))
        .passed(data.dst(LOCAL_AT), &[OriginalStack]),
    );
    cases
}

fn cluster_ip_from_outside() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, packet) in first_packets(CLIENT_AT, VIP) {
        let out = packet.clone().src(SNAT_AT).dst(REMOTE_AT);
        cases.push(
            case(
                format!("an outside client reaches a ClusterIP over {name}"),
                &["S-091", "S-097", "P-2"],
                packet.clone(),
            )
            .ingress(UPLINK)
            .world(with_backend(Role::RemoteBackend))
            .redirected(UPLINK, out, &[NewFlow, OriginalRedirect]),
        );
        let out = packet.clone().dst(LOCAL_AT);
        cases.push(
            case(
                format!("an outside client keeps its address towards a local backend ({name})"),
                &["S-097", "P-4"],
                packet,
            )
            .ingress(UPLINK)
            .passed(out, &[NewFlow, OriginalStack]),
        );
    }
    let lost = syn(POD_AT, VIP);
    cases.push(
        case(
            "where the stack forwards, the stack finds no route",
            &["P-1"],
            lost.clone(),
        )
        .world(with_backend(Role::LostBackend))
        .passed(
            lost.dst((Role::LostBackend, TARGET)),
            &[NewFlow, OriginalStack],
        ),
    );
    cases
}

fn node_port() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, packet) in first_packets(CLIENT_AT, NODE_AT) {
        let case = |text: &str, rules| case(format!("{text} ({name})"), rules, packet.clone());
        let kept = packet.clone().dst(LOCAL_AT);
        cases.push(
            case(
                "NodePort, local backend: the client's address is kept",
                &["S-091", "P-4"],
            )
            .ingress(UPLINK)
            .passed(kept, &[NewFlow, OriginalStack]),
        );
        let out = packet.clone().src(SNAT_LOCAL_AT).dst(LOCAL_AT);
        cases.push(
            case(
                "NodePort, local backend, masquerade always",
                &["S-091", "S-095"],
            )
            .ingress(UPLINK)
            .world(with_flags(MASQUERADE_ALWAYS, Role::LocalBackend))
            .redirected(LOCAL, out, &[NewFlow, OriginalRedirect]),
        );
        let out = packet.clone().src(SNAT_AT).dst(REMOTE_AT);
        cases.push(
            case(
                "NodePort, remote backend: SNAT and redirect",
                &["S-091", "P-2"],
            )
            .ingress(UPLINK)
            .world(with_backend(Role::RemoteBackend))
            .redirected(UPLINK, out, &[NewFlow, OriginalRedirect]),
        );
        let backend = (Role::OverlayBackend, TARGET);
        let out = packet
            .clone()
            .src((Role::OverlayGateway, SNAT_PORT))
            .dst(backend);
        cases.push(
            case(
                "NodePort, backend over vxlan: the vxlan device's address",
                &["S-095", "P-2"],
            )
            .ingress(UPLINK)
            .world(with_backend(Role::OverlayBackend))
            .redirected(OVERLAY, out, &[NewFlow, OriginalRedirect])
            .leaves(&[over_vxlan(&packet)]),
        );
        let out = packet.clone().dst((Role::Node, TARGET));
        cases.push(
            case(
                "NodePort, backend in the host's network: no SNAT",
                &["S-096"],
            )
            .ingress(UPLINK)
            .world(with_backend(Role::Node))
            .passed(out, &[NewFlow, OriginalStack]),
        );
    }
    cases
}

/// The flow that a client's packet to the NodePort begins, to a backend over vxlan.
fn over_vxlan(packet: &PacketSpec) -> Flow {
    let source = (Role::OverlayGateway, SNAT_PORT);
    let backend = (Role::OverlayBackend, TARGET);
    let flow = snat(CLIENT_AT, NODE_AT, source, backend, [OVERLAY, UPLINK]);
    Flow {
        protocol: packet.protocol::<V4>(),
        ..flow.unanswered()
    }
}

fn node_port_known() -> Vec<Case> {
    let mut cases = Vec::new();
    let reply = tcp(REMOTE_AT, SNAT_AT, ACK);
    cases.push(
        case(
            "a remote backend's reply goes back to the client",
            &["P-2", "P-3"],
            reply.clone(),
        )
        .ingress(UPLINK)
        .flow(snat(
            CLIENT_AT,
            NODE_AT,
            SNAT_AT,
            REMOTE_AT,
            [UPLINK, UPLINK],
        ))
        .redirected(UPLINK, reply.src(NODE_AT).dst(CLIENT_AT), &[ReplyRedirect]),
    );
    let reply = tcp(LOCAL_AT, CLIENT_AT, ACK);
    cases.push(
        case(
            "a local backend's reply shows the NodePort",
            &["P-1", "P-4"],
            reply.clone(),
        )
        .egress(UPLINK)
        .flow(stack(CLIENT_AT, NODE_AT, LOCAL_AT))
        .passed(reply.src(NODE_AT), &[ReplyStack]),
    );
    let dark = (Role::DarkClient, CLIENT_PORT);
    let packet = syn(dark, NODE_AT);
    let out = packet.clone().src(SNAT_LOCAL_AT).dst(LOCAL_AT);
    cases.push(
        case(
            "SNAT where the reply would leave past our programs",
            &["P-4"],
            packet,
        )
        .ingress(UPLINK)
        .redirected(LOCAL, out, &[NewFlow, OriginalRedirect]),
    );
    cases
}

fn masquerade() -> Vec<Case> {
    let packet = syn(POD_AT, VIP);
    let out = packet.clone().src(SNAT_AT).dst(REMOTE_AT);
    let all = case("masqueradeAll hides a pod", &["S-091", "S-092"], packet)
        .world(with_flags(MASQUERADE_ALL, Role::RemoteBackend))
        .redirected(UPLINK, out, &[NewFlow, OriginalRedirect]);
    let packet = syn(CLIENT_AT, VIP);
    let out = packet.clone().dst(REMOTE_AT);
    let world = World {
        detector: Detector::None,
        ..with_backend(Role::RemoteBackend)
    };
    let none = case(
        "without a detector a ClusterIP is never masqueraded",
        &["S-091"],
        packet,
    )
    .ingress(UPLINK)
    .world(world.clone())
    .passed(out, &[NewFlow, OriginalStack]);
    let packet = syn((Role::DarkClient, CLIENT_PORT), VIP);
    let out = packet.clone().dst(REMOTE_AT);
    let unseen = case(
        "nor where answers leave past our programs: they are another node's",
        &["S-091", "P-4"],
        packet,
    )
    .ingress(UPLINK)
    .world(world)
    .passed(out, &[NewFlow, OriginalStack]);
    let packet = syn(POD_AT, NODE_AT);
    let out = packet.clone().src(SNAT_LOCAL_AT).dst(LOCAL_AT);
    let pod = case(
        "a pod is masqueraded towards a NodePort",
        &["S-080", "S-091"],
        packet,
    )
    .redirected(LOCAL, out, &[NewFlow, OriginalRedirect]);
    vec![all, none, unseen, pod]
}

fn local_policy_without_detector() -> Vec<Case> {
    let world = World {
        detector: Detector::None,
        frontend_flags: HAS_ENDPOINTS | LOCAL_POLICY,
        ..with_backend(Role::RemoteBackend)
    };
    vec![
        case(
            "Local policy without a detector: nobody is a pod",
            &["S-081", "S-083"],
            syn(POD_AT, NODE_AT),
        )
        .world(world)
        .dropped(NoLocalEndpoint),
    ]
}

fn local_policy() -> Vec<Case> {
    let world = |backend| World {
        frontend_flags: HAS_ENDPOINTS | LOCAL_POLICY,
        ..with_backend(backend)
    };
    let outside = syn(CLIENT_AT, NODE_AT);
    let dark = syn((Role::DarkClient, CLIENT_PORT), NODE_AT);
    let pod = syn(POD_AT, NODE_AT);
    let always = World {
        config_flags: MASQUERADE_ALWAYS,
        ..world(Role::LocalBackend)
    };
    let inside = syn(POD_AT, VIP);
    vec![
        case(
            "Local policy without a local endpoint drops",
            &["S-081", "S-107"],
            outside.clone(),
        )
        .ingress(UPLINK)
        .world(world(Role::RemoteBackend))
        .dropped(NoLocalEndpoint),
        case(
            "Local policy keeps the client's address",
            &["S-081"],
            outside.clone(),
        )
        .ingress(UPLINK)
        .world(always.clone())
        .passed(outside.dst(LOCAL_AT), &[NewFlow, OriginalStack]),
        case(
            "Local policy, but the reply would leave past our programs",
            &["P-4"],
            dark.clone(),
        )
        .ingress(UPLINK)
        .world(world(Role::LocalBackend))
        .redirected(
            LOCAL,
            dark.clone().src(SNAT_LOCAL_AT).dst(LOCAL_AT),
            &[NewFlow, OriginalRedirect],
        ),
        case(
            "the same as kube-proxy does it",
            &["P-4", "S-081"],
            dark.clone(),
        )
        .ingress(UPLINK)
        .world(always.clone())
        .passed(dark.dst(LOCAL_AT), &[NewFlow, OriginalStack]),
        case(
            "Local policy: a pod uses all endpoints, without SNAT",
            &["S-081"],
            pod.clone(),
        )
        .world(world(Role::RemoteBackend))
        .passed(pod.dst(REMOTE_AT), &[NewFlow, OriginalStack]),
        case(
            "internal Local policy without a local endpoint drops",
            &["S-026", "S-106"],
            inside,
        )
        .world(world(Role::RemoteBackend))
        .dropped(NoLocalEndpoint),
    ]
}
