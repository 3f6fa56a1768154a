//! One check for each path: many connections, and who answered them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ::tests::topology::addresses::{FAMILIES, IpFamily};
use ::tests::traffic::{Plan, Report, SocketKind};
use anyhow::Result;
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

fn routes_of(manifests: &Manifests, stage: &Stage, family: IpFamily) -> Result<Vec<Route>> {
    let label = label(family);
    let route = |name: &str, client, to, socket, service: &str, port: &str| Route {
        name: format!(
            "{name}, {} {label}",
            if socket == SocketKind::Udp {
                "UDP"
            } else {
                "TCP"
            }
        ),
        client,
        to,
        socket,
        ready: manifests.ready(service, port, family),
    };
    let cluster_ip = |service: &str, port: &str| -> Result<SocketAddr> {
        let number = u16::try_from(manifests.port(service, port)?.port)?;
        Ok(SocketAddr::new(
            manifests.cluster_ip(service, family)?,
            number,
        ))
    };
    let node_port = |node: usize, service: &str, port: &str| -> Result<SocketAddr> {
        let number = manifests.port(service, port)?.node_port.unwrap_or_default();
        Ok(SocketAddr::new(
            stage.node(node).addresses.of(family),
            u16::try_from(number)?,
        ))
    };
    let (web, dns) = (cluster_ip("shop", "web")?, cluster_ip("shop", "dns")?);
    let (local, remote) = (node_port(0, "shop", "web")?, node_port(1, "api", "rest")?);
    use Client::{Node, Outside, Pod, UnseenPod};
    use SocketKind::{Tcp, Udp};
    Ok(vec![
        route("pod -> ClusterIP", Pod, web, Tcp, "shop", "web"),
        route("pod -> ClusterIP", Pod, dns, Udp, "shop", "dns"),
        route(
            "pod -> ClusterIP as packets only",
            UnseenPod,
            web,
            Tcp,
            "shop",
            "web",
        ),
        route(
            "pod -> ClusterIP as packets only",
            UnseenPod,
            dns,
            Udp,
            "shop",
            "dns",
        ),
        route("node process -> ClusterIP", Node, web, Tcp, "shop", "web"),
        route(
            "outside -> NodePort, local backends",
            Outside,
            local,
            Tcp,
            "shop",
            "web",
        ),
        route(
            "outside -> NodePort, remote backends",
            Outside,
            remote,
            Tcp,
            "api",
            "rest",
        ),
        route(
            "outside -> ClusterIP by a route",
            Outside,
            web,
            Tcp,
            "shop",
            "web",
        ),
    ])
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
