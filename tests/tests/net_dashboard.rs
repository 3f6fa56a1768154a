//! The dashboard and the alerts of `deploy/` name what a real agent tells, and nothing else.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use proxy_userspace::datapath::load;
use tests::deployed;
use tests::http::get;
use tests::net::eventually;
use tests::promql::Scrape;
use tests::rig::{Client, Rig, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::IpFamily;
use tests::traffic::{Plan, SocketKind};

const METRICS_PORT: u16 = 10_249;
/// On a slice: when what made it change happened.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// For a change to be acted on.
const SOON: Duration = Duration::from_secs(20);

/// What the dashboard asks for, with the title of the panel or the name of the choice.
fn dashboard() -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for panel in deployed::panels()? {
        let targets = panel.targets.into_iter();
        all.extend(targets.map(|target| (panel.title.clone(), target.expression)));
    }
    for [name, metric, label] in deployed::choices()? {
        // As if the metric was grouped by the label.
        all.push((name, format!("sum by ({label}) ({metric})")));
    }
    Ok(all)
}

fn scrape(rig: &mut Rig) -> Result<String> {
    let netns = rig.place(Client::Node)?.netns;
    let (status, text) = get(&netns, ([127, 0, 0, 1], METRICS_PORT).into(), "/metrics")?;
    ensure!(status == 200, "{status} {text}");
    let (_, body) = text.split_once("\r\n\r\n").context("no body")?;
    Ok(body.to_owned())
}

#[test]
fn dashboard_and_alerts_name_only_what_an_agent_tells() -> Result<()> {
    rules(&["S-148", "S-160"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    let to = rig.address(Target::ClusterIp("all"), IpFamily::V4);
    let plan = Plan::new(SocketKind::Tcp, to).times(3);
    let report = rig.client(Client::Pod)?.connect(plan)?;
    ensure!(report.failed() == 0, "{report:?}");
    let scrape = Scrape::read(&scrape(&mut rig)?)?;
    let mut missing = Vec::new();
    let (panels, rules) = (dashboard()?, deployed::alerts()?);
    ensure!(panels.len() > 30 && rules.len() > 10, "little was read");
    for (place, expression) in panels.into_iter().chain(rules) {
        let of_it = scrape.missing(&expression)?;
        missing.extend(of_it.into_iter().map(|it| format!("{place}: {it}")));
    }
    ensure!(missing.is_empty(), "{missing:#?}");
    Ok(())
}

/// The value of the one series that begins so.
fn value(scrape: &str, series: &str) -> Result<f64> {
    let mut lines = scrape.lines();
    let found = lines.find_map(|line| line.strip_prefix(series));
    let value = found.with_context(|| format!("no {series}"))?;
    Ok(value.trim().parse()?)
}

#[test]
fn a_change_of_endpoints_is_one_observation_of_its_latency() -> Result<()> {
    rules(&["S-160", "S-161"]);
    let mut rig = Rig::new(Variant::default(), &[])?;
    let count = r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}"#;
    ensure!(value(&scrape(&mut rig)?, count)? == 0.0);
    let near = rig.services["near"].clone().pods([&rig.pods["client"]]);
    let mut objects = near.objects();
    let now = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"])
        .output()?;
    let now = String::from_utf8(now.stdout)?;
    for slice in objects.iter_mut().skip(1) {
        slice["metadata"]["annotations"] = serde_json::json!({TRIGGER_TIME: now.trim()});
    }
    rig.manifests.write("near", &objects)?;
    eventually(SOON, || {
        let scrape = scrape(&mut rig)?;
        ensure!(value(&scrape, count)? == 1.0, "{scrape}");
        let pending = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
        ensure!(value(&scrape, pending)? == 0.0, "{scrape}");
        Ok(())
    })
}

#[test]
fn series_are_as_many_as_the_operator_wants() -> Result<()> {
    let limits = ["--metrics-service-ports", "3", "--metrics-backends", "2"];
    let mut rig = Rig::new(Variant::default(), &limits)?;
    let scrape = scrape(&mut rig)?;
    let series = |name: &str| scrape.lines().filter(|it| it.starts_with(name)).count();
    // And one for all others.
    ensure!(series("shunt_service_connections_total{") == 4, "{scrape}");
    ensure!(series("shunt_backend_connections_total{") == 2, "{scrape}");
    Ok(())
}

/// Masqueraded connections that are made to one backend.
const MASQUERADED: u32 = 5;

#[test]
fn used_snat_ports_and_runs_of_programs_are_told() -> Result<()> {
    rules(&["S-148"]);
    let mut rig = Rig::new(Variant::default(), &["--program-stats"])?;
    let to = rig.address(Target::NodePort1("far"), IpFamily::V4);
    let plan = Plan::new(SocketKind::Tcp, to).times(MASQUERADED);
    let report = rig.client(Client::Outside)?.connect(plan)?;
    ensure!(report.failed() == 0, "{report:?}");
    let scrape = scrape(&mut rig)?;
    // Its tuple stays a connection's for a while after its end.
    let most = ["a", "b", "c"]
        .map(|pod| report.count(pod))
        .into_iter()
        .max();
    let used = value(&scrape, "shunt_snat_ports_used")?;
    ensure!(
        Some(used) == most.map(f64::from) && used > 0.0,
        "{used} ports, {report:?}"
    );
    // Maps are pinned beside programs.
    let told = scrape.lines().filter_map(|line| {
        let rest = line.strip_prefix("shunt_program_runs_total{program=\"")?;
        rest.split('"').next()
    });
    let unknown: Vec<&str> = told
        .filter(|name| load::programs().all(|program| program != *name))
        .collect();
    ensure!(unknown.is_empty(), "{unknown:?} are no programs");
    for program in ["tc_ingress", "tc_egress"] {
        let series = |name: &str| format!("shunt_program_{name}{{program=\"{program}\"}}");
        let runs = value(&scrape, &series("runs_total"))?;
        let secs = value(&scrape, &series("run_seconds_total"))?;
        ensure!(
            runs > 0.0 && secs > 0.0,
            "{program}: {runs} runs, {secs} s\n{scrape}"
        );
    }
    Ok(())
}
