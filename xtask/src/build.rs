//! The BPF object, and the agent with the object inside.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;
use crate::setup;

/// The packages with BPF programs; each has a binary, the agent's comes first.
const PROGRAMS: [(&str, &str); 2] = [("proxy-ebpf", "shunt-ebpf"), ("bench-ebpf", "bench-ebpf")];

/// Builds the BPF programs, those of the benchmark too, and returns the path of the agent's object.
pub fn ebpf() -> Result<PathBuf> {
    let mut cargo = for_bpf("build", &setup::bpf_tools()?);
    command::run(&mut cargo).context("building the BPF programs")?;
    for (_, binary) in PROGRAMS {
        publish(binary)?;
    }
    Ok(object())
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
    cargo.arg("--release");
    for (package, binary) in PROGRAMS {
        cargo.args(["--package", package, "--bin", binary]);
    }
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

/// Where the agent's BPF object lies; the benchmark's lies beside it.
pub fn object() -> PathBuf {
    published(PROGRAMS[0].1)
}

fn published(binary: &str) -> PathBuf {
    command::target(&format!("bpf/{binary}.o"))
}

fn flags(tools: &setup::BpfTools) -> String {
    let linker = format!("linker={}", tools.linker.display());
    // BTF and line information come from debug information.
    ["-C", &linker, "-C", "debuginfo=2", "-C", "link-arg=--btf"].join("\u{1f}")
}

/// Copies the object to its place, unless the same bytes lie there: its time of change makes
/// cargo build the agent again.
fn publish(binary: &str) -> Result<()> {
    let built = command::target(&format!("bpf-build/bpfel-unknown-none/release/{binary}"));
    let object = published(binary);
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    if fs::read(&object).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    fs::create_dir_all(command::target("bpf")).context("making target/bpf")?;
    fs::write(&object, &bytes).with_context(|| format!("writing {}", object.display()))
}
