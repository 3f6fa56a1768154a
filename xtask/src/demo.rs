//! `cargo xtask demo`: builds what the demo needs and hands over to the program that runs it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::command;
use crate::setup;

/// How the demo speaks and ends.
#[derive(clap::Args)]
pub struct Options {
    /// Print one JSON object, on one line, as the last of stdout
    #[arg(long)]
    json: bool,
    /// Leave the cluster up and print how to enter it
    #[arg(long)]
    keep: bool,
    /// Remove a cluster that was kept
    #[arg(long, value_name = "NAME")]
    end: Option<String>,
}

/// Builds what the demo needs and becomes it: a signal of the terminal is the demo's own.
pub fn run(options: &Options) -> Result<()> {
    setup::require_root("demo", "run it as root")?;
    setup::network_tools()?;
    build::ebpf()?;
    build::binaries(&["shunt", "demo", "probe"])?;
    let mut demo = Command::new(command::target("release/demo"));
    demo.args(options.json.then_some("--json"))
        .args(options.keep.then_some("--keep"));
    demo.args(options.end.iter().flat_map(|name| ["--end", name]));
    demo.arg("--manifests")
        .arg(command::root().join("deploy/demo"));
    demo.current_dir(command::root())
        .env("SHUNT_BIN", command::target("release/shunt"));
    command::scrub(&mut demo, command::is_of_this_run);
    Err(demo.exec()).context("starting target/release/demo")
}
