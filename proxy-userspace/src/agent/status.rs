//! What `shunt status` says: told by the agent, or read from the pins where none runs.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::interface::flags;
use proxy_common::{ABI_VERSION, Addr4, Addr6, Config, interface::Interface};
use serde::{Deserialize, Serialize};

use super::view::{self, FrontendView};
use crate::datapath::features::Features;
use crate::datapath::fill::{self, MapFill};
use crate::datapath::interface_name;
use crate::datapath::maps::KernelMaps;
use crate::datapath::pin::Pins;
use crate::datapath::running::{self, RunningProgram};
use crate::datapath::serve::InterfaceStatus;
use crate::datapath::xdp::XdpMode;
use crate::doctor::Severity;
use crate::maps::Maps as _;
use crate::pipeline::store::Summary;

/// Everything that `shunt status` says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether an agent runs.
    pub agent: AgentState,
    /// True once both first lists are programmed (S-007).
    pub synced: bool,
    /// The agent's version.
    pub version: String,
    /// Why it is not healthy; empty: it is.
    #[serde(default)]
    pub unhealthy: Vec<String>,
    /// Since when both first lists are programmed.
    #[serde(default)]
    pub synced_secs: Option<u64>,
    /// Since the maps were last brought up to date, which they still are.
    #[serde(default)]
    pub updated_secs: Option<u64>,
    /// Where the objects come from; absent when no agent runs.
    #[serde(default)]
    pub source: Option<SourceView>,
    /// What the source has told; absent when no agent runs.
    #[serde(default)]
    pub objects: Option<Summary>,
    /// Name of the node; empty when no agent runs.
    pub node: String,
    /// What the kernel can do.
    pub features: Features,
    /// How programs are attached to interfaces: tcx or clsact.
    pub tc: Option<String>,
    /// True if the socket programs are attached.
    pub socket_lb: bool,
    /// The datapath's configuration; absent before the first sync.
    pub datapath: Option<DatapathStatus>,
    /// The node's interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// Frontends that are published.
    pub frontends: usize,
    /// Different addresses and ports in their Cluster sets.
    pub backends: usize,
    /// Objects that were rejected, each with its place and reason.
    pub rejected: Vec<RejectedView>,
    /// What of Services and their slices is not served, and why.
    pub problems: Vec<ProblemView>,
    /// Map writes of the agent since its start.
    pub writes: u64,
    /// Repairs of what somebody else has changed in the kernel, since the agent's start.
    pub drift: u64,
    /// Counters that are not zero.
    pub counters: BTreeMap<String, u64>,
    /// Our programs at their hooks, by the pins. Read by who asks, not by the agent.
    #[serde(default)]
    pub programs: Vec<RunningProgram>,
    /// How full the maps are. Read by who asks, not by the agent.
    #[serde(default)]
    pub maps: Vec<MapFill>,
}

/// Where the objects come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceView {
    /// `api` or `manifests`.
    pub kind: String,
    /// Files and folders of manifests.
    pub paths: Vec<String>,
    /// One a kind, where an API server is the source.
    pub watches: Vec<WatchView>,
}

/// How one watch stands with the API server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchView {
    /// What is watched.
    pub kind: String,
    /// The server that was asked last; absent before the first answer.
    pub server: Option<String>,
    /// True while it is watched.
    pub connected: bool,
    /// Since when it is so.
    pub since_secs: u64,
    /// Why it is not.
    pub error: Option<String>,
}

/// Whether an agent runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// It does.
    Running,
    /// It does not: what is pinned serves traffic by itself.
    Down,
}

/// What CONFIG says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatapathStatus {
    /// Version of the map ABI.
    pub abi_version: u32,
    /// Kernel ticks per second.
    pub hz: u32,
    /// The node's network namespace; 0: the kernel does not tell (below 5.14).
    pub host_netns_cookie: u64,
    /// Ranges of SNAT ports.
    pub snat_ports: [[u16; 2]; 2],
}

/// One rejected object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectedView {
    /// File and line, or API path.
    pub place: String,
    /// What is wrong.
    pub error: String,
}

/// Something of a Service that is not served.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemView {
    /// The Service or service port.
    pub service: String,
    /// What and why.
    pub problem: String,
    /// A problem is not served as it should be; of a warning an entry is left out.
    #[serde(default = "problem")]
    pub severity: Severity,
}

/// What an agent means that does not say.
fn problem() -> Severity {
    Severity::Problem
}

impl Status {
    /// What the maps alone tell; the agent fills in the rest.
    pub fn of_maps(maps: &KernelMaps, features: Features) -> Self {
        let owners = BTreeMap::new();
        let mut frontends = view::frontends::<Addr4>(maps, &owners);
        frontends.extend(view::frontends::<Addr6>(maps, &owners));
        let config = maps
            .config()
            .filter(|config| config.abi_version == ABI_VERSION);
        Self {
            agent: AgentState::Down,
            synced: false,
            unhealthy: Vec::new(),
            synced_secs: None,
            updated_secs: None,
            source: None,
            objects: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: String::new(),
            features,
            tc: None,
            socket_lb: false,
            datapath: config.as_ref().map(datapath),
            interfaces: maps.interfaces().iter().filter_map(interface).collect(),
            frontends: frontends.len(),
            backends: distinct_backends(&frontends),
            rejected: Vec::new(),
            problems: Vec::new(),
            writes: 0,
            drift: 0,
            counters: view::counters(maps),
            programs: Vec::new(),
            maps: Vec::new(),
        }
    }

    /// Adds what is read from the pins by who asks, and judges the whole.
    pub fn complete(&mut self, pins: &Pins) {
        self.programs = running::running(pins);
        self.maps = fill::fill(pins);
        self.unhealthy = self.reasons();
    }

    /// Whether everything is as it should be.
    pub fn is_healthy(&self) -> bool {
        self.unhealthy.is_empty()
    }

    /// Why it is not healthy. What an object's owner must correct is not the node's fault.
    fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        match self.agent {
            AgentState::Down => reasons.push("no agent runs".to_owned()),
            AgentState::Running if !self.synced => {
                reasons.push("the first lists are not programmed".to_owned());
            }
            AgentState::Running => {}
        }
        let watches = self.source.iter().flat_map(|source| &source.watches);
        let failing = watches.filter(|watch| !watch.connected);
        let kinds: Vec<&str> = failing.map(|watch| watch.kind.as_str()).collect();
        if !kinds.is_empty() {
            reasons.push(format!("not watched: {}", kinds.join(", ")));
        }
        let unserved = self.interfaces.iter().filter(|it| it.problem.is_some());
        reasons.extend(unserved.map(|it| format!("interface {} is not served", it.name)));
        let detached = self.programs.iter().filter(|it| it.is_detached());
        reasons.extend(detached.map(|it| format!("nothing runs at {}", it.place())));
        let held_up = self.problems.iter();
        let held_up = held_up.filter(|problem| problem.severity == Severity::Problem);
        match held_up.count() {
            0 => {}
            count => reasons.push(format!("not programmed: {count}, listed as Problem")),
        }
        reasons
    }
}

fn datapath(config: &Config) -> DatapathStatus {
    DatapathStatus {
        abi_version: config.abi_version,
        hz: config.hz,
        host_netns_cookie: config.host_netns_cookie,
        snat_ports: config.snat_ports,
    }
}

fn distinct_backends(frontends: &[FrontendView]) -> usize {
    let backends = frontends.iter().flat_map(|frontend| &frontend.backends);
    let addresses: BTreeSet<_> = backends.map(|backend| backend.address).collect();
    addresses.len()
}

/// An interface as the map has it; `None` if it is gone.
fn interface((ifindex, entry): &(u32, Interface)) -> Option<InterfaceStatus> {
    Some(InterfaceStatus {
        name: interface_name(*ifindex)?,
        ifindex: *ifindex,
        attached: entry.flags & flags::ATTACHED != 0,
        pod_side: entry.flags & flags::POD_SIDE != 0,
        xdp: (entry.flags & flags::XDP != 0).then_some(XdpMode::Native),
        no_xdp: None,
        left_alone: None,
        problem: None,
    })
}
