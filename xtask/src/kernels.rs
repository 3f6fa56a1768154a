//! `cargo xtask kernels`: the same tests on other kernels, each booted in qemu with a small
//! initramfs; and on this one, without.

mod boot;
mod guest;
mod package;
mod page;
mod programs;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use serde_json::Value;

use self::programs::Programs;
use crate::build;
use crate::command;
use crate::progress;
use crate::setup;

/// What is tested on every kernel, in this order: a file of integration tests of `tests`.
const TESTS: [&str; 4] = [
    "kernel_programs",
    "kernel_cases",
    "kernel_explain",
    "net_kernel",
];

/// What is tested besides in the machines that are booted, whose kernels have every module.
const GUEST_TESTS: [&str; 1] = ["guest_links"];
/// The same, but not with every `cargo xtask test`: they take minutes.
const LONG_TESTS: [&str; 2] = ["guest_xdp", "guest_upgrade"];

/// How much of the tests runs in machines that are booted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All.
    Whole,
    /// Not those that take longest.
    Brief,
}

/// Which kernels.
#[derive(clap::Args)]
pub struct Options {
    /// Kernels to test on; `host` is the running one
    #[arg(value_enum, default_values_t = Kernel::value_variants().to_vec())]
    kernels: Vec<Kernel>,
    /// Only these files of tests
    #[arg(long, value_name = "FILE")]
    test: Vec<String>,
}

/// A kernel that we answer for.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 11's: the oldest; no TCX, no `bpf_set_retval`.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12's: no TCX.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's.
    #[value(name = "6.12")]
    V6_12,
    /// The running one.
    #[value(name = "host")]
    Host,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Host => "host",
        })
    }
}

/// What came of one kernel.
#[derive(Default)]
pub struct Outcome {
    /// Files of tests that were to run, in their order.
    pub expected: Vec<String>,
    /// Its release, as it says itself.
    pub release: String,
    /// What the agent found, by name.
    pub features: BTreeMap<String, Value>,
    /// What else tests found out about it, in their order.
    pub facts: Vec<(String, String)>,
    /// Files of tests that were begun, in their order.
    pub tests: Vec<(String, Ran)>,
}

/// What came of one file of tests.
#[derive(Default)]
pub struct Ran {
    /// It ended well.
    pub is_done: bool,
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, or were left out.
    pub others: u64,
    /// How long it took.
    pub secs: u64,
}

impl Ran {
    /// True if every test ran and passed.
    pub fn is_good(&self) -> bool {
        self.is_done && self.passed > 0 && self.others == 0
    }
}

impl Outcome {
    /// True if every test ran and passed.
    pub fn is_good(&self) -> bool {
        let mut names = self.expected.iter();
        names.all(|name| self.ran(name).is_some_and(Ran::is_good))
    }

    fn ran(&self, name: &str) -> Option<&Ran> {
        let mut tests = self.tests.iter();
        tests.find(|(test, _)| test == name).map(|(_, ran)| ran)
    }
}

/// Tests on the kernels that were asked for; the last line says what came of each.
pub fn run(options: &Options) -> Result<()> {
    setup::require_root("kernels", "run it as root")?;
    setup::network_tools()?;
    build::other_abi()?;
    build::agent()?;
    let mut programs = programs(Extent::Whole)?;
    if !options.test.is_empty() {
        programs
            .tests
            .retain(|(name, _)| options.test.contains(name));
    }
    let mut outcomes = Vec::new();
    for kernel in &options.kernels {
        outcomes.push((*kernel, test(*kernel, &programs)?));
    }
    let words: Vec<String> = outcomes
        .iter()
        .map(|(kernel, outcome)| format!("{kernel} {}", summary(outcome)))
        .collect();
    let bad = outcomes.iter().filter(|(_, outcome)| !outcome.is_good());
    let bad = bad.count();
    if bad == 0
        && options.test.is_empty()
        && Kernel::value_variants()
            .iter()
            .all(|all| options.kernels.contains(all))
    {
        let file = command::root().join("docs/kernel-support.md");
        fs::write(&file, page::text(&outcomes)).context("writing docs/kernel-support.md")?;
    }
    println!("kernels: {}", words.join("; "));
    if bad > 0 {
        bail!("{bad} of {} kernels failed", options.kernels.len());
    }
    Ok(())
}

/// What runs on every kernel. The agent and that of another map ABI have been built.
pub fn programs(extent: Extent) -> Result<Programs> {
    let mut names = [&TESTS[..], &GUEST_TESTS].concat();
    if extent == Extent::Whole {
        names.extend(LONG_TESTS);
    }
    programs::build(&names)
}

/// Runs everything on one kernel.
pub fn test(kernel: Kernel, programs: &Programs) -> Result<Outcome> {
    let outcome = match kernel {
        Kernel::Host => boot::here(programs)?,
        other => {
            setup::kernel_tools()?;
            let image = package::kernel(other)?;
            let initramfs = guest::initramfs(&image, programs)?;
            boot::qemu(&other.to_string(), &image, &initramfs, programs)?
        }
    };
    progress::say(&format!("{kernel}: {}", summary(&outcome)));
    Ok(outcome)
}

fn summary(outcome: &Outcome) -> String {
    let state = |name: &String| match outcome.ran(name) {
        Some(ran) if ran.is_good() => format!("{name} ok ({} s)", ran.secs),
        Some(_) => format!("{name} FAILED"),
        None => format!("{name} NOT RUN"),
    };
    let tests: Vec<String> = outcome.expected.iter().map(state).collect();
    format!("({}): {}", outcome.release, tests.join(", "))
}
