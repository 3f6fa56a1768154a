//! What an operator sees of connections: `shunt flows` and the counts of `shunt service`.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use proxy_userspace::datapath::sys;
use serde_json::{Value, json};
use tests::http::get;
use tests::net::eventually;
use tests::rig::{Client, Rig, Target};
use tests::topology::Variant;
use tests::topology::addresses::IpFamily;
use tests::traffic::{Held, Plan, SocketKind};

use Client::{Outside, PodAsPackets};
use Target::{ClusterIp, NodePort1};

const METRICS_PORT: u16 = 10_249;
/// For a change to be acted on.
const SOON: Duration = Duration::from_secs(20);

fn json(rig: &Rig, words: &[&str]) -> Result<Vec<Value>> {
    let bpffs = rig.agents[0].bpffs();
    let text = rig.agents[0].shunt(&[words, &["-o", "json", "--bpffs", &bpffs]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("reading {text}"))
}

#[test]
fn status_tells_what_serves_and_its_code_whether_all_is_well() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let bpffs = rig.agents[0].bpffs();
    let ask = |rig: &Rig, form: &str| {
        let words = ["status", "-o", form, "--bpffs", &bpffs];
        rig.agents[0].shunt_answer(&words)
    };
    let (code, text) = ask(&rig, "json")?;
    let status: Value = serde_json::from_str(&text)?;
    ensure!(code == 0 && status["unhealthy"] == json!([]), "{text}");
    ensure!(status["source"]["kind"] == "manifests", "{text}");
    ensure!(status["objects"]["services"] == 5, "{text}");
    ensure!(status["objects"]["endpointSlices"] == 10, "{text}");
    ensure!(status["objects"]["withoutAddress"] == json!([]), "{text}");
    ensure!(status["syncedSecs"].is_u64() && status["updatedSecs"].is_u64());
    programs_and_maps_are_listed(&status)?;
    for word in [
        "Healthy:      yes",
        "up0",
        "FRONTENDS4",
        "5 Services",
        "manifests /",
    ] {
        let (_, text) = ask(&rig, "table")?;
        ensure!(text.contains(word), "no {word:?}: {text}");
    }

    // The other form says the same, as far as time has not passed.
    let (_, yaml) = ask(&rig, "yaml")?;
    let yaml: Value = serde_saphyr::from_str(&yaml)?;
    for field in ["node", "objects", "programs", "interfaces", "features"] {
        ensure!(yaml[field] == status[field], "{field}: {:#}", yaml[field]);
    }

    // An address that nobody has given yet is no fault of the node.
    let waits = json!({"type": "LoadBalancer"});
    rig.add("near", rig.services["near"].clone().spec(waits))?;
    eventually(SOON, || {
        let status = rig.agents[0].status()?;
        ensure!(status["objects"]["withoutAddress"] == json!(["demo/near"]));
        ensure!(status["unhealthy"] == json!([]), "{status:#}");
        Ok(())
    })?;

    // A program that somebody detached, and an agent that is gone.
    let pinned = rig.cluster.nodes[0].bpffs.join("shunt/links/connect4");
    sys::link_detach(sys::open_pinned(&pinned)?.as_fd())?;
    let (code, text) = ask(&rig, "json")?;
    let status: Value = serde_json::from_str(&text)?;
    let reasons = json!(["nothing runs at connect4"]);
    ensure!(code == 1 && status["unhealthy"] == reasons, "{text}");
    rig.agents[0].kill()?;
    let (code, text) = ask(&rig, "table")?;
    ensure!(code == 1 && text.contains("no: no agent runs"), "{text}");
    Ok(())
}

fn programs_and_maps_are_listed(status: &Value) -> Result<()> {
    let programs = status["programs"].as_array().context("programs")?;
    for (interface, hook) in [(json!("up0"), "ingress"), (json!("up0"), "egress")]
        .into_iter()
        .chain([(Value::Null, "connect4"), (Value::Null, "getpeername6")])
    {
        let is_it = |it: &&Value| it["interface"] == interface && it["hook"] == hook;
        let program = programs.iter().find(is_it).context("a program")?;
        ensure!(program["programId"].is_u64(), "{program:#}");
        ensure!(program["linkId"].is_u64() || program["mode"] == "clsact");
    }
    let maps = status["maps"].as_array().context("maps")?;
    let map = |name: &str| maps.iter().find(|map| map["name"] == name);
    let frontends = map("FRONTENDS4").context("FRONTENDS4")?;
    ensure!(frontends["used"].as_u64() >= Some(10) && frontends["evicts"] == false);
    ensure!(map("SLOTS").is_some_and(|map| map["used"].as_u64() > Some(0)));
    ensure!(map("FLOWS4").is_some_and(|map| map["evicts"] == true));
    Ok(())
}

/// Ends a process with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Holds a connection; what was dialed and who answers.
fn hold(rig: &mut Rig, client: Client, target: Target) -> Result<(SocketAddr, String)> {
    let to = rig.address(target, IpFamily::V4);
    let held = Held::new(SocketKind::Tcp, to);
    let (number, answer) = rig.client(client)?.open(held)?;
    rig.client(client)?.ask(number, 10)?;
    Ok((to, answer.server))
}

#[test]
fn flows_name_service_and_addresses_with_and_without_an_agent() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let (cluster_ip, server) = hold(&mut rig, PodAsPackets, ClusterIp("all"))?;
    let (node_port, _) = hold(&mut rig, Outside, NodePort1("far"))?;
    let flows = json(&rig, &["flows", "--service", "all"])?;
    ensure!(flows.len() == 1, "{flows:#?}");
    let flow = &flows[0];
    let backend = SocketAddr::from((rig.pods[&server].addresses.v4, tests::rig::TARGET_PORT));
    ensure!(
        flow["service"]
            .as_str()
            .is_some_and(|name| name.contains("/all:")),
        "{flow:#}"
    );
    ensure!(flow["frontend"] == cluster_ip.to_string(), "{flow:#}");
    ensure!(flow["backend"] == backend.to_string(), "{flow:#}");
    ensure!(
        flow["state"] == "Established" && flow["snat"] == false,
        "{flow:#}"
    );
    ensure!(
        flow["idleSecs"].as_u64().is_some_and(|secs| secs < 60),
        "{flow:#}"
    );
    // Masqueraded, for its backend is on the other node.
    let flows = json(&rig, &["flows", "--service", "far"])?;
    ensure!(flows.len() == 1, "{flows:#?}");
    let flow = &flows[0];
    ensure!(
        flow["snat"] == true && flow["frontend"] == node_port.to_string(),
        "{flow:#}"
    );
    let ip = |field: &str| -> Result<IpAddr> {
        let address: SocketAddr = flow[field].as_str().context("an address")?.parse()?;
        Ok(address.ip())
    };
    ensure!(ip("source")? == node_port.ip(), "{flow:#}");
    ensure!(
        ip("client")? == IpAddr::from(rig.cluster.client.addresses.v4),
        "{flow:#}"
    );
    ensure!(flow["redirectedTo"].is_string(), "{flow:#}");
    let to_backend = flow["backend"].as_str().context("a backend")?.to_owned();
    let same = json(&rig, &["flows", "--backend", &to_backend])?;
    ensure!(
        same.iter().any(|it| it["frontend"] == flow["frontend"]),
        "{same:#?}"
    );
    ensure!(json(&rig, &["flows", "--service", "near"])?.is_empty());
    rig.agents[0].kill()?;
    let flows = json(&rig, &["flows"])?;
    ensure!(flows.len() >= 2, "{flows:#?}");
    let is_id = |flow: &Value| {
        flow["service"]
            .as_str()
            .is_some_and(|it| it.starts_with('#'))
    };
    ensure!(flows.iter().all(is_id), "{flows:#?}");
    Ok(())
}

#[test]
fn a_watch_of_flows_prints_each_change_as_a_line() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &[])?;
    let place = rig.place(Client::Node)?;
    let binary = tests::agent::binary()?;
    let bpffs = rig.agents[0].bpffs();
    let mut command = Command::new(binary);
    command.args([
        "flows",
        "-w",
        "--service",
        "near",
        "-o",
        "json",
        "--bpffs",
        &bpffs,
    ]);
    let mut child = Ended(place.spawn(command.stdout(Stdio::piped()))?);
    let mut lines = BufReader::new(child.0.stdout.take().context("a pipe")?).lines();
    let (to, _) = hold(&mut rig, PodAsPackets, ClusterIp("near"))?;
    let line = lines.next().context("a line")??;
    let event: Value = serde_json::from_str(&line)?;
    ensure!(event["change"] == "new", "{line}");
    ensure!(event["flow"]["frontend"] == to.to_string(), "{line}");
    Ok(())
}

#[test]
fn connections_are_counted_for_frontend_and_backend_on_every_path() -> Result<()> {
    const TIMES: u32 = 20;
    let mut rig = Rig::new(Variant::default(), &[])?;
    // The socket hooks' path, and the packet path.
    for client in [Client::Pod, PodAsPackets] {
        let to = rig.address(ClusterIp("all"), IpFamily::V4);
        let report = rig
            .client(client)?
            .connect(Plan::new(SocketKind::Tcp, to).times(TIMES))?;
        ensure!(report.failed() == 0, "{report:?}");
        let to = rig.address(ClusterIp("empty"), IpFamily::V4);
        let report = rig
            .client(client)?
            .connect(Plan::new(SocketKind::Tcp, to).times(1))?;
        ensure!(report.failed() == 1, "{report:?}");
    }
    let count = |view: &Value, field: &str| view[field].as_u64().unwrap_or_default();
    let is_dialed = |view: &&Value| {
        view["type"] == "ClusterIP"
            && view["address"]
                .as_str()
                .is_some_and(|address| address.contains('.'))
            && view["protocol"] == "TCP"
    };
    let all = json(&rig, &["service", "get", "all"])?;
    let frontend = all.iter().find(is_dialed).context("a frontend")?;
    ensure!(
        count(frontend, "connections") == u64::from(2 * TIMES),
        "{frontend:#}"
    );
    let backends = frontend["backends"].as_array().context("backends")?;
    let sum: u64 = backends
        .iter()
        .map(|backend| count(backend, "connections"))
        .sum();
    ensure!(sum == u64::from(2 * TIMES), "{frontend:#}");
    ensure!(
        backends.iter().all(|it| count(it, "connections") > 0),
        "{frontend:#}"
    );
    let empty = json(&rig, &["service", "get", "empty"])?;
    let frontend = empty.iter().find(is_dialed).context("a frontend")?;
    ensure!(count(frontend, "refused") >= 2, "{frontend:#}");
    let netns = rig.place(Client::Node)?.netns;
    let (_, scrape) = get(&netns, ([127, 0, 0, 1], METRICS_PORT).into(), "/metrics")?;
    let is_series = |line: &str| {
        line.starts_with("shunt_service_connections_total")
            && line.contains("\"all\"")
            && line.ends_with(&format!(" {}", 2 * TIMES))
    };
    ensure!(scrape.lines().any(is_series), "{scrape}");
    // They outlive the agent.
    rig.agents[0].run()?;
    let again = json(&rig, &["service", "get", "all"])?;
    let frontend = again.iter().find(is_dialed).context("a frontend")?;
    ensure!(
        count(frontend, "connections") == u64::from(2 * TIMES),
        "{frontend:#}"
    );
    Ok(())
}

#[test]
fn log_level_is_set_while_the_agent_runs() -> Result<()> {
    let mut rig = Rig::new(Variant::default(), &["--log-format", "json"])?;
    let bpffs = rig.agents[0].bpffs();
    let level = |rig: &Rig, words: &[&str]| {
        rig.agents[0].shunt(&[&["log-level", "--bpffs", &bpffs], words].concat())
    };
    ensure!(level(&rig, &[])?.trim() == "info");
    // Every change is told at the level debug.
    let is_debugged = |rig: &Rig| -> Result<bool> {
        let log = rig.agents[0].log()?;
        let lines = log.lines().map(serde_json::from_str::<Value>);
        let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
        Ok(lines.iter().any(|line| line["level"] == "DEBUG"))
    };
    ensure!(!is_debugged(&rig)?);

    // What makes no sense changes nothing.
    for (bad, named) in [
        ("debgu", "debgu"),
        ("proxy_userspace=loud", "loud"),
        ("", ""),
    ] {
        let error = level(&rig, &[bad]).expect_err("it was taken");
        let text = format!("{error:#}");
        ensure!(text.contains("log-level") && text.contains(named), "{text}");
        ensure!(level(&rig, &[])?.trim() == "info", "after {bad:?}");
    }

    let directives = "warn,proxy_userspace=debug";
    ensure!(level(&rig, &[directives])?.trim() == directives);
    ensure!(level(&rig, &[])?.trim() == directives);
    rig.add(
        "near",
        rig.services["near"]
            .clone()
            .spec(json!({"sessionAffinity": "ClientIP"})),
    )?;
    eventually(SOON, || {
        ensure!(is_debugged(&rig)?, "{}", rig.agents[0].log_tail());
        Ok(())
    })?;

    // The next agent begins with what it is told.
    rig.agents[0].kill()?;
    let error = level(&rig, &["debug"]).expect_err("nobody was there to take it");
    ensure!(format!("{error:#}").contains("no agent runs"), "{error:#}");
    rig.agents[0].run()?;
    ensure!(level(&rig, &[])?.trim() == "info");
    Ok(())
}
