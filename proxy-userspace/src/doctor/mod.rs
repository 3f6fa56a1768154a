//! `shunt doctor`: what keeps a node from serving Services. Read only, with the agent or without.
//!
//! Each check takes what was read of the node and returns its findings. One that cannot look says
//! so, as a finding.

mod agent;
pub mod finding;
mod interfaces;
mod kernel;
mod leftovers;
mod mounts;
mod ports;
mod sysctls;

use std::path::{Path, PathBuf};

use proxy_common::Config;
use serde::Serialize;

pub use self::finding::{Finding, Severity};
use crate::agent::socket::{self, Question};
use crate::agent::status::Status;
use crate::datapath::interfaces::Snapshot;
use crate::datapath::maps::KernelMaps;
use crate::datapath::netlink::{NetlinkError, Reader};
use crate::datapath::pin::{PinError, Pins};
use crate::datapath::running::{self, RunningProgram};
use crate::maps::Maps as _;

/// Where the kernel's settings lie.
const SYSCTLS: &str = "/proc/sys";

/// Everything that was found, in the order of the checks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Findings with the severity `problem`.
    pub problems: usize,
    /// Findings with the severity `warning`.
    pub warnings: usize,
    /// All findings.
    pub findings: Vec<Finding>,
}

impl Report {
    fn new(findings: Vec<Finding>) -> Self {
        let count = |severity| {
            let of_it = findings.iter().filter(|it| it.severity == severity);
            of_it.count()
        };
        Self {
            problems: count(Severity::Problem),
            warnings: count(Severity::Warning),
            findings,
        }
    }
}

/// What the agent said.
#[derive(Debug)]
enum Agent {
    /// It runs, and this is its status.
    Running(Box<Status>),
    /// Nobody listens.
    Down,
    /// It could not be asked, and why.
    Silent(String),
}

/// What the checks look at.
#[derive(Debug)]
struct Node {
    bpffs: PathBuf,
    /// What the command line says.
    cgroup: PathBuf,
    pins: Pins,
    agent: Agent,
    snapshot: Result<Snapshot, NetlinkError>,
    /// CONFIG of the pinned maps; `Ok(None)` where nothing is pinned.
    config: Result<Option<Config>, PinError>,
    running: Vec<RunningProgram>,
}

impl Node {
    fn read(bpffs: &Path, cgroup: &Path) -> Self {
        let pins = Pins::at(bpffs);
        let config = match pins.exist() {
            true => KernelMaps::open(&pins).map(|maps| maps.config()),
            false => Ok(None),
        };
        Self {
            bpffs: bpffs.to_owned(),
            cgroup: cgroup.to_owned(),
            agent: ask(&pins),
            snapshot: snapshot(),
            config,
            running: running::running(&pins),
            pins,
        }
    }

    fn status(&self) -> Option<&Status> {
        match &self.agent {
            Agent::Running(status) => Some(status),
            Agent::Down | Agent::Silent(_) => None,
        }
    }
}

/// Looks at everything.
pub fn examine(bpffs: &Path, cgroup: &Path) -> Report {
    let node = Node::read(bpffs, cgroup);
    let sysctls = Path::new(SYSCTLS);
    let checks = [
        kernel::check(sysctls),
        mounts::check(&node),
        agent::check(&node),
        interfaces::check(&node),
        interfaces::strangers(&node),
        sysctls::check(&node, sysctls),
        ports::check(&node, sysctls),
        leftovers::check(),
    ];
    Report::new(checks.into_iter().flatten().collect())
}

fn ask(pins: &Pins) -> Agent {
    if !pins.exist() {
        return Agent::Down;
    }
    let answer = socket::path(pins).and_then(|path| socket::ask(&path, Question::Status));
    match answer {
        Ok(Some(text)) => match serde_json::from_str(&text) {
            Ok(status) => Agent::Running(Box::new(status)),
            Err(error) => Agent::Silent(format!("its answer is not understood: {error}")),
        },
        Ok(None) => Agent::Down,
        Err(error) => Agent::Silent(error.to_string()),
    }
}

fn snapshot() -> Result<Snapshot, NetlinkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Reader::open()?.snapshot().await })
}

#[cfg(test)]
mod tests {
    use super::{Finding, Report, Severity};

    #[test]
    fn a_report_counts_what_needs_attention() {
        let finding = |severity| Finding::new(severity, "kernel", "here", "something");
        let all = [
            Severity::Ok,
            Severity::Warning,
            Severity::Problem,
            Severity::Problem,
        ];
        let report = Report::new(all.map(finding).to_vec());
        assert_eq!((report.problems, report.warnings), (2, 1));
    }
}
