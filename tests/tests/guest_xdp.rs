//! XDP below bonds and VLANs: where the kernel takes it, what it does not get, and that nothing is
//! lost either way. These tests run in the machines that `cargo xtask kernels` boots.

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::crossing::{
    Counted, FAR, N1, PACKETS, REDIRECTED, TIMEOUT_MS, all_paths, attach_type, interface_status,
    peers, served,
};
use tests::rig::{Client, Rig, Target};
use tests::rules;
use tests::topology::addresses::FAMILIES;
use tests::topology::{Device, Node, Offloads, Variant};
use tests::traffic::{Held, Plan, SocketKind, StreamPlan};

use Client::Outside;
use Target::{NodePort1, NodePort2};

/// More than a window.
const STREAM_BYTES: u64 = 1 << 20;
/// The release whose bonds take XDP (kernel commit 9e2ee5c7e7c3).
const BONDS: (u32, u32) = (5, 15);

/// Where XDP ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Native,
    Generic,
    Nowhere,
}

/// A cluster without agents, whose links leave no checksum to a device (P-10).
fn rig(device: Device) -> Result<Rig> {
    Rig::without_agents(Variant {
        device,
        offloads: Offloads::Off,
        ..Variant::default()
    })
}

/// Starts the agents, or others in their place, with this choice.
fn choose(rig: &mut Rig, choice: &str) -> Result<()> {
    if rig.agents.is_empty() {
        return rig.start_agents(&["--xdp", choice]);
    }
    for agent in &mut rig.agents {
        agent.set("--xdp", choice)?;
        agent.kill()?;
        agent.run()?;
    }
    Ok(())
}

/// What agents and kernel say of `link`, which have to agree.
fn mode(rig: &Rig, link: &str) -> Result<Mode> {
    let mut modes = Vec::new();
    for (agent, node) in rig.agents.iter().zip(&rig.cluster.nodes) {
        let status = agent.status()?;
        let said = match &interface_status(&status, link)?["xdp"] {
            Value::String(mode) if mode == "native" => Mode::Native,
            Value::String(mode) if mode == "generic" => Mode::Generic,
            _ => Mode::Nowhere,
        };
        let found = mode_in_kernel(node, link)?;
        ensure!(said == found, "{link}: said {said:?}, found {found:?}");
        modes.push(found);
    }
    ensure!(modes[0] == modes[1], "{link}: {modes:?}");
    Ok(modes[0])
}

fn mode_in_kernel(node: &Node, link: &str) -> Result<Mode> {
    let shown = node.netns.run(&["ip", "link", "show", "dev", link])?;
    let mut words = shown.split_whitespace();
    let word = words.find(|word| word.starts_with("xdp"));
    Ok(match word {
        None => Mode::Nowhere,
        Some(word) if word.starts_with("xdpgeneric") => Mode::Generic,
        Some(_) => Mode::Native,
    })
}

/// Every path, refusals and streams; what XDP had of it shows in its counters.
fn nothing_is_lost(rig: &mut Rig, mode: Mode) -> Result<()> {
    let before = Counted::by(&rig.agents[N1])?;
    // What is lost shows with the first of many.
    for target in [FAR.1, NodePort1("near"), NodePort2("near")] {
        for family in FAMILIES {
            let plan = Plan::new(SocketKind::Tcp, rig.address(target, family));
            let report = rig.client(Outside)?.connect(plan.timeout_ms(TIMEOUT_MS))?;
            let risen = before.since(&rig.agents[N1])?;
            ensure!(
                report.failed() == 0,
                "{target:?} {family:?}: {report:?} {risen:?}"
            );
        }
    }
    all_paths(rig)?;
    for family in FAMILIES {
        let to = rig.address(FAR.1, family);
        let plan = StreamPlan {
            timeout_ms: TIMEOUT_MS,
            ..StreamPlan::new(to, STREAM_BYTES)
        };
        let report = rig.client(Outside)?.stream(plan)?;
        ensure!(report.bytes == STREAM_BYTES, "{family:?}: {report:?}");
    }
    refused(rig, NodePort1("empty"))?;
    let risen = before.since(&rig.agents[N1])?;
    let [passed, answered] = ["XdpPassed", "XdpAnswered"].map(|name| risen.contains_key(name));
    // In generic code it refuses and drops, and sends nothing on.
    let is_somewhere = mode != Mode::Nowhere;
    ensure!(
        [passed, answered] == [is_somewhere; 2],
        "{mode:?}: {risen:?}"
    );
    Ok(())
}

fn refused(rig: &mut Rig, target: Target) -> Result<()> {
    for family in FAMILIES {
        let plan = Plan::new(SocketKind::Tcp, rig.address(target, family));
        let plan = plan.times(2).timeout_ms(TIMEOUT_MS);
        let report = rig.client(Outside)?.connect(plan)?;
        let refused = report.failures.get("ECONNREFUSED");
        ensure!(refused == Some(&2), "{family:?}: {report:?}");
    }
    Ok(())
}

fn say(device: &str, choice: &str, mode: Mode) {
    let found = match mode {
        Mode::Native => "native",
        Mode::Generic => "generic",
        Mode::Nowhere => "tc only",
    };
    println!("\n@fact XDP at {device}, `--xdp={choice}` = {found}");
}

/// The kernel runs it in the drivers below the bond, where it can, and shows it at the bond.
#[test]
fn bond_runs_xdp_in_its_lower_devices() -> Result<()> {
    rules(&["P-10", "S-120"]);
    let mut rig = rig(Device::Bond)?;
    choose(&mut rig, "auto")?;
    // Its lower devices are veths, whose peers run none: what XDP sends would be lost.
    ensure!(mode(&rig, "up0")? == Mode::Nowhere);
    say("a bond of veths", "auto", Mode::Nowhere);
    nothing_is_lost(&mut rig, Mode::Nowhere)?;

    let _peers = peers(&rig, &["n1-0", "n1-1", "n2-0", "n2-1"])?;
    choose(&mut rig, "native")?;
    let native = match rig.agents[N1].kernel()? >= BONDS {
        true => Mode::Native,
        false => Mode::Nowhere,
    };
    ensure!(mode(&rig, "up0")? == native);
    say("a bond of veths", "native", native);
    nothing_is_lost(&mut rig, native)?;
    fails_over(&mut rig)?;

    choose(&mut rig, "generic")?;
    ensure!(mode(&rig, "up0")? == Mode::Generic);
    say("a bond of veths", "generic", Mode::Generic);
    nothing_is_lost(&mut rig, Mode::Generic)
}

/// What is open goes on by the bond's other half.
fn fails_over(rig: &mut Rig) -> Result<()> {
    let mut held = Vec::new();
    for family in FAMILIES {
        let to = rig.address(FAR.1, family);
        let (number, answer) = rig.client(Outside)?.open(Held::new(SocketKind::Tcp, to))?;
        held.push((number, answer.server));
    }
    rig.cluster.nodes[N1].netns.ip("link set up0-0 down\n")?;
    for (number, server) in held {
        let answer = rig.client(Outside)?.ask(number, 1_000)?;
        ensure!(answer.server == server, "{answer:?}");
    }
    served(rig, FAR, (N1, REDIRECTED))
}

/// A VLAN device has no driver of its own: tc serves it, whatever was chosen.
#[test]
fn vlan_device_is_left_to_tc() -> Result<()> {
    rules(&["P-10"]);
    let mut rig = rig(Device::Vlan)?;
    for choice in ["native", "generic"] {
        choose(&mut rig, choice)?;
        ensure!(mode(&rig, "up0")? == Mode::Nowhere);
        // No address, no route: it is not ours.
        ensure!(mode(&rig, "up0-veth")? == Mode::Nowhere);
        say("a VLAN device", choice, Mode::Nowhere);
        nothing_is_lost(&mut rig, Mode::Nowhere)?;
    }
    Ok(())
}

/// The lower device of a VLAN is an uplink itself. It keeps tags beside the frames, as drivers do
/// that take them off: XDP would send frames of the VLAN on without.
#[test]
fn uplink_below_a_vlan_is_left_to_tc() -> Result<()> {
    rules(&["P-10"]);
    let mut rig = rig(Device::Vlan)?;
    for node in &rig.cluster.nodes {
        let number = node.number;
        node.netns.ip(&format!(
            "addr add 172.31.0.{number}/24 dev up0-veth\n\
             addr add fd31::{number}/64 dev up0-veth nodad\n"
        ))?;
    }
    let _peers = peers(&rig, &["n1-veth", "n2-veth"])?;
    for choice in ["native", "generic"] {
        choose(&mut rig, choice)?;
        for (agent, node) in rig.agents.iter().zip(&rig.cluster.nodes) {
            attach_type(agent, node, "up0-veth")?;
        }
        for link in ["up0", "up0-veth"] {
            let found = mode(&rig, link)?;
            ensure!(found == Mode::Nowhere, "{link}: {found:?}");
        }
        say("an uplink below a VLAN", choice, Mode::Nowhere);
        refused(&mut rig, NodePort1("empty"))?;
        let near = (Outside, NodePort1("near"), &["a"][..]);
        served(&mut rig, near, (N1, PACKETS))?;
        served(&mut rig, FAR, (N1, REDIRECTED))?;
    }
    Ok(())
}
