//! The rows: who dials what, and what has to come of it. Expectations come from the rules that a
//! row cites.

use std::fmt;

use tests::rig::{Client, Target};
use tests::topology::addresses::{Addresses, node, service};
use tests::traffic::SocketKind;

use super::services::{BOUND, CLOSED, EXTERNAL, LOCAL, ON_NODE_PORT, OPEN, RANGES};
use Client::{HostPod, Node, OtherNode, OtherPod, Outside, Pod};
use Expect::{Answer, Dropped, Refused, Silence};
use Source::{Anyone, Kept, KeptWherePossible, Node as Masqueraded};
use Target::{At, ClusterIp, Loopback, NodePort1, NodePort2};

/// One expectation.
pub struct Row {
    /// The rules that say so.
    pub rules: &'static str,
    /// Who dials.
    pub from: Client,
    /// What.
    pub to: Target,
    /// What comes of it.
    pub expect: Expect,
    /// By which path.
    pub served: Served,
}

/// What comes of a connection.
#[derive(Clone, Copy)]
pub enum Expect {
    /// Exactly these servers, who see the client so.
    Answer(&'static [&'static str], Source),
    /// ECONNREFUSED.
    Refused,
    /// Nothing.
    Silence,
    /// Dropped at the socket: an error that is not ECONNREFUSED (decision 0011).
    Dropped,
}

/// The client's address at the server.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// One of its own.
    Kept,
    /// One of node n's.
    Node(u8),
    /// Its own under `--masquerade=needed`, one of node n's under `always` (S-091).
    KeptWherePossible(u8),
    /// Nobody's to say: the CNI masquerades it.
    Anyone,
}

/// Which paths serve a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// All.
    Everywhere,
    /// A process of this node towards an own address: only the socket hooks (P-8).
    BySocketsOnly,
}

impl Row {
    /// The kinds of sockets for which it holds. A socket that is not connected hears of no refusal.
    pub fn sockets(&self) -> impl Iterator<Item = SocketKind> + use<> {
        let hears = !matches!(self.expect, Refused);
        let unconnected = hears.then_some(SocketKind::Udp);
        [SocketKind::Tcp, SocketKind::UdpConnected]
            .into_iter()
            .chain(unconnected)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {:?} ({})", self.from, self.to, self.rules)
    }
}

const fn row(rules: &'static str, from: Client, to: Target, expect: Expect) -> Row {
    Row {
        rules,
        from,
        to,
        expect,
        served: Served::Everywhere,
    }
}

const fn own(rules: &'static str, from: Client, to: Target, expect: Expect) -> Row {
    Row {
        rules,
        from,
        to,
        expect,
        served: Served::BySocketsOnly,
    }
}

const fn at(addresses: Addresses, port: u16) -> Target {
    At(addresses, port)
}

const RANGES_PORT: u16 = 121;
const OPEN_PORT: u16 = 122;
const LOCAL_PORT: u16 = 123;
const BOUND_PORT: u16 = 124;
const CLOSED_PORT: u16 = 125;
const EXTERNAL_PORT: u16 = 126;

const NEAR: &[&str] = &["a"];
const FAR: &[&str] = &["b", "c"];

/// What holds for `--masquerade=needed` and `always`.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    // ClusterIP, both policies.
    row("S-090, S-091, W-1", Pod, ClusterIp("near"), Answer(NEAR, Kept)),
    row("S-061, S-069, S-090", Pod, ClusterIp("all"), Answer(&["a", "b", "c"], Kept)),
    row("S-090", Pod, ClusterIp("far"), Answer(FAR, Kept)),
    row("S-090", OtherPod, ClusterIp("near"), Answer(NEAR, Kept)),
    row("S-076, S-091", Node, ClusterIp("near"), Answer(NEAR, Masqueraded(1))),
    row("S-076, S-091, S-207", Node, ClusterIp("far"), Answer(FAR, Masqueraded(1))),
    row("S-089, S-091", HostPod, ClusterIp("far"), Answer(FAR, Masqueraded(1))),
    row("S-091, S-097", Outside, ClusterIp("near"), Answer(NEAR, KeptWherePossible(1))),
    row("S-091, S-097", Outside, ClusterIp("far"), Answer(FAR, Masqueraded(1))),
    row("S-094, W-1", Pod, ClusterIp("self"), Answer(&["client"], Masqueraded(1))),
    row("S-094", Pod, NodePort1("self"), Answer(&["client"], Masqueraded(1))),
    row("S-026, S-071, S-090", Pod, ClusterIp("int-near"), Answer(NEAR, Kept)),
    row("S-026, S-093", Node, ClusterIp("int-near"), Answer(NEAR, Masqueraded(1))),
    row("S-026, S-071", OtherPod, ClusterIp("int-near"), Answer(&["b"], Kept)),
    row("S-106, W-3", Pod, ClusterIp("int-far"), Silence),
    row("S-106, S-201", Node, ClusterIp("int-far"), Silence),
    row("S-106", Outside, ClusterIp("int-far"), Silence),
    row("S-033, S-071, W-3", Outside, NodePort1("int-far"), Answer(&["b"], Masqueraded(1))),
    // Endpoints in the networks of nodes.
    row("S-050, S-090", Pod, ClusterIp("on-n1"), Answer(&["n1"], Kept)),
    own("S-096", Node, ClusterIp("on-n1"), Answer(&["n1"], Kept)),
    row("S-096", Outside, ClusterIp("on-n1"), Answer(&["n1"], Kept)),
    row("S-096", Outside, NodePort1("on-n1"), Answer(&["n1"], Kept)),
    row("S-096", Pod, NodePort1("on-n1"), Answer(&["n1"], Kept)),
    row("S-050", Pod, ClusterIp("on-n2"), Answer(&["n2"], Anyone)),
    row("S-050, S-091", Node, ClusterIp("on-n2"), Answer(&["n2"], Masqueraded(1))),
    row("S-080, S-091", Outside, NodePort1("on-n2"), Answer(&["n2"], Masqueraded(1))),
    // Nobody ready.
    row("S-104, S-105, S-201, W-3", Pod, ClusterIp("empty"), Refused),
    row("S-104, S-105, S-201, W-3", Node, ClusterIp("empty"), Refused),
    row("S-104, S-105", HostPod, ClusterIp("empty"), Refused),
    row("S-104, S-105", Outside, ClusterIp("empty"), Refused),
    row("S-105, W-3", Outside, NodePort1("empty"), Refused),
    row("S-105, W-3", Pod, NodePort1("empty"), Refused),
    own("S-105, W-3", Node, NodePort1("empty"), Refused),
    row("S-068, S-109", Pod, ClusterIp("unready"), Refused),
    row("S-062, S-068", Pod, ClusterIp("dying"), Answer(NEAR, Kept)),
    row("S-061, S-066, W-4", Pod, ClusterIp("drain"), Answer(&["b"], Kept)),
    row("S-065, S-066, W-4", Outside, NodePort1("drain"), Answer(NEAR, Kept)),
    // Node ports.
    row("S-080, S-091, W-1", Outside, NodePort1("near"), Answer(NEAR, KeptWherePossible(1))),
    row("S-080, S-091, W-1", Outside, NodePort1("far"), Answer(FAR, Masqueraded(1))),
    row("S-080, S-091", Outside, NodePort2("near"), Answer(NEAR, Masqueraded(2))),
    row("S-080", Pod, NodePort1("near"), Answer(NEAR, Masqueraded(1))),
    row("S-080", Pod, NodePort1("far"), Answer(FAR, Masqueraded(1))),
    row("S-084, S-204", Pod, NodePort2("near"), Answer(NEAR, Masqueraded(2))),
    row("S-084, S-204", Node, NodePort2("near"), Answer(NEAR, Masqueraded(2))),
    row("S-084, S-204", Node, NodePort2("far"), Answer(FAR, KeptWherePossible(2))),
    own("S-080, S-081, P-8", Node, NodePort1("near"), Answer(NEAR, Masqueraded(1))),
    own("S-080, S-081, P-8", Node, NodePort1("far"), Answer(FAR, Masqueraded(1))),
    own("S-080, S-089, P-8", HostPod, NodePort1("near"), Answer(NEAR, Masqueraded(1))),
    // External policy Local, and its short-circuits.
    row("S-027, S-081, W-2", Outside, NodePort1("ext-near"), Answer(NEAR, Kept)),
    row("S-081, S-091, W-2", Pod, NodePort1("ext-near"), Answer(&["a", "b"], Kept)),
    own("S-081, S-091, W-2", Node, NodePort1("ext-near"), Answer(&["a", "b"], Masqueraded(1))),
    row("S-107, W-2", Outside, NodePort1("ext-far"), Silence),
    row("S-081, S-082, S-108, W-2", Pod, NodePort1("ext-far"), Answer(FAR, Kept)),
    own("S-081, S-082, S-108, W-2", Node, NodePort1("ext-far"), Answer(FAR, Masqueraded(1))),
    row("S-081", Outside, NodePort2("ext-far"), Answer(FAR, Kept)),
    row("S-071", Outside, ClusterIp("ext-far"), Answer(FAR, Masqueraded(1))),
    row("S-084, S-107", OtherPod, NodePort1("ext-far"), Silence),
    row("S-081, S-084", OtherNode, NodePort1("ext-one"), Answer(NEAR, Kept)),
    row("S-084, S-107", Node, NodePort2("ext-one"), Silence),
    // Load balancers and external addresses.
    row("S-113, W-6", Outside, at(RANGES, RANGES_PORT), Answer(NEAR, KeptWherePossible(1))),
    row("S-113, S-117, S-203, W-6", Pod, at(RANGES, RANGES_PORT), Silence),
    row("S-113, S-203", Node, at(RANGES, RANGES_PORT), Silence),
    row("S-112, W-6", Pod, NodePort1("ranges"), Answer(NEAR, Masqueraded(1))),
    row("S-112", Pod, ClusterIp("ranges"), Answer(NEAR, Kept)),
    row("S-112, W-6", OtherNode, NodePort1("ranges"), Answer(NEAR, KeptWherePossible(1))),
    row("S-024, S-080", Pod, at(OPEN, OPEN_PORT), Answer(NEAR, Masqueraded(1))),
    row("S-024, S-080", Node, at(OPEN, OPEN_PORT), Answer(NEAR, Masqueraded(1))),
    row("S-024, S-080", Outside, at(OPEN, OPEN_PORT), Answer(NEAR, KeptWherePossible(1))),
    row("S-081, S-082", Pod, at(LOCAL, LOCAL_PORT), Answer(&["b"], Kept)),
    row("S-081, S-082", Node, at(LOCAL, LOCAL_PORT), Answer(&["b"], Masqueraded(1))),
    row("S-107, S-108", Outside, at(LOCAL, LOCAL_PORT), Silence),
    own("S-085, P-8", Node, at(BOUND, BOUND_PORT), Answer(NEAR, Masqueraded(1))),
    row("S-080", Pod, at(BOUND, BOUND_PORT), Answer(NEAR, Masqueraded(1))),
    row("S-080", Outside, at(BOUND, BOUND_PORT), Answer(NEAR, KeptWherePossible(1))),
    row("S-116", Outside, at(CLOSED, CLOSED_PORT), Refused),
    row("S-116", Pod, at(CLOSED, CLOSED_PORT), Silence),
    row("S-025, S-080", Pod, at(EXTERNAL, EXTERNAL_PORT), Answer(NEAR, Masqueraded(1))),
    row("S-025, S-080", Node, at(EXTERNAL, EXTERNAL_PORT), Answer(NEAR, Masqueraded(1))),
    row("S-025", Outside, at(EXTERNAL, EXTERNAL_PORT), Answer(NEAR, KeptWherePossible(1))),
    row("S-035, S-087", Outside, at(node(1), ON_NODE_PORT), Answer(NEAR, KeptWherePossible(1))),
    own("S-087, P-8", Node, at(node(1), ON_NODE_PORT), Answer(NEAR, Masqueraded(1))),
    // What no Service has.
    row("S-077, W-7", Pod, at(service(10), 8_099), Refused),
    row("S-077, W-7", Node, at(service(10), 8_099), Refused),
    row("S-077", Outside, at(service(10), 8_099), Refused),
    row("S-078, W-7", Pod, at(service(200), 80), Silence),
    row("S-078, W-7", Node, at(service(200), 80), Silence),
    row("S-078", Outside, at(service(200), 80), Silence),
    row("S-119c, S-119d", Node, Loopback("near"), Refused),
];

/// With `--masquerade-all`.
#[rustfmt::skip]
pub const MASQUERADE_ALL: &[Row] = &[
    row("S-091, S-092", Pod, ClusterIp("near"), Answer(NEAR, Masqueraded(1))),
    row("S-091, S-092", Pod, ClusterIp("far"), Answer(FAR, Masqueraded(1))),
    row("S-091, S-092", Pod, ClusterIp("int-near"), Answer(NEAR, Masqueraded(1))),
    row("S-091, S-092", Node, ClusterIp("near"), Answer(NEAR, Masqueraded(1))),
    row("S-091, S-092", Outside, ClusterIp("near"), Answer(NEAR, Masqueraded(1))),
    row("S-092", Outside, NodePort1("ext-near"), Answer(NEAR, Kept)),
    row("S-081, S-092", Pod, NodePort1("ext-near"), Answer(&["a", "b"], Kept)),
    row("S-092", Outside, NodePort1("near"), Answer(NEAR, KeptWherePossible(1))),
];

/// With loopback among the addresses for node ports.
#[rustfmt::skip]
pub const LOOPBACK: &[Row] = &[
    own("S-119d", Node, Loopback("near"), Answer(NEAR, Masqueraded(1))),
    own("S-119d", Node, Loopback("far"), Answer(FAR, Masqueraded(1))),
    own("S-119d", HostPod, Loopback("all"), Answer(&["a", "b", "c"], Masqueraded(1))),
    own("S-119d", Node, Loopback("ext-near"), Answer(NEAR, Masqueraded(1))),
    own("S-119d", HostPod, Loopback("ext-near"), Answer(NEAR, Masqueraded(1))),
    own("S-107, S-119d", Node, Loopback("ext-far"), Dropped),
    own("S-105, S-119d", Node, Loopback("empty"), Refused),
    row("S-118, S-119b", Outside, NodePort1("near"), Answer(NEAR, KeptWherePossible(1))),
    row("S-119d", Pod, Loopback("near"), Refused),
];
