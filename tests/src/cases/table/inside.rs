//! New flows and their replies that begin on this node and may end there: processes of the node,
//! backends that reach themselves, pods on one bridge.

use proxy_common::Counter::*;
use proxy_common::flow::path;

use super::super::flows::{by, snat, stack};
use super::super::packets::{ACK, SYN, tcp};
use super::super::{case, flows};
use super::*;

pub fn cases() -> Vec<Case> {
    [host_process(), hairpin(), bridge()].concat()
}

fn host_process() -> Vec<Case> {
    let process = (Role::Node, CLIENT_PORT);
    let mut cases = Vec::new();
    for (name, packet) in first_packets(process, VIP) {
        let out = packet.clone().src(SNAT_LOCAL_AT).dst(LOCAL_AT);
        cases.push(
            case(
                format!("a process of the node reaches a local backend over {name}"),
                &["S-207", "P-8"],
                packet.clone(),
            )
            .egress(UPLINK)
            .ends(
                Verdict::Redirect(LOCAL),
                Out::Packet(out),
                &[NewFlow, OriginalRedirect],
            ),
        );
        let out = packet.clone().dst(REMOTE_AT);
        cases.push(
            case(
                format!("a process of the node reaches a remote backend over {name}"),
                &["S-207", "P-8"],
                packet,
            )
            .egress(UPLINK)
            .world(with_backend(Role::RemoteBackend))
            .ends(
                Verdict::Redirect(UPLINK),
                Out::Packet(out),
                &[NewFlow, OriginalRedirect],
            ),
        );
    }
    let flow = flows::Flow {
        path: by(path::EGRESS_NEIGH, LOCAL),
        reply_path: by(path::INGRESS_LOCAL, UPLINK),
        ..snat(process, VIP, SNAT_LOCAL_AT, LOCAL_AT, [LOCAL, UPLINK])
    };
    let reply = tcp(LOCAL_AT, SNAT_LOCAL_AT, SYN | ACK);
    cases.push(
        case(
            "a process of the node gets the reply on the uplink",
            &["P-8"],
            reply.clone(),
        )
        .ingress(LOCAL)
        .flow(flow)
        .ends(
            Verdict::Deliver(UPLINK),
            Out::Packet(reply.src(VIP).dst(process)),
            &[ReplyLocal],
        ),
    );
    cases.push(
        case(
            "a process of the node to its own host: the socket hooks' alone",
            &["P-8"],
            syn(process, VIP),
        )
        .egress(UPLINK)
        .world(with_backend(Role::Node))
        .left_alone(HostOwnAddress),
    );
    cases
}

fn hairpin() -> Vec<Case> {
    let client = (Role::LocalBackend, CLIENT_PORT);
    let mut cases = Vec::new();
    for (name, packet) in first_packets(client, VIP) {
        let out = packet.clone().src(SNAT_LOCAL_AT).dst(LOCAL_AT);
        cases.push(
            case(
                format!("a backend reaches itself over {name}"),
                &["S-091", "S-094", "P-7"],
                packet,
            )
            .ingress(LOCAL)
            .redirected(LOCAL, out, &[NewFlow, OriginalRedirect]),
        );
    }
    let reply = tcp(LOCAL_AT, SNAT_LOCAL_AT, ACK);
    cases.push(
        case(
            "a backend's answer to itself shows the ClusterIP",
            &["S-094", "P-7"],
            reply.clone(),
        )
        .ingress(LOCAL)
        .flow(snat(client, VIP, SNAT_LOCAL_AT, LOCAL_AT, [LOCAL, LOCAL]))
        .redirected(LOCAL, reply.src(VIP).dst(client), &[ReplyRedirect]),
    );
    cases
}

fn bridge() -> Vec<Case> {
    let client = (Role::BridgedPod, CLIENT_PORT);
    let backend = (Role::BridgedBackend, TARGET);
    let mut cases = Vec::new();
    for (name, packet) in first_packets(client, VIP) {
        cases.push(
            case(
                format!("client and backend on one bridge over {name}"),
                &["P-6"],
                packet.clone(),
            )
            .ingress(BRIDGE_POD)
            .world(with_backend(Role::BridgedBackend))
            .redirected(
                BRIDGE,
                packet.clone().dst(backend),
                &[NewFlow, OriginalRedirect],
            ),
        );
        cases.push(
            case(
                format!("a client on a bridge, the backend elsewhere, over {name}"),
                &["P-6"],
                packet.clone(),
            )
            .ingress(BRIDGE_POD)
            .world(with_backend(Role::RemoteBackend))
            .passed(packet.dst(REMOTE_AT), &[NewFlow, OriginalStack]),
        );
    }
    let flow = flows::Flow {
        path: by(path::INGRESS_NEIGH, BRIDGE),
        reply_path: by(path::INGRESS_NEIGH, BRIDGE),
        ..stack(client, VIP, backend)
    };
    let reply = tcp(backend, client, ACK);
    cases.push(
        case(
            "a reply on the bridge is undone at the backend's port",
            &["P-6"],
            reply.clone(),
        )
        .ingress(BRIDGE_BACKEND)
        .flow(flow)
        .redirected(BRIDGE, reply.src(VIP), &[ReplyRedirect]),
    );
    cases
}
