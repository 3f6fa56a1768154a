//! `cargo xtask fuzz`: builds the fuzzer, with assertions, and hands over to it.

use std::ffi::OsString;

use anyhow::Result;

use crate::command;

/// What `cargo xtask fuzz --help` says.
#[derive(clap::Args)]
pub struct Options {
    /// The target and options of the fuzzer
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Runs the fuzzer.
pub fn run(options: &Options) -> Result<()> {
    let mut cargo = command::cargo("run");
    cargo.args(["--quiet", "--package", "tests", "--bin", "fuzz", "--"]);
    command::run(cargo.args(&options.words))
}
