//! `cargo xtask demo`: builds what the demo needs and hands over to the program that runs it.

use anyhow::Result;

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
}

/// Builds the agent and runs the demo; its exit decides ours.
pub fn run(options: &Options) -> Result<()> {
    setup::require_root("demo", "run it as root")?;
    setup::network_tools()?;
    build::ebpf()?;
    build::binaries(&["shunt", "demo"])?;
    let mut demo = std::process::Command::new(command::target("release/demo"));
    demo.args(options.json.then_some("--json"))
        .args(options.keep.then_some("--keep"));
    demo.arg("--manifests")
        .arg(command::root().join("deploy/demo"));
    demo.current_dir(command::root())
        .env("SHUNT_BIN", command::target("release/shunt"));
    command::scrub(&mut demo, command::is_of_this_run);
    command::run(&mut demo)
}
