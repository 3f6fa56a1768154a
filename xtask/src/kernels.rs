//! `cargo xtask kernels`: the same tests on other kernels, each booted in qemu with a small
//! initramfs; and on this one, without.

mod boot;
mod guest;
mod package;
mod programs;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, bail};

use crate::build;
use crate::progress;
use crate::setup;

/// What is tested on every kernel, in this order: a file of integration tests of `tests`.
const TESTS: [&str; 4] = [
    "kernel_programs",
    "kernel_cases",
    "kernel_explain",
    "net_kernel",
];

/// Which kernels.
#[derive(clap::Args)]
pub struct Options {
    /// Kernels to test on; `host` is the running one
    #[arg(value_enum, default_values_t = [Kernel::V5_10, Kernel::V6_1, Kernel::V6_12, Kernel::Host])]
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
    /// Its release, as it says itself.
    pub release: String,
    /// What the agent found, as JSON.
    pub features: String,
    /// Tests by name.
    pub tests: BTreeMap<String, bool>,
}

impl Outcome {
    /// True if every test ran and passed.
    pub fn is_good(&self) -> bool {
        TESTS
            .iter()
            .all(|name| self.tests.get(*name) == Some(&true))
    }
}

/// Tests on the kernels that were asked for; the last line says what came of each.
pub fn run(options: &Options) -> Result<()> {
    setup::require_root("kernels", "run it as root")?;
    setup::network_tools()?;
    build::agent()?;
    let mut words = Vec::new();
    let mut bad = 0;
    for kernel in &options.kernels {
        let outcome = test(*kernel)?;
        bad += usize::from(!outcome.is_good());
        words.push(format!(
            "{kernel} ({}) {}",
            outcome.release,
            summary(&outcome)
        ));
    }
    println!("kernels: {}", words.join("; "));
    if bad > 0 {
        bail!("{bad} of {} kernels failed", options.kernels.len());
    }
    Ok(())
}

/// Runs everything on one kernel. The agent has been built.
pub fn test(kernel: Kernel) -> Result<Outcome> {
    let programs = programs::build(&TESTS)?;
    let outcome = match kernel {
        Kernel::Host => boot::here(&programs)?,
        other => {
            setup::kernel_tools()?;
            let image = package::kernel(other)?;
            let initramfs = guest::initramfs(&image, &programs)?;
            boot::qemu(&other.to_string(), &image, &initramfs)?
        }
    };
    progress::say(&format!(
        "{kernel}: {}: {}; {}",
        outcome.release,
        summary(&outcome),
        outcome.features
    ));
    Ok(outcome)
}

fn summary(outcome: &Outcome) -> String {
    let state = |name: &&str| match outcome.tests.get(*name) {
        Some(true) => format!("{name} ok"),
        Some(false) => format!("{name} FAILED"),
        None => format!("{name} NOT RUN"),
    };
    TESTS.iter().map(state).collect::<Vec<_>>().join(", ")
}
