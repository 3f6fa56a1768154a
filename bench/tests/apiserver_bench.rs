//! The benchmarks with a real API server and the real kube-proxy, small.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::rules;

fn bench(words: &[&str], more: &[&Path]) -> Result<Output> {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(["control-plane", "--source", "apiserver"]);
    Ok(bench.args(words).args(more).output()?)
}

/// What a benchmark that went well has printed, and the JSON of its last line.
fn printed(output: Output) -> Result<(String, Value)> {
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let last = text.lines().last().context("it printed nothing")?;
    let figures = serde_json::from_str(last).with_context(|| last.to_owned())?;
    Ok((text, figures))
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
    let (text, figures) = printed(output)?;
    let last = &figures;
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

/// A kube-proxy that ends at once.
fn broken_peer(folder: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let peer = folder.join("kube-proxy");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && echo Kubernetes v1.0.0 && exit 0\n\
                  echo nothing works here\nexit 3\n";
    std::fs::write(&peer, script)?;
    std::fs::set_permissions(&peer, std::fs::Permissions::from_mode(0o755))?;
    Ok(peer)
}

#[test]
fn peer_that_does_not_start_is_an_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let peer = broken_peer(folder.path())?;
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

#[test]
fn peer_of_the_network_that_does_not_start_is_an_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(["network", "--quick", "--kube-proxy"]);
    let output = bench.arg(broken_peer(folder.path())?).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it succeeded");
    ensure!(
        error.contains("Iptables") && error.contains("nothing works here"),
        "{error}"
    );
    Ok(())
}

/// What `network` has to measure: path, state of offloads, and who translates.
const NETWORK: [(&str, &str, &[&str]); 4] = [
    ("cluster_ip", "on", &["direct", "shunt_socket", "shunt_tc"]),
    ("node_port_local", "on", &["direct", "shunt_tc"]),
    ("node_port_remote", "on", &["direct", "shunt_tc"]),
    (
        "node_port_remote",
        "off",
        &["direct", "shunt_tc", "shunt_xdp"],
    ),
];

#[test]
fn all_benchmarks_run_with_their_peers_into_one_page() -> Result<()> {
    rules(&["P-10", "S-091"]);
    let folder = tempfile::tempdir()?;
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(["all", "--quick", "--json", "--folder"]);
    let output = bench.arg(folder.path()).output()?;
    let (_, found) = printed(output)?;
    for part in ["datapath", "control_plane"] {
        let rows = found[part].as_array().context(part)?;
        ensure!(rows.len() >= 3, "{part}: {rows:?}");
    }
    check_network(&found["network"])?;
    let page = std::fs::read_to_string(folder.path().join("benchmarks.md"))?;
    for part in ["datapath", "network", "control-plane"] {
        let picture = format!("benchmarks-{part}.svg");
        ensure!(page.contains(&picture), "{picture} in {page}");
        let drawn = std::fs::read_to_string(folder.path().join(picture))?;
        ensure!(drawn.contains("<svg"), "{drawn}");
    }
    Ok(())
}

/// Every row is there, with a figure, a ratio to direct, and of ours one to kube-proxy and what
/// its hook has answered.
fn check_network(network: &Value) -> Result<()> {
    let rows = network["rows"].as_array().context("rows")?;
    let mut found = BTreeSet::new();
    for row in rows {
        let word = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let is_positive = |value: &Value| value.as_f64() > Some(0.0);
        ensure!(is_positive(&row["value"]), "{row}");
        for field in ["median", "low", "high"] {
            ensure!(is_positive(&row["to_direct"][field]), "{row}");
        }
        if word("by").starts_with("shunt") {
            ensure!(is_positive(&row["to_kube_proxy"]["median"]), "{row}");
            ensure!(row["by_hook"].as_f64() >= Some(0.99), "{row}");
        }
        found.insert(["path", "offloads", "by", "figure"].map(word));
    }
    let figures = [
        "tcp_stream",
        "latency_p50",
        "latency_p99",
        "connects",
        "udp_packets",
    ];
    let mut expected = BTreeSet::new();
    for (path, offloads, ways) in NETWORK {
        for by in ways
            .iter()
            .chain(&["kube_proxy_iptables", "kube_proxy_nftables"])
        {
            for figure in figures {
                expected.insert([path, offloads, by, figure].map(str::to_owned));
            }
        }
    }
    ensure!(found == expected, "{found:?}");
    let overheads = network["connect_overhead_ns"].as_array();
    ensure!(overheads.is_some_and(|all| all.len() == 1), "{network}");
    Ok(())
}
