//! What BPF programs log of single packets: nothing, and without a ring, unless the operator asks
//! for it; then into the agent's log, whose level applies.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use aya::programs::ProgramInfo;
use proxy_userspace::datapath::bpf_log::RING;
use proxy_userspace::datapath::load::{ETHERNET_PROGRAMS, SOCKET_PROGRAMS};
use proxy_userspace::datapath::pin::{PinKind, Pins};
use serde_json::Value;
use tests::net::eventually;
use tests::rig::{Client, Rig, Target};
use tests::topology::Variant;
use tests::topology::addresses::{FAMILIES, IpFamily};
use tests::traffic::{Plan, SocketKind};

use Client::{Outside, PodAsPackets};
use Target::{ClusterIp, NodePort1};

/// For a line to be read and written.
const SOON: Duration = Duration::from_secs(20);

/// One connection; what was dialed, as the log has it.
fn connect(rig: &mut Rig, client: Client, target: Target, family: IpFamily) -> Result<String> {
    let to = rig.address(target, family);
    rig.client(client)?
        .connect(Plan::new(SocketKind::Tcp, to).times(1))?;
    Ok(format!("-> {to} "))
}

/// Level and text of the lines that programs of n1 have written into its agent's log.
fn logged(rig: &Rig) -> Result<Vec<(String, String)>> {
    let log = rig.agents[0].log()?;
    let mut lines = Vec::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let message = text(&line["fields"]["message"]);
        if message.starts_with("bpf: ") {
            lines.push((text(&line["level"]), message));
        }
    }
    Ok(lines)
}

/// Waits for a line with these parts, and returns it with its level.
fn await_line(rig: &Rig, parts: &[&str]) -> Result<(String, String)> {
    eventually(SOON, || {
        let lines = logged(rig)?;
        let has_all = |line: &&(String, String)| parts.iter().all(|part| line.1.contains(part));
        let found = lines.iter().find(has_all).cloned();
        found.with_context(|| format!("no {parts:?} in {lines:#?}"))
    })
}

/// Names of the maps of all programs of n1 that every agent loads.
fn maps(rig: &Rig) -> Result<Vec<String>> {
    let pins = Pins::at(&rig.cluster.nodes[0].bpffs);
    let mut names = Vec::new();
    for program in ETHERNET_PROGRAMS.into_iter().chain(SOCKET_PROGRAMS) {
        let info = ProgramInfo::from_pin(pins.path(PinKind::Programs, program))?;
        for id in info.map_ids()?.context("map ids")? {
            let map = MapInfo::from_id(id)?;
            names.push(map.name_as_str().context("a name")?.to_owned());
        }
    }
    ensure!(names.iter().any(|name| name == "COUNTERS"), "{names:?}");
    Ok(names)
}

fn has_ring(rig: &Rig) -> Result<bool> {
    let pins = Pins::at(&rig.cluster.nodes[0].bpffs);
    let is_pinned = pins.names(PinKind::Programs).contains(RING);
    let is_used = maps(rig)?.iter().any(|name| name == RING);
    ensure!(is_pinned == is_used, "pinned: {is_pinned}, used: {is_used}");
    Ok(is_used)
}

#[test]
fn refusals_are_logged_where_they_are_asked_for() -> Result<()> {
    let words = ["--bpf-log", "info", "--log-format", "json"];
    let mut rig = Rig::new(Variant::default(), &words)?;
    ensure!(has_ring(&rig)?);
    for family in FAMILIES {
        for (client, target) in [
            (PodAsPackets, ClusterIp("empty")),
            (Outside, NodePort1("empty")),
        ] {
            let to = connect(&mut rig, client, target, family)?;
            let (level, line) = await_line(&rig, &["RejectNoEndpoint", " TCP ", &to])?;
            ensure!(level == "INFO", "{level}: {line}");
            ensure!(line.contains("(tc ingress, interface "), "{line}");
            let own = rig.own_addresses(client);
            let source = own.iter().any(|own| {
                let own = own.of(family);
                let shown = match family {
                    IpFamily::V4 => format!(" {own}:"),
                    IpFamily::V6 => format!(" [{own}]:"),
                };
                line.contains(&shown)
            });
            ensure!(source, "{line}");
        }
    }
    // New flows were not asked for.
    let flow = logged(&rig)?
        .into_iter()
        .find(|line| line.1.contains("NewFlow"));
    ensure!(flow.is_none(), "{flow:?}");
    Ok(())
}

#[test]
fn the_level_of_the_log_applies_to_what_programs_log() -> Result<()> {
    let words = ["--bpf-log", "debug", "--log-format", "json"];
    let mut rig = Rig::new(Variant::default(), &words)?;
    let bpffs = rig.agents[0].bpffs();
    let hidden = connect(&mut rig, PodAsPackets, ClusterIp("near"), IpFamily::V4)?;
    // One ring: what comes behind it in the ring was read behind it.
    let refused = connect(&mut rig, PodAsPackets, ClusterIp("empty"), IpFamily::V4)?;
    await_line(&rig, &["RejectNoEndpoint", &refused])?;
    let lines = logged(&rig)?;
    ensure!(
        !lines.iter().any(|line| line.1.contains(&hidden)),
        "{lines:#?}"
    );

    let words = ["log-level", "--bpffs", &bpffs, "info,bpf=debug"];
    rig.agents[0].shunt(&words)?;
    for family in FAMILIES {
        let to = connect(&mut rig, PodAsPackets, ClusterIp("far"), family)?;
        let (level, line) = await_line(&rig, &["NewFlow TCP ", &to, " to "])?;
        ensure!(level == "DEBUG", "{level}: {line}");
        let backends = ["b", "c"].map(|pod| {
            let addr = rig.pods[pod].addresses.of(family);
            std::net::SocketAddr::from((addr, tests::rig::TARGET_PORT)).to_string()
        });
        let is_backend = backends
            .iter()
            .any(|it| line.contains(&format!(" to {it} (")));
        ensure!(is_backend, "{line}");
    }
    Ok(())
}

#[test]
fn programs_are_loaded_anew_where_they_are_to_log_otherwise() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &["--log-format", "json"])?;
    ensure!(!has_ring(&rig)?);
    connect(&mut rig, PodAsPackets, ClusterIp("empty"), IpFamily::V4)?;
    for (words, is_there) in [
        (["--bpf-log", "warn"].as_slice(), true),
        (["--bpf-log", "off"].as_slice(), false),
        (["--bpf-log", "info"].as_slice(), true),
        // Adopted: the ring too.
        (["--bpf-log", "info"].as_slice(), true),
    ] {
        rig.agents[0].stop()?;
        rig.agents[0].run_with(words)?;
        ensure!(has_ring(&rig)? == is_there, "{words:?}");
    }
    ensure!(logged(&rig)?.is_empty());
    let to = connect(&mut rig, PodAsPackets, ClusterIp("empty"), IpFamily::V4)?;
    await_line(&rig, &["RejectNoEndpoint", &to])?;
    rig.agents[0].stop()?;
    rig.agents[0].run()?;
    ensure!(!has_ring(&rig)?);
    Ok(())
}
