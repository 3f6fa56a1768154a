//! What is refused, dropped or none of ours.

use proxy_common::BackendState;
use proxy_common::Counter::*;
use proxy_common::config::flags::KEEP_UNALLOCATED;
use proxy_common::frontend::flags::{ADOPTS, HAS_ENDPOINTS, LOCAL_POLICY, SOURCE_RANGES_NODE};

use super::super::case;
use super::super::packets::*;
use super::*;

pub fn cases() -> Vec<Case> {
    [
        no_endpoints(),
        service_range(),
        admission(),
        limited(),
        limited_flows(),
        source_ranges(),
        source_ranges_without_endpoints(),
        adopted(),
        shared_ports(),
        foreign(),
        backends(),
    ]
    .concat()
}

fn no_endpoints() -> Vec<Case> {
    let world = World {
        backends: Vec::new(),
        frontend_flags: 0,
        ..World::default()
    };
    let mut cases = Vec::new();
    for (name, client, dialed, ifindex) in [
        ("ClusterIP", POD_AT, VIP, POD),
        ("NodePort", CLIENT_AT, NODE_AT, UPLINK),
    ] {
        let asked = syn(client, dialed);
        cases.push(
            case(
                format!("{name} without endpoints: a reset answers a SYN"),
                &["S-104", "S-105"],
                asked.clone(),
            )
            .ingress(ifindex)
            .world(world.clone())
            .answered(reset_of(&asked), RejectNoEndpoint),
        );
        let asked = udp(client, dialed);
        cases.push(
            case(
                format!("{name} without endpoints: port unreachable answers UDP"),
                &["S-104", "S-105"],
                asked.clone(),
            )
            .ingress(ifindex)
            .world(world.clone())
            .answered(error_of(&asked, IcmpKind::Refused), RejectNoEndpoint),
        );
    }
    let asked = syn((Role::Node, CLIENT_PORT), VIP);
    cases.push(
        case(
            "a process of the node is refused by the frontend",
            &["P-8", "S-105"],
            asked.clone(),
        )
        .egress(UPLINK)
        .world(world.clone())
        .answered(reset_of(&asked), RejectNoEndpoint),
    );
    let asked = syn((Role::Multicast, CLIENT_PORT), VIP);
    cases.push(
        case("a multicast source is never answered", &["S-104"], asked)
            .world(world)
            .dropped(AnswerSuppressed),
    );
    cases
}

fn service_range() -> Vec<Case> {
    let unknown = (Role::ClusterIp, 81);
    let asked = syn(POD_AT, unknown);
    let datagram = udp(POD_AT, unknown);
    let ping = echo((Role::Pod, 0), (Role::ClusterIp, 0));
    let unallocated = syn(POD_AT, (Role::Unallocated, PORT));
    let kept = World {
        config_flags: KEEP_UNALLOCATED,
        ..World::default()
    };
    let other = syn(POD_AT, unknown);
    let reset = tcp(POD_AT, unknown, RST);
    let outside = syn(POD_AT, (Role::OtherClusterIp, 4444));
    let ping_outside = echo((Role::Pod, 0), (Role::OtherClusterIp, 0));
    vec![
        case(
            "an unknown port of a ClusterIP is refused",
            &["S-077"],
            asked.clone(),
        )
        .answered(reset_of(&asked), RejectClusterIp),
        case(
            "an unknown UDP port of a ClusterIP is refused",
            &["S-077"],
            datagram.clone(),
        )
        .answered(error_of(&datagram, IcmpKind::Refused), RejectClusterIp),
        case(
            "a ping of a ClusterIP is refused",
            &["S-077", "S-135", "W-7"],
            ping.clone(),
        )
        .answered(error_of(&ping, IcmpKind::Refused), RejectClusterIp),
        case("a reset is never answered", &["S-104"], reset).dropped(AnswerSuppressed),
        case(
            "an unknown port of a ClusterIP outside of the ServiceCIDRs is refused",
            &["S-077", "S-079"],
            outside.clone(),
        )
        .answered(reset_of(&outside), RejectClusterIp),
        case(
            "a ping of a ClusterIP outside of the ServiceCIDRs is refused",
            &["S-077", "S-079"],
            ping_outside.clone(),
        )
        .answered(error_of(&ping_outside, IcmpKind::Refused), RejectClusterIp),
        case(
            "an unallocated service address is dropped",
            &["S-078"],
            unallocated.clone(),
        )
        .dropped(Unallocated),
        case(
            "unallocated addresses can be left alone",
            &["S-078"],
            unallocated,
        )
        .world(kept)
        .left_alone(NotFrontend),
        case("an inactive ClusterIP is unallocated", &["S-078"], other)
            .world(World {
                cluster_ip: 0,
                ..World::default()
            })
            .dropped(Unallocated),
    ]
}

fn admission() -> Vec<Case> {
    let ranged = |role| World {
        source_ranges: vec![role],
        ..World::default()
    };
    let outside = syn(CLIENT_AT, NODE_AT);
    let mid_stream = tcp(POD_AT, VIP, ACK);
    let reset = tcp(POD_AT, VIP, RST);
    let datagram = udp(CLIENT_AT, NODE_AT);
    vec![
        case(
            "a SYN to a socket of this node that is connecting itself is not a flow",
            &["S-119e"],
            outside.clone(),
        )
        .ingress(UPLINK)
        .world(World {
            sockets: vec![(NODE_AT, CLIENT_AT, proxy_common::protocol::TCP)],
            ..World::default()
        })
        .left_alone(SocketOwner),
        case(
            "a source inside the source ranges is served",
            &["S-113"],
            outside.clone(),
        )
        .ingress(UPLINK)
        .world(ranged(Role::Client))
        .passed(outside.clone().dst(LOCAL_AT), &[NewFlow, OriginalStack]),
        case(
            "a source outside of the source ranges is dropped",
            &["S-113"],
            outside,
        )
        .ingress(UPLINK)
        .world(ranged(Role::Foreign))
        .dropped(SourceRange),
        case(
            "TCP without a flow to a ClusterIP is reset",
            &["S-214"],
            mid_stream.clone(),
        )
        .answered(reset_of(&mid_stream), RejectMidStream),
        case(
            "a reset without a flow is dropped",
            &["S-104", "S-214"],
            reset,
        )
        .dropped(RejectMidStream),
        case(
            "a NodePort number alone does not make a flow",
            &["S-119e"],
            tcp(CLIENT_AT, NODE_AT, ACK),
        )
        .ingress(UPLINK)
        .left_alone(NotFlowStart),
        case(
            "an answer to a socket of this node is not a flow",
            &["S-119e"],
            datagram,
        )
        .ingress(UPLINK)
        .world(World {
            sockets: vec![(NODE_AT, CLIENT_AT, proxy_common::protocol::UDP)],
            ..World::default()
        })
        .left_alone(SocketOwner),
    ]
}

/// The limit of answers, which the clock of the runs never gives back.
fn limited() -> Vec<Case> {
    let unknown = syn(POD_AT, (Role::ClusterIp, 81));
    let world = |answers_given| World {
        answers_per_sec: 3,
        answers_given,
        ..World::default()
    };
    vec![
        case(
            "the last answer that the limit allows",
            &["S-104"],
            unknown.clone(),
        )
        .world(world(2))
        .answered(reset_of(&unknown), RejectClusterIp),
        case("one answer more than the limit", &["S-104"], unknown)
            .world(world(3))
            .dropped(AnswerLimited),
    ]
}

/// The limit of new flows, likewise.
fn limited_flows() -> Vec<Case> {
    let dialed = syn(POD_AT, (Role::ClusterIp, PORT));
    let world = |new_flows_begun| World {
        new_flows_per_sec: 3,
        new_flows_begun,
        ..World::default()
    };
    vec![
        case("one new flow more than the limit", &["S-215"], dialed)
            .world(world(3))
            .dropped(NewFlowLimited),
    ]
}

/// `loadBalancerSourceRanges` at the load balancer's address.
fn source_ranges() -> Vec<Case> {
    let dialed = (Role::Vip, PORT);
    let world = |flags, ranges: &[Role]| World {
        frontend_flags: HAS_ENDPOINTS | flags,
        source_ranges: ranges.to_vec(),
        ..World::default()
    };
    let by_itself = |source| syn((source, CLIENT_PORT), dialed);
    let out = by_itself(Role::Vip).src((Role::PodGateway, SNAT_PORT));
    let pod = syn(POD_AT, dialed);
    vec![
        case(
            "this node with the load balancer's address, its primary one allowed",
            &["S-114"],
            by_itself(Role::Vip),
        )
        .egress(UPLINK)
        .world(world(SOURCE_RANGES_NODE, &[Role::Node]))
        .ends(
            Verdict::Redirect(LOCAL),
            Out::Packet(out.dst(LOCAL_AT)),
            &[NewFlow, OriginalRedirect],
        ),
        case(
            "this node with the load balancer's address, its primary one not allowed",
            &["S-114"],
            by_itself(Role::Vip),
        )
        .egress(UPLINK)
        .world(world(0, &[Role::Client]))
        .dropped(SourceRange),
        case(
            "another own address is not the load balancer's",
            &["S-114"],
            by_itself(Role::PodGateway),
        )
        .egress(UPLINK)
        .world(world(SOURCE_RANGES_NODE, &[Role::Node]))
        .dropped(SourceRange),
        case(
            "the Service's ClusterIP is not the load balancer's address",
            &["S-114"],
            by_itself(Role::ClusterIp),
        )
        .world(world(SOURCE_RANGES_NODE, &[Role::Node]))
        .dropped(SourceRange),
        case(
            "a pod outside of the source ranges is dropped",
            &["S-113", "S-117"],
            pod,
        )
        .world(world(LOCAL_POLICY, &[Role::Client]))
        .dropped(SourceRange),
    ]
}

fn source_ranges_without_endpoints() -> Vec<Case> {
    let pod = syn(POD_AT, (Role::Vip, PORT));
    let world = |allowed| World {
        backends: Vec::new(),
        frontend_flags: 0,
        source_ranges: vec![allowed],
        ..World::default()
    };
    let (out, inside) = (
        "an excluded source is dropped also without endpoints",
        "an allowed source is refused without endpoints",
    );
    vec![
        case(out, &["S-116"], pod.clone())
            .world(world(Role::Client))
            .dropped(SourceRange),
        case(inside, &["S-116"], pod.clone())
            .world(world(Role::Pod))
            .answered(reset_of(&pod), RejectNoEndpoint),
    ]
}

/// A lookup table leads to the backend that a forgotten connection had.
fn adopted() -> Vec<Case> {
    let balanced = (Role::Vip, PORT);
    let world = || World {
        frontend_flags: HAS_ENDPOINTS | ADOPTS,
        ..World::default()
    };
    let data = tcp(CLIENT_AT, balanced, ACK).len(700);
    let answer = tcp(CLIENT_AT, balanced, SYN | ACK);
    vec![
        case(
            "Maglev: TCP without a flow goes on with the backend of the table",
            &["S-120"],
            data.clone(),
        )
        .ingress(UPLINK)
        .world(world())
        .passed(data.dst(LOCAL_AT), &[NewFlow, OriginalStack]),
        case(
            "Maglev: an answer to nobody is reset",
            &["S-214"],
            answer.clone(),
        )
        .ingress(UPLINK)
        .world(world())
        .answered(reset_of(&answer), RejectMidStream),
        case(
            "Maglev: a reset without a flow is dropped",
            &["S-104", "S-214"],
            tcp(CLIENT_AT, balanced, RST | ACK),
        )
        .ingress(UPLINK)
        .world(world())
        .dropped(RejectMidStream),
    ]
}

/// Ports that frontends or backends have, beside addresses that they have or have not.
fn shared_ports() -> Vec<Case> {
    let (here, there) = ((Role::Foreign, 4000), (Role::Client, 5000));
    vec![
        case(
            "a foreign packet to a known port number",
            &["P-14"],
            syn(here, (Role::Client, PORT)),
        )
        .left_alone(Foreign),
        case(
            "a packet to the number of a frontend's port at a backend's address",
            &["P-14"],
            syn(here, (Role::LocalBackend, PORT)),
        )
        .left_alone(NotFrontend),
        case(
            "a foreign packet from a backend's port number",
            &["P-14"],
            syn((Role::Foreign, TARGET), there),
        )
        .left_alone(Foreign),
        case(
            "a foreign packet from a known port number",
            &["P-14"],
            syn(LOCAL_AT, there),
        )
        .left_alone(NotFrontend),
    ]
}

fn foreign() -> Vec<Case> {
    let (here, there) = ((Role::Foreign, 4000), (Role::Client, 5000));
    let unconfigured = World {
        is_configured: Configured::No,
        ..World::default()
    };
    let marked = |name| Case {
        mark: MARK,
        ..case(name, &["P-3", "S-098"], syn(POD_AT, VIP)).left_alone(Redirected)
    };
    vec![
        marked("a redirected packet passes, its mark cleared"),
        marked("a redirected packet enters the overlay without a mark").egress(OVERLAY),
        case(
            "what the overlay has wrapped it in is nobody's flow",
            &["S-098"],
            udp((Role::Node, 50_000), (Role::Router, 8472)),
        )
        .egress(UPLINK)
        .left_alone(Foreign),
        case("a foreign TCP packet", &["P-14"], syn(here, there)).left_alone(Foreign),
        case("a foreign UDP packet", &["P-14"], udp(here, there)).left_alone(Foreign),
        case("a foreign SCTP packet", &["P-14"], sctp(here, there)).left_alone(Foreign),
        case(
            "a foreign ping",
            &["P-14"],
            echo((Role::Foreign, 0), (Role::Client, 0)),
        )
        .left_alone(NoPorts),
        case(
            "a NodePort on an address that serves none",
            &["S-119b"],
            syn(CLIENT_AT, (Role::PodGateway, NODE_PORT)),
        )
        .ingress(UPLINK)
        .left_alone(NotFrontend),
        case(
            "another node's NodePort is left alone",
            &["S-084"],
            syn(POD_AT, (Role::Router, NODE_PORT)),
        )
        .left_alone(Foreign),
        case(
            "a forwarded packet starts no flow when it leaves",
            &["P-1"],
            syn(POD_AT, VIP),
        )
        .egress(UPLINK)
        .left_alone(NotFrontend),
        case(
            "before the agent has written its configuration",
            &["S-007"],
            syn(POD_AT, VIP),
        )
        .world(unconfigured)
        .left_alone(Unconfigured),
    ]
}

fn backends() -> Vec<Case> {
    let state = |state: BackendState| BackendSpec {
        state: state as u8,
        ..backend(Role::LocalBackend)
    };
    let world = |backends: &[BackendSpec]| World {
        backends: backends.to_vec(),
        ..World::default()
    };
    let packet = syn(POD_AT, VIP);
    let out = packet.clone().dst(LOCAL_AT);
    vec![
        case(
            "a terminating backend of the set is used",
            &["S-062", "S-065"],
            packet.clone(),
        )
        .world(world(&[state(BackendState::Terminating)]))
        .passed(out.clone(), &[NewFlow, OriginalStack]),
        case(
            "a slot whose backend was freed gives its turn to the next",
            &["S-216"],
            packet.clone(),
        )
        .world(world(&[
            state(BackendState::Free),
            state(BackendState::Active),
            state(BackendState::Free),
            state(BackendState::Active),
        ]))
        .passed(out, &[NewFlow, OriginalStack]),
        case("a set of freed backends drops", &["S-216"], packet)
            .world(world(&[state(BackendState::Free)]))
            .dropped(BackendGone),
        case(
            "no route to a backend that needs SNAT",
            &["P-2"],
            syn(CLIENT_AT, NODE_AT),
        )
        .ingress(UPLINK)
        .world(with_backend(Role::LostBackend))
        .dropped(NoRoute),
        case(
            "no address to masquerade with",
            &["S-095"],
            syn(CLIENT_AT, NODE_AT),
        )
        .ingress(UPLINK)
        .world(with_backend(Role::BareBackend))
        .dropped(NoSnatAddress),
    ]
}
