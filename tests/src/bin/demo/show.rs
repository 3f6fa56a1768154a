//! What the reader sees: the picture, a table for each path, and how to look further.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::{Result, ensure};

use tests::topology::Pod;
use tests::topology::addresses::{Addresses, IpFamily};

use crate::checks::{Outcome, Route};
use crate::manifests::Manifests;
use crate::removal::Removal;
use crate::stage::Stage;

/// Width of the longest bar.
const BAR: usize = 30;

/// Where the words go: JSON has standard output for itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// Standard output.
    Out,
    /// Standard error.
    Aside,
}

impl Words {
    /// Prints one piece of text.
    pub fn say(self, text: &str) {
        match self {
            Self::Out => println!("{text}"),
            Self::Aside => eprintln!("{text}"),
        }
    }
}

/// What is where: names, addresses, hooks.
pub fn picture(stage: &Stage) -> String {
    let (n1, n2) = (stage.node(0), stage.node(1));
    let client = stage.cluster.client.addresses;
    let mut text = format!(
        "\n  client outside   {}\n        │          its route to the Service ranges leads to n1\n",
        both(client)
    );
    text += "  ──────┴───────────┬──────────────────────────────────────── the nodes' network\n";
    for node in [n1, n2] {
        let _ = writeln!(
            text,
            "  {} {:<38} agent: shunt, pins in {}",
            node.name,
            both(node.addresses),
            node.bpffs.join("shunt").display()
        );
        text += "   ├─ up0            tc ingress and egress programs (uplink)\n";
        text += "   ├─ cgroup         connect, sendmsg, recvmsg, getpeername hooks (socket LB)\n";
        for pod in stage
            .cluster
            .pods
            .iter()
            .filter(|pod| pod.node == node.name)
        {
            let _ = writeln!(
                text,
                "   ├─ {:<14} tc ingress and egress programs",
                pod.host_link
            );
            let _ = writeln!(
                text,
                "   │     └ pod {:<10} {}",
                pod.name,
                both(pod.addresses)
            );
        }
    }
    text
}

/// The Services, with the three numbers of every port.
pub fn services(manifests: &Manifests) -> Result<String> {
    let mut text = format!(
        "  {:<10} {:<9} {:<26} {:>5} {:>9} {:>11}\n",
        "Service", "port", "ClusterIP", "port", "nodePort", "targetPort"
    );
    for (service, name) in [("shop", "web"), ("shop", "dns"), ("api", "rest")] {
        let port = manifests.port(service, name)?;
        let address = manifests.cluster_ip(service, IpFamily::V4)?;
        let address6 = manifests.cluster_ip(service, IpFamily::V6)?;
        let ready = manifests.ready(service, name, IpFamily::V4);
        let target = ready.first().map_or(0, SocketAddr::port);
        let node_port = port.node_port.unwrap_or_default();
        let numbers = BTreeSet::from([port.port, node_port, i32::from(target)]);
        ensure!(
            numbers.len() == 3,
            "port, nodePort and targetPort of {service} are to differ"
        );
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let _ = writeln!(
            text,
            "  {service:<10} {:<9} {:<26} {:>5} {node_port:>9} {target:>11}",
            format!("{name}/{protocol}"),
            format!("{address} {address6}"),
            port.port,
        );
    }
    Ok(text)
}

/// One path: who answered, with bars.
pub fn table(route: &Route, outcome: &Outcome, pods: &[Pod]) -> String {
    let sign = if outcome.ok { "ok  " } else { "FAIL" };
    let mut text = format!(
        "{sign} {}  ({} connections to {}, {} failed)\n",
        outcome.name, outcome.connections, route.to, outcome.failed
    );
    let backends = outcome.backends.iter().flatten();
    let total = backends
        .clone()
        .map(|(_, count)| *count)
        .sum::<u32>()
        .max(1) as usize;
    for (name, &count) in backends {
        let bar = "█".repeat(count as usize * BAR * route.ready.len().min(3) / 2 / total);
        let percent = f64::from(count) * 100.0 / total as f64;
        let pod = pod_at(name, pods);
        let _ = writeln!(
            text,
            "       {pod:<7} {name:<29} {count:>5} {percent:>5.1} %  {bar}"
        );
    }
    text + &complaints(outcome)
}

/// The removal check.
pub fn removal(removal: &Removal) -> String {
    let outcome = &removal.outcome;
    let sign = if outcome.ok { "ok  " } else { "FAIL" };
    format!(
        "{sign} {}  ({} connections, {} failed)\n       the last one to web-3 began {:.1} ms \
         after the manifest was written\n{}",
        outcome.name,
        outcome.connections,
        outcome.failed,
        removal.milliseconds,
        complaints(outcome)
    )
}

/// How to enter what was kept.
pub fn kept(stage: &Stage) -> String {
    let sandbox = stage.cluster.sandbox();
    let mut text = format!("The cluster stays up. Its name is {}.\n", sandbox.name());
    let (client, pod) = (&stage.cluster.client.netns, &stage.pod.netns);
    for (who, netns) in [("the client outside", client), ("the client pod", pod)] {
        let _ = writeln!(
            text,
            "  {who}:\n    nsenter --net={} bash",
            netns.path().display()
        );
    }
    for node in &stage.cluster.nodes {
        let enter = format!("nsenter --net={}", node.netns.path().display());
        let _ = writeln!(text, "  node {}:\n    {enter} bash", node.name);
        for verb in [
            "status",
            "service list -o wide",
            "service get shop",
            "flows",
        ] {
            let bpffs = node.bpffs.display();
            let _ = writeln!(
                text,
                "    {enter} target/release/shunt {verb} --bpffs {bpffs}"
            );
        }
    }
    let _ = writeln!(
        text,
        "  manifests and logs:\n    {}",
        sandbox.dir().display()
    );
    text + &format!(
        "  to end it:\n    cargo xtask demo --end {}\n",
        sandbox.name()
    )
}

fn complaints(outcome: &Outcome) -> String {
    outcome
        .complaints
        .iter()
        .map(|complaint| format!("       !! {complaint}\n"))
        .collect()
}

fn pod_at<'a>(name: &str, pods: &'a [Pod]) -> &'a str {
    let at = name.parse::<SocketAddr>().map(|at| at.ip()).ok();
    let has = |pod: &&Pod| at.is_some_and(|ip| pod.addresses.v4 == ip || pod.addresses.v6 == ip);
    pods.iter().find(has).map_or("?", |pod| &pod.name)
}

fn both(addresses: Addresses) -> String {
    format!("{}  {}", addresses.v4, addresses.v6)
}
