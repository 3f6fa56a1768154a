//! `cargo xtask test`: every layer of tests, from pure functions to a real API server.

pub mod programs;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::Write as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::command;
use crate::kernels::{self, Extent, Kernel};
use crate::rules;
use crate::setup;

use self::programs::Program;

/// Files of tests that have the machine for themselves: what they prove or measure needs both
/// processors.
const ALONE: [&str; 2] = ["kernel_bench", "kernel_torn_reads"];
/// Files of tests that take long, the longest first: they begin before all others.
const LONG: [&str; 8] = [
    "apiserver_behaviours",
    "net_faults",
    "net_expectations",
    "model",
    "net_paths",
    "net_changes",
    "net_affinity",
    "watch_faults",
];
/// With `--host` the model test tries as many seeds as it must, and none for as long as it may.
pub const SHORT_MODEL: (&str, &str) = ("SHUNT_MODEL_MINUTES", "0");

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
    /// Only in the machines of `cargo xtask kernels`.
    Guest,
}

#[derive(Default)]
struct Totals {
    passed: u64,
    failed: u64,
    /// What failed, as one would type it to see it again.
    bad_runs: Vec<String>,
    /// What was said of each test, for `cargo xtask rules`.
    results: Vec<String>,
}

/// Runs the tests and prints what each program of tests says, then the totals.
pub fn run(options: &Options) -> Result<()> {
    let mut totals = Totals::default();
    let outcome = if options.host {
        let is_chosen = env::var_os(SHORT_MODEL.0).is_some();
        let variables = (!is_chosen).then_some((SHORT_MODEL.0, PathBuf::from(SHORT_MODEL.1)));
        host(&mut totals, variables.as_slice())
    } else {
        everything(&mut totals)
    };
    rules::keep_results(&totals.results)?;
    outcome?;
    println!("\n{} passed, {} failed", totals.passed, totals.failed);
    let bad = &totals.bad_runs;
    if totals.failed > 0 || !bad.is_empty() {
        bail!("{} of the test runs failed:\n{}", bad.len(), bad.join("\n"));
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
    host(totals, &[])?;
    let Ok(lab) = lab.join() else {
        bail!("building the API server ended in a panic")
    };
    let lab = lab?;
    heading("kernel: programs in the kernel, network namespaces, real sockets");
    files(Layer::Kernel, totals, &[])?;
    heading("kernel 5.10, the oldest: the same programs, and a cluster, in an emulated machine");
    oldest_kernel(totals)?;
    heading("API server: the agent against a real control plane");
    files(Layer::ApiServer, totals, &[("SHUNT_LAB_BIN", lab)])
}

fn oldest_kernel(totals: &mut Totals) -> Result<()> {
    let outcome = kernels::test(Kernel::V5_10, &kernels::programs(Extent::Brief)?)?;
    for (_, ran) in &outcome.tests {
        totals.passed += ran.passed;
        totals.failed += ran.others;
    }
    if !outcome.is_good() {
        totals.bad_runs.push("cargo xtask kernels 5.10".to_owned());
    }
    Ok(())
}

fn host(totals: &mut Totals, variables: &[(&str, PathBuf)]) -> Result<()> {
    heading("host: units, properties, cases and scenarios");
    run_programs(&of_host()?, totals, variables)?;
    heading("host: examples in the documentation");
    let output = cargo_test().arg("--doc").output();
    let output = output.context("starting cargo test")?;
    totals.add(&String::from_utf8_lossy(&output.stdout));
    totals.judge(output.status, "cargo test --doc");
    show(&output.stderr)
}

fn files(layer: Layer, totals: &mut Totals, variables: &[(&str, PathBuf)]) -> Result<()> {
    let names = test_files(layer)?;
    if names.is_empty() {
        println!("no test files");
        return Ok(());
    }
    run_programs(&selecting(&names), totals, variables)
}

fn selecting(names: &BTreeSet<String>) -> Vec<String> {
    let options = names.iter().map(|name| ["--test".to_owned(), name.clone()]);
    options.flatten().collect()
}

/// Runs what is selected: as many programs side by side as there are processors. Most tests wait,
/// and each makes what it needs of the machine for itself.
fn run_programs(
    selection: &[String],
    totals: &mut Totals,
    variables: &[(&str, PathBuf)],
) -> Result<()> {
    let mut built = programs::build(cargo_test(), selection)?;
    let rank = |program: &Program| LONG.iter().position(|name| *name == program.name);
    built.sort_by_key(|program| rank(program).unwrap_or(LONG.len()));
    let is_alone = |program: &Program| ALONE.contains(&program.name.as_str());
    let (alone, beside): (Vec<_>, Vec<_>) = built.into_iter().partition(is_alone);
    let variables = [&test_variables()[..], variables].concat();
    for (programs, lanes) in [(beside, lanes()), (alone, 1)] {
        programs::run(programs, lanes, &variables, |finished| {
            let (program, secs) = (&finished.program, finished.took.as_secs_f32());
            println!("\n-- {} ({secs:.1} s) --", program.again());
            totals.add(&String::from_utf8_lossy(&finished.output.stdout));
            totals.judge(finished.output.status, &program.again());
            show(&finished.output.stderr)
        })?;
    }
    Ok(())
}

/// How many programs of tests run side by side.
pub fn lanes() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// `cargo test` on the whole workspace. Every layer has the same variables: another value of
/// `SHUNT_EBPF_OBJECT` would build the agent's library again.
pub fn cargo_test() -> Command {
    let mut cargo = command::cargo("test");
    cargo.args(["--workspace", "--no-fail-fast"]);
    cargo.envs(test_variables());
    cargo
}

/// Where tests find what was built for them.
fn test_variables() -> [(&'static str, PathBuf); 3] {
    [
        ("SHUNT_EBPF_OBJECT", build::object()),
        ("SHUNT_BIN", command::target("release/shunt")),
        ("SHUNT_OTHER_BIN", command::target("other-abi/shunt")),
    ]
}

/// What selects the tests that need neither root nor a kernel.
pub fn of_host() -> Result<Vec<String>> {
    let mut selection = vec!["--lib".to_owned(), "--bins".to_owned()];
    selection.extend(selecting(&test_files(Layer::Host)?));
    Ok(selection)
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
    } else if name.starts_with("guest_") {
        Layer::Guest
    } else {
        Layer::Host
    }
}

impl Totals {
    /// Prints what a program of tests said, and counts it.
    fn add(&mut self, output: &str) {
        for line in output.lines() {
            println!("{line}");
            if let Some((passed, failed)) = summary(line) {
                self.passed += passed;
                self.failed += failed;
            }
            if rules::is_result(line) {
                self.results.push(line.to_owned());
            }
        }
    }

    fn judge(&mut self, status: ExitStatus, what: &str) {
        if !status.success() {
            self.bad_runs.push(format!("{what} ({status})"));
        }
    }
}

fn show(bytes: &[u8]) -> Result<()> {
    std::io::stdout().write_all(bytes).context("writing")
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
