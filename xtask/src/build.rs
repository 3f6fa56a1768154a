//! The BPF object, and the agent with the object inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;
use crate::setup;

const BUILT: &str = "bpf-build/bpfel-unknown-none/release/shunt-ebpf";

/// Builds the BPF programs and returns the object's path.
pub fn ebpf() -> Result<PathBuf> {
    let mut cargo = for_bpf("build", &setup::bpf_tools()?);
    command::run(&mut cargo).context("building the BPF programs")?;
    publish(&command::target(BUILT))
}

/// Lints the BPF programs for their own target.
pub fn lint_ebpf() -> Result<()> {
    let tools = setup::bpf_tools()?;
    tools.rust.ensure_clippy()?;
    command::run(for_bpf("clippy", &tools).args(["--", "-D", "warnings"]))
}

/// Builds the agent with the BPF object inside and returns its path.
pub fn agent() -> Result<PathBuf> {
    ebpf()?;
    binaries(&["shunt"])?;
    Ok(command::target("release/shunt"))
}

/// Builds release binaries of the workspace, with the BPF object that lies in `target/bpf`.
pub fn binaries(names: &[&str]) -> Result<()> {
    let mut cargo = command::cargo("build");
    // The whole workspace is named so that every verb builds dependencies with the same features.
    cargo.args(["--release", "--workspace"]);
    for name in names {
        cargo.args(["--bin", name]);
    }
    command::run(cargo.env("SHUNT_EBPF_OBJECT", object()))
}

/// A cargo command on the BPF programs, for the BPF target.
fn for_bpf(verb: &str, tools: &setup::BpfTools) -> Command {
    let mut cargo = tools.rust.cargo(verb);
    cargo.args([
        "--release",
        "--package",
        "proxy-ebpf",
        "--bin",
        "shunt-ebpf",
    ]);
    cargo.args([
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
        "--target-dir",
    ]);
    cargo.arg(command::target("bpf-build"));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(tools));
    cargo
}

/// Where the BPF object lies.
pub fn object() -> PathBuf {
    command::target("bpf/shunt-ebpf.o")
}

fn flags(tools: &setup::BpfTools) -> String {
    let linker = format!("linker={}", tools.linker.display());
    // BTF and line information come from debug information.
    ["-C", &linker, "-C", "debuginfo=2", "-C", "link-arg=--btf"].join("\u{1f}")
}

/// Copies the object to its place, unless the same bytes lie there: its time of change makes
/// cargo build the agent again.
fn publish(built: &Path) -> Result<PathBuf> {
    let object = object();
    let bytes = fs::read(built).with_context(|| format!("reading {}", built.display()))?;
    if fs::read(&object).is_ok_and(|present| present == bytes) {
        return Ok(object);
    }
    fs::create_dir_all(command::target("bpf")).context("making target/bpf")?;
    fs::write(&object, &bytes).with_context(|| format!("writing {}", object.display()))?;
    Ok(object)
}
