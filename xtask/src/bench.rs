//! `cargo xtask bench`: builds what is measured and hands over to the program that measures.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::command;
use crate::setup;

/// What to measure: `control-plane`, `datapath`, `network`, `all` of these, or `cluster`; `--help`
/// behind it says more.
#[derive(clap::Args)]
pub struct Options {
    /// The benchmark and its options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<OsString>,
}

/// What `cargo xtask soak --help` says.
#[derive(clap::Args)]
pub struct SoakOptions {
    /// The options of the soak
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

impl SoakOptions {
    /// The soak is a program of the benchmarks.
    pub fn as_benchmark(&self) -> Options {
        let words = std::iter::once("soak".into()).chain(self.words.iter().cloned());
        Options {
            words: words.collect(),
        }
    }
}

impl Options {
    /// True where Kubernetes itself takes part.
    fn need_kubernetes(&self) -> bool {
        let mut words = self.words.iter().filter_map(|word| word.to_str());
        match words.next() {
            Some("all" | "network") => true,
            Some("control-plane") => words.any(|word| {
                // A flag may have its value behind `=`.
                let name = word.split('=').next().unwrap_or_default();
                word.ends_with("apiserver") || ["--peers", "--plot"].contains(&name)
            }),
            _ => false,
        }
    }
}

/// Builds what the benchmark needs and becomes it.
pub fn run(options: &Options) -> Result<()> {
    setup::require_root("bench", "run it as root")?;
    setup::network_tools()?;
    build::ebpf()?;
    build::binaries(&["shunt", "bench", "probe"])?;
    let mut bench = Command::new(command::target("release/bench"));
    bench.args(&options.words).current_dir(command::root());
    if options.words.first().is_some_and(|word| word == "pictures") {
        bench.env("SHUNT_PROMETHEUS_BIN", setup::lab::prometheus()?);
    }
    if options.need_kubernetes() {
        setup::lab::programs()?;
        bench.env("SHUNT_LAB_BIN", setup::lab::build()?);
    }
    bench.env("SHUNT_BIN", command::target("release/shunt"));
    command::scrub(&mut bench, command::is_of_this_run);
    Err(bench.exec()).context("starting target/release/bench")
}
