//! One check for each path: many connections, and who answered them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ::tests::topology::addresses::{FAMILIES, IpFamily};
use ::tests::traffic::{Plan, Report, SocketKind};
use anyhow::{Context, Result};
use serde::Serialize;

use crate::manifests::Manifests;
use crate::stage::{Client, Stage};

/// Connections of one check.
const CONNECTIONS: u32 = 1_500;
/// The least number of connections that says anything.
const CONNECTIONS_MIN: u32 = 1_000;
/// How far a backend may be from its fair share, as a part of it.
const TOLERANCE: f64 = 0.25;

/// A path through the cluster.
pub struct Route {
    /// What the reader calls it.
    pub name: String,
    /// Who connects.
    pub client: Client,
    /// Where to.
    pub to: SocketAddr,
    /// How.
    pub socket: SocketKind,
    /// Who may answer, each with the same share.
    pub ready: BTreeSet<SocketAddr>,
}

/// What a check found; serialized, it is one entry of the JSON result.
#[derive(Serialize)]
pub struct Outcome {
    /// What the reader calls it.
    pub name: String,
    /// Whether all of it really happened.
    pub ok: bool,
    /// Connections tried.
    pub connections: u32,
    /// Connections that were not answered.
    pub failed: u32,
    /// Connections by backend; every ready one is there.
    pub backends: Option<BTreeMap<String, u32>>,
    /// Why it is not ok, in words.
    #[serde(skip)]
    pub complaints: Vec<String>,
}

/// All paths of the demo, in the order they are shown.
pub fn routes(manifests: &Manifests, stage: &Stage) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in FAMILIES {
        routes.extend(routes_of(manifests, stage, family)?);
    }
    Ok(routes)
}

/// A Service and one of its ports, by their names in the manifests.
type PortName = (&'static str, &'static str);
const WEB: PortName = ("shop", "web");
const DNS: PortName = ("shop", "dns");
/// Has backends on n1 only.
const REST: PortName = ("api", "rest");

fn routes_of(manifests: &Manifests, stage: &Stage, family: IpFamily) -> Result<Vec<Route>> {
    use Client::{Node, Outside, Pod, UnseenPod};
    use SocketKind::{Tcp, Udp};
    let (web, dns) = (
        cluster_ip(manifests, WEB, family)?,
        cluster_ip(manifests, DNS, family)?,
    );
    let n1 = node_port(manifests, WEB, stage.node(0).addresses.of(family))?;
    let n2 = node_port(manifests, REST, stage.node(1).addresses.of(family))?;
    let rows = [
        ("pod -> ClusterIP", Pod, web, Tcp, WEB),
        ("pod -> ClusterIP", Pod, dns, Udp, DNS),
        ("pod -> ClusterIP as packets only", UnseenPod, web, Tcp, WEB),
        ("pod -> ClusterIP as packets only", UnseenPod, dns, Udp, DNS),
        ("node process -> ClusterIP", Node, web, Tcp, WEB),
        ("outside -> NodePort, local backends", Outside, n1, Tcp, WEB),
        (
            "outside -> NodePort, remote backends",
            Outside,
            n2,
            Tcp,
            REST,
        ),
        ("outside -> ClusterIP by a route", Outside, web, Tcp, WEB),
    ];
    let route =
        |(name, client, to, socket, (service, port)): (&str, _, _, SocketKind, PortName)| {
            let protocol = if socket.is_tcp() { "TCP" } else { "UDP" };
            Route {
                name: format!("{name}, {protocol} {}", label(family)),
                client,
                to,
                socket,
                ready: manifests.ready(service, port, family),
            }
        };
    Ok(rows.map(route).into())
}

fn cluster_ip(manifests: &Manifests, name: PortName, family: IpFamily) -> Result<SocketAddr> {
    let port = u16::try_from(manifests.port(name.0, name.1)?.port)?;
    Ok(SocketAddr::new(manifests.cluster_ip(name.0, family)?, port))
}

fn node_port(manifests: &Manifests, name: PortName, node: IpAddr) -> Result<SocketAddr> {
    let port = manifests.port(name.0, name.1)?.node_port;
    let port = port.with_context(|| format!("{} has no nodePort", name.0))?;
    Ok(SocketAddr::new(node, u16::try_from(port)?))
}

/// Follows a route many times and judges the answers.
pub fn follow(route: &Route, stage: &mut Stage) -> Result<Outcome> {
    let plan = Plan::new(route.socket, route.to).times(CONNECTIONS);
    let report = stage.client(route.client)?.connect(plan)?;
    let backends = counts(&route.ready, &report);
    let mut complaints = complaints(&report, &route.ready);
    complaints.extend(unfair(&backends));
    Ok(Outcome {
        name: route.name.clone(),
        ok: complaints.is_empty(),
        connections: report.connections,
        failed: report.failed(),
        backends: Some(backends),
        complaints,
    })
}

/// What is wrong with a report whatever the shares are.
pub fn complaints(report: &Report, allowed: &BTreeSet<SocketAddr>) -> Vec<String> {
    let mut complaints = Vec::new();
    if report.connections < CONNECTIONS_MIN {
        complaints.push(format!("only {} connections", report.connections));
    }
    for (error, count) in &report.failures {
        complaints.push(format!("{count} connections failed: {error}"));
    }
    let names: BTreeSet<String> = allowed.iter().map(SocketAddr::to_string).collect();
    for server in report
        .servers()
        .into_iter()
        .filter(|server| !names.contains(*server))
    {
        complaints.push(format!(
            "{server} answered, which is no backend of this Service"
        ));
    }
    complaints
}

fn counts(ready: &BTreeSet<SocketAddr>, report: &Report) -> BTreeMap<String, u32> {
    let by_name = |at: &SocketAddr| (at.to_string(), report.count(&at.to_string()));
    ready.iter().map(by_name).collect()
}

/// Names every backend that is too far from its fair share.
fn unfair(backends: &BTreeMap<String, u32>) -> Vec<String> {
    let total: u32 = backends.values().sum();
    let fair = f64::from(total) / backends.len() as f64;
    let too_far = |count: u32| (f64::from(count) - fair).abs() > fair * TOLERANCE;
    let far = backends
        .iter()
        .filter(|(_, count)| total == 0 || too_far(**count));
    far.map(|(name, count)| format!("{name} answered {count}, its share is {fair:.0}"))
        .collect()
}

/// How the reader calls a family.
pub fn label(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::unfair;

    #[test]
    fn backend_far_from_its_share_is_named() {
        let counts = |a, b| [("a".to_owned(), a), ("b".to_owned(), b)].into();
        assert!(unfair(&counts(600, 400)).is_empty());
        assert_eq!(unfair(&counts(640, 360)).len(), 2);
        assert_eq!(unfair(&counts(0, 0)).len(), 2);
    }
}
