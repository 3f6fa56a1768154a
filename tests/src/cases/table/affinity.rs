//! Session affinity (section 8): who stays, who is bound anew, and to what.

use proxy_common::BackendState;
use proxy_common::Counter::*;
use proxy_common::frontend::flags::{HAS_ENDPOINTS, LOCAL_POLICY};
use proxy_common::protocol;

use super::super::case;
use super::super::packets::*;
use super::*;

/// The Service's affinity timeout.
const SECS: u32 = 100;

pub fn cases() -> Vec<Case> {
    [
        starts(),
        window(),
        validity(),
        returns(),
        protocols(),
        sets(),
        node(),
    ]
    .concat()
}

/// A Service with affinity, a local and a remote backend, and these bindings.
fn world(bindings: &[Binding]) -> World {
    World {
        backends: vec![backend(Role::LocalBackend), backend(Role::RemoteBackend)],
        affinity_secs: SECS,
        bindings: bindings.to_vec(),
        ..World::default()
    }
}

/// A pod's SYN to the ClusterIP, and where it goes: `position` of the world's backends.
fn goes(name: &str, rules: &'static [&'static str], world: World, position: usize) -> Case {
    let packet = syn(POD_AT, VIP);
    let to = (world.backends[position].role, TARGET);
    case(name, rules, packet.clone())
        .world(world)
        .passed(packet.dst(to), &[NewFlow, OriginalStack])
}

fn starts() -> Vec<Case> {
    let only = World {
        backends: vec![backend(Role::RemoteBackend)],
        ..world(&[])
    };
    let off = World {
        affinity_secs: 0,
        backends: vec![backend(Role::RemoteBackend)],
        ..World::default()
    };
    vec![
        goes("the first flow binds a client", &["S-101"], only, 0).binds(&[binding(Role::Pod, 0)]),
        goes("without affinity nobody is bound", &["S-103"], off, 0).binds(&[]),
        goes(
            "a client stays with the first of two backends",
            &["S-101"],
            world(&[binding(Role::Pod, 0)]),
            0,
        )
        .binds(&[binding(Role::Pod, 0)]),
        goes(
            "a client stays with the second of two backends",
            &["S-101"],
            world(&[binding(Role::Pod, 1)]),
            1,
        )
        .binds(&[binding(Role::Pod, 1)]),
    ]
}

fn window() -> Vec<Case> {
    let idle = |position, idle_secs| Binding {
        idle_secs,
        ..binding(Role::Pod, position)
    };
    let only = |idle_secs| World {
        backends: vec![backend(Role::LocalBackend)],
        bindings: vec![idle(1, idle_secs)],
        ..world(&[])
    };
    let shorter = World {
        affinity_secs: SECS / 2,
        ..only(SECS - 1)
    };
    let data = tcp(POD_AT, VIP, ACK);
    vec![
        goes(
            "a flow before the timeout starts the window again",
            &["S-102"],
            world(&[idle(1, SECS)]),
            1,
        )
        .binds(&[binding(Role::Pod, 1)]),
        goes(
            "a binding past its timeout is no longer one",
            &["S-102"],
            only(SECS + 1),
            0,
        )
        .binds(&[binding(Role::Pod, 0)]),
        goes("a shorter timeout holds at once", &["S-103"], shorter, 0)
            .binds(&[binding(Role::Pod, 0)]),
        case(
            "packets of a flow do not start the window again",
            &["S-102"],
            data.clone(),
        )
        .world(world(&[idle(0, 7)]))
        .flow(super::super::flows::stack(POD_AT, VIP, LOCAL_AT))
        .passed(data.dst(LOCAL_AT), &[OriginalStack])
        .binds(&[idle(0, 7)]),
    ]
}

/// One usable backend in slot 0; the client is bound to what stands in position 1.
fn bound_elsewhere(second: BackendSpec, binding: Binding) -> World {
    World {
        backends: vec![backend(Role::LocalBackend), second],
        ..world(&[binding])
    }
}

fn validity() -> Vec<Case> {
    let out = BackendSpec {
        in_cluster: Membership::Out,
        ..backend(Role::RemoteBackend)
    };
    let with = |state: BackendState| BackendSpec {
        state: state as u8,
        ..out
    };
    let bound = binding(Role::Pod, 1);
    let other_generation = Binding {
        generation: GENERATION - 1,
        ..bound
    };
    let cases = [
        ("a backend outside of the set binds nobody", out, bound),
        (
            "a binding to a freed backend is forgotten",
            with(BackendState::Free),
            bound,
        ),
        (
            "a binding to an unready backend is forgotten",
            with(BackendState::Quarantined),
            bound,
        ),
        (
            "a binding to a backend id's earlier use is forgotten",
            out,
            other_generation,
        ),
    ];
    let anew = |(name, second, bound)| {
        goes(name, &["S-103"], bound_elsewhere(second, bound), 0).binds(&[binding(Role::Pod, 0)])
    };
    cases.into_iter().map(anew).collect()
}

fn returns() -> Vec<Case> {
    let back = BackendSpec {
        departures: 3,
        ..backend(Role::LocalBackend)
    };
    let returned = World {
        backends: vec![back],
        ..world(&[Binding {
            departures: 2,
            idle_secs: 9,
            ..binding(Role::Pod, 0)
        }])
    };
    let anew = Binding {
        departures: 3,
        ..binding(Role::Pod, 0)
    };
    let stays = World {
        bindings: vec![anew],
        ..returned.clone()
    };
    let lost = "a backend that left and came back has lost its clients";
    let kept = "who came after its return stays with it";
    vec![
        goes(lost, &["S-103"], returned, 0).binds(&[anew]),
        goes(kept, &["S-103"], stays, 0).binds(&[anew]),
    ]
}

fn protocols() -> Vec<Case> {
    let udp_binding = |position| Binding {
        protocol: protocol::UDP,
        ..binding(Role::Pod, position)
    };
    let mut cases = Vec::new();
    for position in [0, 1] {
        let packet = udp(POD_AT, VIP);
        let world = world(&[udp_binding(position)]);
        let to = (world.backends[position].role, TARGET);
        cases.push(
            case(
                format!("affinity over UDP to backend {position}"),
                &["S-101", "S-103"],
                packet.clone(),
            )
            .world(world)
            .passed(packet.dst(to), &[NewFlow, OriginalStack])
            .binds(&[udp_binding(position)]),
        );
    }
    // Another service port, another binding.
    let tcp_only = World {
        backends: vec![backend(Role::RemoteBackend)],
        ..world(&[])
    };
    let packet = udp(POD_AT, VIP);
    cases.push(
        case(
            "each service port binds for itself",
            &["S-020", "S-101"],
            packet.clone(),
        )
        .world(World {
            bindings: vec![binding(Role::Pod, 0)],
            ..tcp_only
        })
        .passed(packet.dst(REMOTE_AT), &[NewFlow, OriginalStack])
        .binds(&[binding(Role::Pod, 0), udp_binding(0)]),
    );
    // A load balancer's address shares the ClusterIP's bindings.
    let packet = syn(POD_AT, (Role::Vip, PORT));
    for position in [0, 1] {
        let world = world(&[binding(Role::Pod, position)]);
        let to = (world.backends[position].role, TARGET);
        let source = [SNAT_LOCAL_AT, SNAT_AT][position];
        let out = packet.clone().src(source).dst(to);
        let interface = [LOCAL, UPLINK][position];
        cases.push(
            case(
                format!("the load balancer's address leads to backend {position} as well"),
                &["S-101"],
                packet.clone(),
            )
            .world(world)
            .redirected(interface, out, &[NewFlow, OriginalRedirect]),
        );
    }
    cases
}

fn sets() -> Vec<Case> {
    let packet = syn(CLIENT_AT, NODE_AT);
    let world = World {
        frontend_flags: HAS_ENDPOINTS | LOCAL_POLICY,
        ..world(&[binding(Role::Client, 1)])
    };
    vec![
        case(
            "bound to a remote backend, then by eTP Local: a local one",
            &["S-103"],
            packet.clone(),
        )
        .ingress(UPLINK)
        .world(world)
        .passed(packet.dst(LOCAL_AT), &[NewFlow, OriginalStack])
        .binds(&[binding(Role::Client, 0)]),
    ]
}

fn node() -> Vec<Case> {
    let process = (Role::Node, CLIENT_PORT);
    let packet = syn(process, VIP);
    let bound = |position| World {
        backends: vec![backend(Role::Node), backend(Role::RemoteBackend)],
        ..world(&[binding(Role::Node, position)])
    };
    [0, 1]
        .map(|position| {
            case(
                format!(
                    "a process of the node bound to backend {position}, the first its own host"
                ),
                &["P-8", "S-101", "S-103"],
                packet.clone(),
            )
            .egress(UPLINK)
            .world(bound(position))
            .ends(
                Verdict::Redirect(UPLINK),
                Out::Packet(packet.clone().dst(REMOTE_AT)),
                &[NewFlow, OriginalRedirect],
            )
            .binds(&[binding(Role::Node, 1)])
        })
        .into()
}
