//! `cargo xtask check`: rustfmt, clippy on the host and for BPF, tidy, rules, and as root the
//! verifier's budget.

use anyhow::{Result, bail};

use crate::build;
use crate::command;
use crate::rules;
use crate::tidy;
use crate::verifier;

/// Runs every check and fails when one of them did.
pub fn run() -> Result<()> {
    let mut failed = Vec::new();
    let mut step = |name: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            eprintln!("check: {name}: {error:#}");
            failed.push(name.to_owned());
        }
    };
    step("tidy", tidy::run());
    step("rules", rules::check());
    step(
        "rustfmt",
        command::run(command::bare_cargo("fmt").args(["--all", "--check"])),
    );
    let mut clippy = command::cargo("clippy");
    clippy
        .args(["--workspace", "--all-targets"])
        .env("SHUNT_EBPF_OBJECT", build::object());
    step(
        "clippy",
        command::run(clippy.args(["--", "-D", "warnings"])),
    );
    step("clippy for BPF", build::lint_ebpf());
    if command::is_root() {
        step("verifier", verifier::run(&verifier::Options::default()));
    } else {
        println!("check: the verifier's budget is looked at by root only");
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    println!("check: all good");
    Ok(())
}
