//! A backend is taken out of the manifest while connections run.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Plan, Report, SocketKind, monotonic_ns};

use crate::checks::{self, Outcome};
use crate::manifests::Manifests;
use crate::stage::{Client, Stage};

/// How long connections run before the change.
const BEFORE: Duration = Duration::from_millis(700);
/// How long they run after it.
const AFTER: Duration = Duration::from_millis(1_500);
/// The end of the run in which the removed backend must not be reached at all.
const QUIET_NS: u64 = 500_000_000;

/// What the removal check found.
pub struct Removal {
    /// As every other check.
    pub outcome: Outcome,
    /// From the completed write of the manifest to the start of the last connection that reached
    /// the removed backend; 0 when none did after the write.
    pub milliseconds: f64,
}

/// Takes the last backend of `shop` out while a pod connects over IPv4, through the socket hooks,
/// and a client outside over IPv6, through the packet path.
pub fn run(manifests: &Manifests, stage: &mut Stage) -> Result<Removal> {
    let [v4, v6] = FAMILIES.map(|family| manifests.ready("shop", "web", family));
    let gone: Vec<SocketAddr> = [&v4, &v6]
        .iter()
        .filter_map(|all| all.last().copied())
        .collect();
    let runs = [(Client::Pod, IpFamily::V4), (Client::Outside, IpFamily::V6)];
    for (client, family) in runs {
        let port = u16::try_from(manifests.port("shop", "web")?.port)?;
        let to = SocketAddr::new(manifests.cluster_ip("shop", family)?, port);
        stage
            .client(client)?
            .begin(Plan::new(SocketKind::Tcp, to).until_finish())?;
    }
    std::thread::sleep(BEFORE);
    manifests.remove(&gone.iter().map(SocketAddr::ip).collect::<Vec<IpAddr>>())?;
    let written_ns = monotonic_ns();
    std::thread::sleep(AFTER);
    let end_ns = monotonic_ns();
    let mut reports = Vec::new();
    for (client, _) in runs {
        reports.push(
            stage
                .client(client)?
                .finish()
                .context("the run during the removal")?,
        );
    }
    let allowed = v4.union(&v6).copied().collect();
    Ok(judge(&reports, &gone, &allowed, [written_ns, end_ns]))
}

fn judge(
    reports: &[Report],
    gone: &[SocketAddr],
    allowed: &BTreeSet<SocketAddr>,
    [written_ns, end_ns]: [u64; 2],
) -> Removal {
    let mut complaints = Vec::new();
    for (report, who) in reports.iter().zip(["the pod", "the client outside"]) {
        let own = checks::complaints(report, allowed).into_iter();
        complaints.extend(own.map(|complaint| format!("{who}: {complaint}")));
    }
    let mut last_ns = written_ns;
    for (report, gone) in reports.iter().zip(gone) {
        match report.answers.get(&gone.to_string()) {
            None => complaints.push(format!("{gone} was never reached, not even before")),
            Some(answers) => last_ns = last_ns.max(answers.last_start_ns),
        }
    }
    if last_ns + QUIET_NS > end_ns {
        complaints.push("the removed backend was reached until the end".into());
    }
    let connections = reports.iter().map(|report| report.connections).sum();
    let outcome = Outcome {
        name: "a backend is removed while connections run".into(),
        ok: complaints.is_empty(),
        connections,
        failed: reports.iter().map(Report::failed).sum(),
        backends: None,
        complaints,
    };
    Removal {
        outcome,
        milliseconds: (last_ns - written_ns) as f64 / 1e6,
    }
}
