//! `cargo xtask kernels`: the same tests on other kernels, each booted in qemu with a small
//! initramfs; and on this one, without.

mod boot;
mod guest;
mod package;
mod programs;

use std::collections::{BTreeMap, BTreeSet};
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

/// Which kernels.
#[derive(clap::Args)]
pub struct Options {
    /// Kernels to test on; `host` is the running one
    #[arg(value_enum, default_values_t = Kernel::value_variants().to_vec())]
    kernels: Vec<Kernel>,
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

/// What came of one kernel: the tests by name, true for passed.
pub struct Outcome {
    /// It was booted in an emulated machine.
    pub is_guest: bool,
    /// Its release, as it says itself.
    pub release: String,
    /// How the agent attached its programs to interfaces.
    pub tc: String,
    /// What the agent found, by name.
    pub features: BTreeMap<String, Value>,
    /// Tests by name.
    pub tests: BTreeMap<String, bool>,
}

impl Outcome {
    /// True if every test ran and passed.
    pub fn is_good(&self) -> bool {
        self.expected()
            .all(|name| self.tests.get(name) == Some(&true))
    }

    fn expected(&self) -> impl Iterator<Item = &'static str> {
        let more = GUEST_TESTS.into_iter().filter(|_| self.is_guest);
        TESTS.into_iter().chain(more)
    }
}

/// Tests on the kernels that were asked for; the last line says what came of each.
pub fn run(options: &Options) -> Result<()> {
    setup::require_root("kernels", "run it as root")?;
    setup::network_tools()?;
    build::agent()?;
    let programs = programs()?;
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
        && Kernel::value_variants()
            .iter()
            .all(|all| options.kernels.contains(all))
    {
        let page = command::root().join("docs/kernel-support.md");
        fs::write(&page, support(&outcomes)).context("writing docs/kernel-support.md")?;
    }
    println!("kernels: {}", words.join("; "));
    if bad > 0 {
        bail!("{bad} of {} kernels failed", options.kernels.len());
    }
    Ok(())
}

/// The page that says what was found on which kernel.
fn support(outcomes: &[(Kernel, Outcome)]) -> String {
    let mut page = String::from(
        "# Kernels that are tested\n\n\
         Written by `cargo xtask kernels`. On each kernel every program passed the verifier, the\n\
         Case table and the packets of `tests/explain` gave in the kernel what they gave on the\n\
         host, and real sockets in network namespaces reached their Services over every path. A\n\
         feature that its release should have and that is missing is a failure.\n\n",
    );
    let names: BTreeSet<&String> = outcomes
        .iter()
        .flat_map(|(_, outcome)| outcome.features.keys())
        .filter(|name| *name != "kernel")
        .collect();
    let row = |first: &str, cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells.collect();
        format!("| {first} | {} |\n", cells.join(" | "))
    };
    page += &row(
        "",
        &mut outcomes.iter().map(|(_, found)| found.release.clone()),
    );
    page += &row("---", &mut outcomes.iter().map(|_| "---".to_owned()));
    page += &row(
        "programs at interfaces",
        &mut outcomes.iter().map(|(_, found)| found.tc.clone()),
    );
    for name in names {
        let cell = |(_, found): &(Kernel, Outcome)| match found.features.get(name) {
            Some(Value::Bool(true)) => "yes".to_owned(),
            Some(Value::Bool(false)) => "no".to_owned(),
            other => format!("{other:?}"),
        };
        page += &row(&format!("`{name}`"), &mut outcomes.iter().map(cell));
    }
    page
}

/// What runs on every kernel. The agent has been built.
pub fn programs() -> Result<Programs> {
    programs::build(&[&TESTS[..], &GUEST_TESTS].concat())
}

/// Runs everything on one kernel.
pub fn test(kernel: Kernel, programs: &Programs) -> Result<Outcome> {
    let outcome = match kernel {
        Kernel::Host => boot::here(programs)?,
        other => {
            setup::kernel_tools()?;
            let image = package::kernel(other)?;
            let initramfs = guest::initramfs(&image, programs)?;
            boot::qemu(&other.to_string(), &image, &initramfs)?
        }
    };
    progress::say(&format!("{kernel}: {}", summary(&outcome)));
    Ok(outcome)
}

fn summary(outcome: &Outcome) -> String {
    let state = |name: &'static str| match outcome.tests.get(name) {
        Some(true) => format!("{name} ok"),
        Some(false) => format!("{name} FAILED"),
        None => format!("{name} NOT RUN"),
    };
    let tests: Vec<String> = outcome.expected().map(state).collect();
    format!(
        "({}, {}): {}",
        outcome.release,
        outcome.tc,
        tests.join(", ")
    )
}
