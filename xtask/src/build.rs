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
        publish(binary, published(binary))?;
    }
    Ok(object())
}

/// Builds an agent of another version of the map ABI, with its own programs inside. Without
/// optimization: it need not be fast, and its dependencies are those of the tests.
pub fn other_abi() -> Result<()> {
    const FEATURE: [&str; 2] = ["--features", "proxy-common/other-abi"];
    let mut cargo = for_bpf("build", &setup::bpf_tools()?);
    command::run(cargo.args(FEATURE)).context("building the other BPF programs")?;
    let object = command::target("other-abi/shunt-ebpf.o");
    publish("shunt-ebpf", object.clone())?;
    let mut cargo = command::cargo("build");
    cargo.args(["--workspace", "--bin", "shunt"]);
    cargo.args(["--features", "proxy-userspace/other-abi"]);
    command::run(cargo.env("SHUNT_EBPF_OBJECT", object)).context("building the other agent")?;
    let agent = command::target("other-abi/shunt");
    fs::copy(command::target("debug/shunt"), &agent)
        .with_context(|| format!("writing {}", agent.display()))?;
    Ok(())
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
fn publish(binary: &str, object: PathBuf) -> Result<()> {
    let built = command::target(&format!("bpf-build/bpfel-unknown-none/release/{binary}"));
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    if fs::read(&object).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let folder = object.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    fs::write(&object, &bytes).with_context(|| format!("writing {}", object.display()))
}
