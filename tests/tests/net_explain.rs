//! `shunt explain` over the maps of a running agent says what it says over the objects.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::rig::{Client, Rig, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::{FAMILIES, PODS4, PODS6};

/// Every Service by ClusterIP and by node port, from a pod, the node itself and outside, and an
/// unknown port.
fn packets(rig: &Rig) -> Vec<Value> {
    let mut packets = Vec::new();
    for family in FAMILIES {
        let clients = [
            (Client::Pod, "pod"),
            (Client::Node, "node"),
            (Client::Outside, "external"),
        ];
        for (client, from) in clients {
            let src = rig.own_addresses(client)[0].of(family);
            for name in ["all", "near", "far", "self", "empty"] {
                for target in [Target::ClusterIp(name), Target::NodePort1(name)] {
                    let dst = rig.address(target, family);
                    for (protocol, more) in [("tcp", 0), ("udp", 0), ("tcp", 1000)] {
                        packets.push(json!({
                            "src": src, "dst": dst.ip(), "dport": dst.port() + more,
                            "protocol": protocol, "from": from,
                        }));
                    }
                }
            }
        }
    }
    packets
}

/// Answers without what depends on ids, names of routes and words.
fn comparable(text: &str) -> Result<Vec<Value>> {
    let mut answers: Vec<Value> = serde_json::from_str(text)?;
    for answer in &mut answers {
        let answer = answer.as_object_mut().context("an answer")?;
        for field in ["stages", "reason", "snat_address", "chosen"] {
            answer.remove(field);
        }
    }
    Ok(answers)
}

#[test]
fn live_maps_and_manifests_give_the_same_answers() -> Result<()> {
    rules(&["S-071", "S-077", "S-080", "S-091", "S-105"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    let packets = packets(&rig);
    let file = rig.cluster.sandbox().dir().join("packets.json");
    fs::write(&file, serde_json::to_string(&packets)?)?;
    let file = file.display().to_string();
    let agent = &rig.agents[0];
    let bpffs = agent.bpffs();
    let live = ["explain", "--bpffs", &bpffs, "--packets", &file];
    let manifests = rig.manifests.dir().display().to_string();
    let cidrs = format!("{PODS4},{PODS6}");
    let by_objects = agent.shunt(&[
        "explain",
        "--manifests",
        &manifests,
        "--node-name",
        "n1",
        "--cluster-cidr",
        &cidrs,
        "--packets",
        &file,
    ])?;
    let expected = comparable(&by_objects)?;
    let found = comparable(&agent.shunt(&live)?)?;
    ensure!(expected.len() == packets.len());
    ensure!(expected.iter().any(|answer| answer["verdict"] == "dnat"));
    for ((packet, expected), found) in packets.iter().zip(&expected).zip(&found) {
        ensure!(
            expected == found,
            "{packet}: {expected:#} by objects, {found:#} live"
        );
    }
    // The maps outlive the agent; only the names are its own.
    rig.agents[0].kill()?;
    let dead = comparable(&rig.agents[0].shunt(&live)?)?;
    for ((packet, expected), found) in packets.iter().zip(&expected).zip(&dead) {
        for field in ["verdict", "kind", "backends", "snat", "hairpin"] {
            ensure!(
                expected[field] == found[field],
                "{packet}: {field} of {found:#}"
            );
        }
        let name = found["service"].as_str();
        ensure!(name.is_none_or(|name| name.starts_with('#')), "{found:#}");
    }
    Ok(())
}
