//! The table of S-091, row by row, under `--masquerade=needed` and `always`, and the detectors of
//! S-083 that decide who counts as a pod.

use proxy_common::Counter::*;
use proxy_common::config::flags::{MASQUERADE_ALL, MASQUERADE_ALWAYS};
use proxy_common::frontend::flags::{HAS_ENDPOINTS, LOCAL_POLICY};

use super::super::case;
use super::*;

/// What the backend sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// The client.
    Kept,
    /// This node.
    Masked,
}
use Source::*;

/// One row: who dials what, the backend that gets it, and its source under `needed` and `always`.
struct Row {
    text: &'static str,
    rules: &'static [&'static str],
    client: Role,
    dialed: At,
    backend: Role,
    needed: Source,
    always: Source,
}

const NODE_PORT_AT: At = NODE_AT;
const BALANCED: At = (Role::Vip, PORT);

const fn row(
    text: &'static str,
    rules: &'static [&'static str],
    (client, dialed, backend): (Role, At, Role),
    [needed, always]: [Source; 2],
) -> Row {
    Row {
        text,
        rules,
        client,
        dialed,
        backend,
        needed,
        always,
    }
}

const S091: &[&str] = &["S-091"];
const HAIRPIN: &[&str] = &["S-091", "S-094"];
const OWN_HOST: &[&str] = &["S-091", "S-096"];
const REMOTE: Role = Role::RemoteBackend;
const HERE: Role = Role::LocalBackend;

/// Rows with a detector, external policy Cluster.
const CLUSTER: [Row; 14] = [
    row(
        "a pod to a ClusterIP",
        S091,
        (Role::Pod, VIP, REMOTE),
        [Kept, Kept],
    ),
    row(
        "a pod to a ClusterIP, here",
        S091,
        (Role::Pod, VIP, HERE),
        [Kept, Kept],
    ),
    row(
        "a process to a ClusterIP",
        S091,
        (Role::Node, VIP, HERE),
        [Masked, Masked],
    ),
    row(
        "outside to a ClusterIP",
        S091,
        (Role::Client, VIP, REMOTE),
        [Masked, Masked],
    ),
    row(
        "outside to a ClusterIP, here",
        S091,
        (Role::Client, VIP, HERE),
        [Kept, Masked],
    ),
    row(
        "a pod to a NodePort",
        S091,
        (Role::Pod, NODE_PORT_AT, REMOTE),
        [Masked, Masked],
    ),
    row(
        "a pod to a NodePort, here",
        S091,
        (Role::Pod, NODE_PORT_AT, HERE),
        [Masked, Masked],
    ),
    row(
        "outside to a NodePort",
        S091,
        (Role::Client, NODE_PORT_AT, REMOTE),
        [Masked, Masked],
    ),
    row(
        "outside to a NodePort, here",
        S091,
        (Role::Client, NODE_PORT_AT, HERE),
        [Kept, Masked],
    ),
    row(
        "outside to a VIP",
        S091,
        (Role::Client, BALANCED, REMOTE),
        [Masked, Masked],
    ),
    row(
        "a backend to itself",
        HAIRPIN,
        (HERE, VIP, HERE),
        [Masked, Masked],
    ),
    row(
        "a backend to itself by NodePort",
        HAIRPIN,
        (HERE, NODE_PORT_AT, HERE),
        [Masked, Masked],
    ),
    row(
        "a backend to itself by VIP",
        HAIRPIN,
        (HERE, BALANCED, HERE),
        [Masked, Masked],
    ),
    row(
        "outside to this very host",
        OWN_HOST,
        (Role::Client, NODE_AT, Role::Node),
        [Kept, Kept],
    ),
];

const S081: &[&str] = &["S-081", "S-091"];
const S081_082: &[&str] = &["S-081", "S-082", "S-091"];

/// Rows with a detector, both policies Local.
const LOCAL_ROWS: [Row; 7] = [
    row(
        "a pod, Local",
        S081_082,
        (Role::Pod, NODE_PORT_AT, REMOTE),
        [Kept, Kept],
    ),
    row(
        "a pod, Local, here",
        S081,
        (Role::Pod, BALANCED, HERE),
        [Kept, Kept],
    ),
    row(
        "a process, Local",
        S081,
        (Role::Node, BALANCED, HERE),
        [Masked, Masked],
    ),
    row(
        "outside, Local",
        S081,
        (Role::Client, NODE_PORT_AT, HERE),
        [Kept, Kept],
    ),
    row(
        "outside to a VIP, Local",
        S081,
        (Role::Client, BALANCED, HERE),
        [Kept, Kept],
    ),
    row(
        "a backend to itself, Local",
        HAIRPIN,
        (HERE, BALANCED, HERE),
        [Masked, Masked],
    ),
    row(
        "a process to a ClusterIP, Local",
        &["S-093"],
        (Role::Node, VIP, HERE),
        [Masked, Masked],
    ),
];

/// Rows without a detector.
const UNDETECTED: [Row; 4] = [
    row(
        "nobody is a pod: ClusterIP",
        S091,
        (Role::Client, VIP, REMOTE),
        [Kept, Kept],
    ),
    row(
        "nobody is a pod: a process",
        S091,
        (Role::Node, VIP, HERE),
        [Kept, Kept],
    ),
    row(
        "nobody is a pod: NodePort",
        S091,
        (Role::Pod, NODE_PORT_AT, REMOTE),
        [Masked, Masked],
    ),
    row(
        "nobody is a pod: hairpin",
        HAIRPIN,
        (HERE, VIP, HERE),
        [Masked, Masked],
    ),
];

/// Rows under masqueradeAll.
const ALL: [Row; 4] = [
    row(
        "masqueradeAll, a pod",
        &["S-092"],
        (Role::Pod, VIP, REMOTE),
        [Masked, Masked],
    ),
    row(
        "masqueradeAll, here",
        &["S-092"],
        (Role::Pod, VIP, HERE),
        [Masked, Masked],
    ),
    row(
        "masqueradeAll, outside",
        &["S-092"],
        (Role::Client, VIP, HERE),
        [Masked, Masked],
    ),
    row(
        "masqueradeAll, NodePort",
        &["S-092"],
        (Role::Client, NODE_AT, HERE),
        [Kept, Masked],
    ),
];

/// Rows with ClusterCIDR, and with detection by interface: a pod of another node.
const BY_CIDR: [Row; 2] = [
    row(
        "by address, elsewhere",
        &["S-083"],
        (REMOTE, VIP, Role::OverlayBackend),
        [Kept, Kept],
    ),
    row(
        "by address, outside",
        &["S-083"],
        (Role::Client, VIP, REMOTE),
        [Masked, Masked],
    ),
];
const BY_INTERFACE: [Row; 4] = [
    row(
        "by interface, a pod",
        &["S-083"],
        (Role::Pod, VIP, REMOTE),
        [Kept, Kept],
    ),
    row(
        "by interface, elsewhere",
        &["S-083"],
        (REMOTE, VIP, REMOTE),
        [Masked, Masked],
    ),
    row(
        "by interface, outside",
        &["S-083"],
        (Role::Client, VIP, REMOTE),
        [Masked, Masked],
    ),
    row(
        "by interface, a process",
        &["S-083"],
        (Role::Node, VIP, HERE),
        [Masked, Masked],
    ),
];

pub fn cases() -> Vec<Case> {
    let cluster = World::default();
    let local = World {
        frontend_flags: HAS_ENDPOINTS | LOCAL_POLICY,
        ..World::default()
    };
    let detected_by = |detector| World {
        detector,
        ..World::default()
    };
    let all = World {
        config_flags: MASQUERADE_ALL,
        ..World::default()
    };
    let tables: [(&[Row], World); 6] = [
        (&CLUSTER, cluster.clone()),
        (&LOCAL_ROWS, local),
        (&UNDETECTED, detected_by(Detector::None)),
        (&ALL, all),
        (&BY_CIDR, cluster),
        (&BY_INTERFACE, detected_by(Detector::Interface)),
    ];
    let mut cases = Vec::new();
    for (rows, world) in tables {
        for row in rows {
            cases.push(row.case("needed", &world, 0, row.needed));
            cases.push(row.case("always", &world, MASQUERADE_ALWAYS, row.always));
        }
    }
    cases
}

impl Row {
    fn case(&self, mode: &str, world: &World, flags: u32, source: Source) -> Case {
        let world = World {
            config_flags: world.config_flags | flags,
            backends: vec![backend(self.backend)],
            ..world.clone()
        };
        let packet = syn((self.client, CLIENT_PORT), self.dialed);
        let out = packet.clone().dst((self.backend, TARGET));
        let (leaves_by, masked) = match self.backend {
            Role::LocalBackend => (LOCAL, SNAT_LOCAL_AT),
            Role::OverlayBackend => (OVERLAY, (Role::OverlayGateway, SNAT_PORT)),
            _ => (UPLINK, SNAT_AT),
        };
        let case = case(format!("{} ({mode})", self.text), self.rules, packet).world(world);
        let redirected = [NewFlow, OriginalRedirect];
        match (self.client, source) {
            (Role::Node, _) => {
                let out = match source {
                    Kept => out,
                    Masked => out.src(masked),
                };
                let verdict = Verdict::Redirect(leaves_by);
                case.egress(UPLINK)
                    .ends(verdict, Out::Packet(out), &redirected)
            }
            (client, Kept) => case
                .ingress(enters_by(client))
                .passed(out, &[NewFlow, OriginalStack]),
            (client, Masked) => {
                let case = case.ingress(enters_by(client));
                case.redirected(leaves_by, out.src(masked), &redirected)
            }
        }
    }
}

/// The interface that leads to a client.
fn enters_by(client: Role) -> u32 {
    match client {
        Role::Pod => POD,
        Role::LocalBackend => LOCAL,
        _ => UPLINK,
    }
}
