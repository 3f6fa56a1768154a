//! What the benchmark refuses before it measures anything, and what needs no machine.

use std::process::{Command, Output};

use anyhow::{Result, ensure};

fn bench(words: &[&str]) -> Result<Output> {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(words).env_remove("SHUNT_LAB_BIN");
    Ok(bench.output()?)
}

/// The benchmark fails at once, with these words, and has printed no figures.
fn refused(words: &[&str], expected: &str) -> Result<()> {
    let output = bench(words)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{words:?} was accepted");
    ensure!(error.contains(expected), "{words:?}: {error}");
    ensure!(output.stdout.is_empty(), "{words:?} printed something");
    Ok(())
}

#[test]
fn missing_peer_is_an_error_before_anything_is_measured() -> Result<()> {
    let measured = ["control-plane", "--source", "apiserver"];
    let with = |more: &[&'static str]| [&measured, more].concat();
    refused(&with(&["--peers"]), "SHUNT_LAB_BIN is not set")?;
    refused(
        &with(&["--peers", "--kube-proxy", "/no/such/file"]),
        "kube-proxy: /no/such/file is missing",
    )?;
    refused(
        &with(&["--plot", "--kube-proxy", "/bin/false"]),
        "kube-proxy: /bin/false --version says",
    )?;
    for what in [&["network"][..], &["network", "--quick"]] {
        refused(what, "SHUNT_LAB_BIN is not set")?;
    }
    refused(
        &["network", "--kube-proxy", "/no/such/file"],
        "kube-proxy: /no/such/file is missing",
    )?;
    for word in ["--peers", "--plot"] {
        refused(&["control-plane", word], "kube-proxy needs an API server")?;
    }
    Ok(())
}

/// The document quotes what the simulation prints.
#[test]
fn simulated_cluster_is_the_one_of_the_document() -> Result<()> {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scale.md");
    let document = std::fs::read_to_string(document)?;
    let output = bench(&["cluster"])?;
    let printed = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && !printed.is_empty());
    ensure!(
        document.contains(&printed),
        "docs/scale.md does not quote what `cargo xtask bench cluster` prints:\n{printed}"
    );
    Ok(())
}
