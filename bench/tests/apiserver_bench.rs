//! The benchmark against a real API server, small, with the real kube-proxy beside it.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::rules;

fn bench(words: &[&str], more: &[&Path]) -> Result<Output> {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(["control-plane", "--source", "apiserver"]);
    Ok(bench.args(words).args(more).output()?)
}

/// True for an object that has exactly these fields.
fn has_fields(value: &Value, fields: &[&str]) -> bool {
    let found = value.as_object();
    found.is_some_and(|found| {
        found.len() == fields.len() && fields.iter().all(|field| found.contains_key(*field))
    })
}

#[test]
fn control_plane_is_measured_beside_kube_proxy_and_drawn() -> Result<()> {
    rules(&["S-006", "S-007", "S-216"]);
    let folder = tempfile::tempdir()?;
    let svg = folder.path().join("plot.svg");
    let sizes = "--services 40 --endpoints 400 --changes 1 --storm-secs 2 --storm-rate 100";
    let words: Vec<&str> = sizes.split(' ').chain(["--json", "--plot"]).collect();
    let output = bench(&words, &[&svg])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let last = text.lines().last().context("it printed nothing")?;
    let figures: Value = serde_json::from_str(last).with_context(|| last.to_owned())?;
    let fields = "source services endpoints cold_start_s cold_cpu_ms change_us change_from_api_ms \
                  writes_per_change rss_mib maps_mib flow_maps_mib";
    let fields: Vec<&str> = fields.split(' ').collect();
    ensure!(has_fields(&figures, &fields), "{last}");
    ensure!(has_fields(&figures["change_us"], &["p50", "p99"]), "{last}");
    let from_api = &figures["change_from_api_ms"];
    ensure!(has_fields(from_api, &["p50", "p99", "watch_p99"]), "{last}");
    ensure!(
        (
            &figures["source"],
            &figures["services"],
            &figures["endpoints"]
        ) == (&"apiserver".into(), &40.into(), &400.into()),
        "{last}"
    );
    ensure!(figures["writes_per_change"] == 5.0, "{last}");
    ensure!(text.contains("exact state of 40 Services"), "{text}");
    let drawn = std::fs::read_to_string(&svg)?;
    for name in ["shunt", "kube-proxy nftables", "kube-proxy iptables"] {
        // Each has a bar with a number in each of the three panels.
        let label = format!("{name}: ");
        ensure!(drawn.matches(&label).count() == 3, "{name} in {drawn}");
        ensure!(!drawn.contains(&format!("{label}did not finish")), "{name}");
    }
    let png = std::fs::read(svg.with_extension("png"))?;
    ensure!(png.starts_with(b"\x89PNG\r\n"), "no picture");
    Ok(())
}

#[test]
fn peer_that_does_not_start_is_an_error() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir()?;
    let peer = folder.path().join("kube-proxy");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && echo Kubernetes v1.0.0 && exit 0\n\
                  echo nothing works here\nexit 3\n";
    std::fs::write(&peer, script)?;
    std::fs::set_permissions(&peer, std::fs::Permissions::from_mode(0o755))?;
    let sizes = "--services 2 --endpoints 2 --changes 1 --storm-secs 0 --peers --kube-proxy";
    let words: Vec<&str> = sizes.split(' ').collect();
    let output = bench(&words, &[&peer])?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it succeeded");
    ensure!(
        error.contains("kube-proxy nftables") && error.contains("nothing works here"),
        "{error}"
    );
    Ok(())
}
