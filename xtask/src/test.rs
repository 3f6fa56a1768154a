//! `cargo xtask test`: every layer of tests, from pure functions to a real API server.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::command;
use crate::kernels::{self, Kernel};
use crate::rules;
use crate::setup;

/// What to test.
#[derive(clap::Args)]
pub struct Options {
    /// Only the layers that need neither root nor a kernel feature
    #[arg(long)]
    host: bool,
}

/// Where a file of integration tests belongs; its name says it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Host,
    Kernel,
    ApiServer,
}

#[derive(Default)]
struct Totals {
    passed: u64,
    failed: u64,
    /// Cargo runs that ended badly: failed tests, or tests that did not build.
    bad_runs: u64,
    /// What was said of each test, for `cargo xtask rules`.
    results: Vec<String>,
}

/// Runs the tests and prints cargo's own summaries, then the totals.
pub fn run(options: &Options) -> Result<()> {
    let mut totals = Totals::default();
    let outcome = if options.host {
        host(&mut totals)
    } else {
        everything(&mut totals)
    };
    rules::keep_results(&totals.results)?;
    outcome?;
    println!("\n{} passed, {} failed", totals.passed, totals.failed);
    if totals.failed > 0 || totals.bad_runs > 0 {
        bail!("{} of the test runs failed", totals.bad_runs);
    }
    Ok(())
}

fn everything(totals: &mut Totals) -> Result<()> {
    setup::require_root(
        "test",
        "run it as root, or `cargo xtask test --host` for the layers that need no root",
    )?;
    setup::network_tools()?;
    setup::lab::programs()?;
    // The API server takes Go minutes when cold: beside the Rust builds, but not beside tests
    // that measure time.
    let lab = thread::spawn(setup::lab::build);
    build::other_abi()?;
    build::agent()?;
    host(totals)?;
    let Ok(lab) = lab.join() else {
        bail!("building the API server ended in a panic")
    };
    let lab = lab?;
    heading("kernel: programs in the kernel, network namespaces, real sockets");
    files(Layer::Kernel, totals, &[])?;
    heading("kernel 5.10, the oldest: the same programs, and a cluster, in an emulated machine");
    oldest_kernel(totals)?;
    heading("API server: the agent against a real control plane");
    files(
        Layer::ApiServer,
        totals,
        &[("SHUNT_LAB_BIN", lab.as_path())],
    )
}

fn oldest_kernel(totals: &mut Totals) -> Result<()> {
    let outcome = kernels::test(Kernel::V5_10, &kernels::programs()?)?;
    let passed = outcome.tests.values().filter(|passed| **passed).count() as u64;
    totals.passed += passed;
    totals.failed += outcome.tests.len() as u64 - passed;
    totals.bad_runs += u64::from(!outcome.is_good());
    Ok(())
}

fn host(totals: &mut Totals) -> Result<()> {
    heading("host: units, properties, cases and scenarios");
    let mut units = cargo_test();
    units.args(["--lib", "--bins"]);
    for name in test_files(Layer::Host)? {
        units.args(["--test", &name]);
    }
    count(&mut units, totals)?;
    heading("host: examples in the documentation");
    count(cargo_test().arg("--doc"), totals)
}

fn files(layer: Layer, totals: &mut Totals, variables: &[(&str, &Path)]) -> Result<()> {
    let names = test_files(layer)?;
    if names.is_empty() {
        println!("no test files");
        return Ok(());
    }
    let mut cargo = cargo_test();
    for name in names {
        cargo.args(["--test", &name]);
    }
    cargo.envs(variables.iter().copied());
    count(&mut cargo, totals)
}

/// `cargo test` on the whole workspace. Every layer has the same variables: another value of
/// `SHUNT_EBPF_OBJECT` would build the agent's library again.
pub fn cargo_test() -> Command {
    let mut cargo = command::cargo("test");
    cargo.args(["--workspace", "--no-fail-fast"]);
    cargo.env("SHUNT_EBPF_OBJECT", build::object());
    cargo.env("SHUNT_BIN", command::target("release/shunt"));
    cargo.env("SHUNT_OTHER_BIN", command::target("other-abi/shunt"));
    cargo
}

/// The names of the integration tests of a layer, over all crates.
fn test_files(layer: Layer) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for package in [
        "proxy-common",
        "proxy-ebpf",
        "proxy-userspace",
        "tests",
        "bench",
        "xtask",
    ] {
        let folder = command::root().join(package).join("tests");
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry
                .with_context(|| format!("reading {}", folder.display()))?
                .path();
            let is_test = path.extension().is_some_and(|e| e == "rs") || has_main(&path);
            if let Some(name) = path.file_stem().and_then(|name| name.to_str())
                && is_test
                && layer_of(name) == layer
            {
                names.insert(name.to_owned());
            }
        }
    }
    Ok(names)
}

fn has_main(path: &Path) -> bool {
    path.join("main.rs").is_file()
}

fn layer_of(name: &str) -> Layer {
    if name.starts_with("apiserver") {
        Layer::ApiServer
    } else if name.starts_with("net_") || name.starts_with("kernel_") {
        Layer::Kernel
    } else {
        Layer::Host
    }
}

/// Runs cargo, shows what it prints, and adds up the summaries of its test programs.
fn count(cargo: &mut Command, totals: &mut Totals) -> Result<()> {
    let mut child = cargo
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo test")?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("reading cargo test")?;
            let line = String::from_utf8_lossy(&line);
            writeln!(std::io::stdout(), "{line}").context("writing")?;
            if let Some((passed, failed)) = summary(&line) {
                totals.passed += passed;
                totals.failed += failed;
            }
            if rules::is_result(&line) {
                totals.results.push(line.into_owned());
            }
        }
    }
    if !child.wait().context("waiting for cargo test")?.success() {
        totals.bad_runs += 1;
    }
    Ok(())
}

/// Reads `test result: ok. 12 passed; 0 failed; ...`.
fn summary(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some((number("passed")?, number("failed")?))
}

fn heading(text: &str) {
    println!("\n== {text} ==");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_a_failed_run_counts_both() {
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(summary(line), Some((3, 2)));
        assert_eq!(summary("test parse::ok ... ok"), None);
    }
}
