//! What is left on a node: nothing, wherever we end.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use tests::net::{cgroup_programs, tcx_programs};
use tests::rig::{Client, Rig, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::IpFamily;
use tests::traffic::{Plan, SocketKind};

/// Everything outside its own pins that an agent could leave behind on a node.
fn traces(rig: &Rig, node: usize) -> Result<String> {
    let node = &rig.cluster.nodes[node];
    let reserved = node.netns.read_sysctl("net/ipv4/ip_local_reserved_ports")?;
    let tcx = tcx_programs(&node.netns)?;
    let sockets = cgroup_programs(&node.cgroup)?;
    let qdiscs = node.netns.run(&["tc", "qdisc", "show"])?;
    let rules = node.netns.run(&["nft", "--stateless", "list", "ruleset"])?;
    Ok(format!("{reserved}\n{tcx}\n{sockets}\n{qdiscs}\n{rules}"))
}

/// What is pinned on a node, without the two files that every bpffs has.
fn pins(rig: &Rig, node: usize) -> Vec<String> {
    let entries = fs::read_dir(&rig.cluster.nodes[node].bpffs)
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.ends_with(".debug")).collect()
}

#[test]
fn cleanup_leaves_nothing() -> Result<()> {
    rules(&["S-180"]);
    let mut rig = Rig::without_agents(Variant::default())?;
    let before = traces(&rig, 0)?;
    for end in ["running", "stopped", "killed"] {
        rig.start_agents(&[])?;
        let to = rig.address(Target::ClusterIp("all"), IpFamily::V4);
        let plan = Plan::new(SocketKind::Tcp, to).times(10);
        let report = rig.client(Client::PodAsPackets)?.connect(plan)?;
        ensure!(report.failed() == 0, "{report:?}");
        ensure!(
            traces(&rig, 0)? != before,
            "the agent's hooks are not seen by this test"
        );
        for agent in &mut rig.agents {
            match end {
                "stopped" => agent.stop()?,
                "killed" => agent.kill()?,
                _ => {}
            }
        }
        if end == "running" {
            // An agent that goes on would only make everything again.
            rig.agents
                .iter_mut()
                .try_for_each(tests::agent::Agent::stop)?;
        }
        for agent in &rig.agents {
            agent
                .cleanup()
                .with_context(|| format!("after the agent was {end}"))?;
        }
        for node in [0, 1] {
            let left = pins(&rig, node);
            ensure!(left.is_empty(), "{end}: {left:?} is pinned");
        }
        let after = traces(&rig, 0)?;
        ensure!(after == before, "{end}: before:\n{before}\nafter:\n{after}");
        rig.agents.clear();
    }
    Ok(())
}

/// Two agents on one machine do not touch each other's state.
#[test]
fn cleanup_of_one_node_leaves_the_other_alone() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    rig.agents[1].stop()?;
    rig.agents[1].cleanup()?;
    let to = rig.address(Target::ClusterIp("all"), IpFamily::V4);
    for client in [Client::Pod, Client::PodAsPackets] {
        let report = rig
            .client(client)?
            .connect(Plan::new(SocketKind::Tcp, to).times(30))?;
        ensure!(report.failed() == 0, "{client:?}: {report:?}");
    }
    let left = pins(&rig, 0);
    if left.is_empty() {
        bail!("the pins of n1 are gone");
    }
    Ok(())
}

/// A first start on a node that ran kube-proxy: shunt serves beside what kube-proxy left, which
/// goes on request, twice as well as once, and nothing else does.
#[test]
fn leftovers_of_kube_proxy_go_on_request() -> Result<()> {
    rules(&["S-177", "S-181"]);
    let mut rig = Rig::without_agents(Variant::default())?;
    let netns = rig.cluster.nodes[0].netns.clone();
    let kept = netns.run(&["nft", "--stateless", "list", "ruleset"])?;
    netns.nft(
        "table ip kube-proxy {
             chain services {
             }
         }
         table ip6 kube-proxy {
         }",
    )?;
    rig.start_agents(&[])?;
    let to = rig.address(Target::ClusterIp("all"), IpFamily::V4);
    let plan = Plan::new(SocketKind::Tcp, to).times(10);
    let report = rig.client(Client::PodAsPackets)?.connect(plan)?;
    ensure!(report.failed() == 0, "{report:?}");
    for removed in [2, 0] {
        let text = rig.agents[0].shunt(&["cleanup", "--kube-proxy", "-o", "json"])?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        let count = answer["removed"].as_array().map(Vec::len);
        ensure!(count == Some(removed), "{text}");
    }
    let left = netns.run(&["nft", "--stateless", "list", "ruleset"])?;
    ensure!(left == kept, "before:\n{kept}\nafter:\n{left}");
    ensure!(!pins(&rig, 0).is_empty(), "shunt's own pins are gone");
    Ok(())
}
