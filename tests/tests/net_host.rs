//! What the node itself sees of Services: addresses, answers, and its own firewall.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::net::{Netns, eventually};
use tests::rig::{Client, Rig, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::FAMILIES;
use tests::traffic::{Plan, SocketKind};

/// Until the agent has done something, on a machine whose cores are busy.
const SEEN: Duration = Duration::from_secs(10);

/// No interface has a ClusterIP, nobody answers for one on the link, and a ping is refused.
#[test]
fn cluster_ips_are_no_addresses_of_the_node() -> Result<()> {
    rules(&["S-077", "S-135", "W-7"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    for family in FAMILIES {
        let to = rig.address(Target::ClusterIp("all"), family);
        let plan = Plan::new(SocketKind::Tcp, to).times(5).timeout_ms(1_000);
        let report = rig.client(Client::PodAsPackets)?.connect(plan)?;
        ensure!(report.failed() == 0, "{report:?}");
        let address = to.ip().to_string();
        for node in &rig.cluster.nodes {
            let own = node.netns.run(&["ip", "-o", "address"])?;
            ensure!(!own.contains(&format!(" {address}/")), "{own}");
            let route = node.netns.run(&["ip", "route", "get", &address])?;
            ensure!(!route.starts_with("local"), "{route}");
        }
        let answer = ping(&rig.cluster.pods[0].netns, &address)?;
        let is_refused = answer.to_lowercase().contains("port unreachable");
        ensure!(is_refused && answer.contains(" 0 received"), "{answer}");

        let net = &rig.cluster.net;
        net.run(&["ip", "route", "add", &address, "dev", "br0"])?;
        let node = rig.cluster.nodes[0].addresses.of(family).to_string();
        for (addr, is_there) in [(address, false), (node, true)] {
            ping(net, &addr)?;
            let neighbour = net.run(&["ip", "neighbour", "show", &addr])?;
            ensure!(neighbour.contains("lladdr") == is_there, "{neighbour}");
        }
    }
    Ok(())
}

/// What one ping prints, whatever comes of it.
fn ping(netns: &Netns, address: &str) -> Result<String> {
    netns.run(&["sh", "-c", &format!("ping -c 1 -W 2 {address} 2>&1 || :")])
}

/// A rule of the host about a pod's link, as iptables-based NetworkPolicy makes them, applies to
/// what comes by a Service.
#[test]
fn rules_about_a_pods_link_apply_to_services() -> Result<()> {
    rules(&["S-210"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    let link = rig.pods["a"].host_link.clone();
    for family in FAMILIES {
        let to = rig.address(Target::ClusterIp("near"), family);
        let plan = Plan::new(SocketKind::Tcp, to).times(3).timeout_ms(500);
        let report = rig.client(Client::PodAsPackets)?.connect(plan.clone())?;
        ensure!(report.failed() == 0, "before: {report:?}");
        let script = format!(
            "table inet guard {{
                chain forward {{
                    type filter hook forward priority filter; policy accept;
                    oifname {link} drop
                }}
            }}"
        );
        rig.cluster.nodes[0].netns.nft(&script)?;
        let report = rig.client(Client::PodAsPackets)?.connect(plan.clone())?;
        ensure!(report.failed() == 3, "with the rule: {report:?}");
        rig.cluster.nodes[0].netns.nft("delete table inet guard")?;
        eventually(SEEN, || {
            let report = rig.client(Client::PodAsPackets)?.connect(plan.clone())?;
            ensure!(report.failed() == 0, "without it: {report:?}");
            Ok(())
        })?;
    }
    Ok(())
}
