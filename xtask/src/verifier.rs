//! `cargo xtask verifier`: builds the BPF programs and the program that has them verified.

use anyhow::{Context, Result};

use crate::build;
use crate::command;
use crate::setup;

/// What to do with the figures.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Write docs/verifier.md anew
    #[arg(long)]
    update: bool,
}

/// Has every program verified, and fails where one exceeds its budget.
pub fn run(options: &Options) -> Result<()> {
    setup::require_root("verifier", "run it as root")?;
    let object = build::ebpf()?;
    let mut verifier = command::cargo("run");
    verifier.args(["--quiet", "--package", "tests", "--bin", "verifier", "--"]);
    verifier
        .arg("--book")
        .arg(command::root().join("docs/verifier.md"));
    verifier.args(options.update.then_some("--update"));
    command::run(verifier.env("SHUNT_EBPF_OBJECT", object)).context("docs/verifier.md")
}
