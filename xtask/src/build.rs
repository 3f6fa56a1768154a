//! The BPF object, and the agent with the object inside.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::setup;

/// The packages with BPF programs; each has a binary, the agent's comes first.
const PROGRAMS: [(&str, &str); 2] = [("proxy-ebpf", "shunt-ebpf"), ("bench-ebpf", "bench-ebpf")];

/// Which machine the agent is for.
#[derive(clap::Args)]
pub struct Options {
    /// For arm64, into target/aarch64-unknown-linux-gnu/release/shunt
    #[arg(long)]
    arm64: bool,
}

/// Builds the agent.
pub fn run(options: &Options) -> Result<()> {
    match options.arm64 {
        true => agent_for_arm64().map(drop),
        false => agent().map(drop),
    }
}

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

/// Another machine that nodes may be.
const ARM64: &str = "aarch64-unknown-linux-gnu";

/// Builds the agent for arm64 and asks it, emulated, how it decides about a packet: as this
/// machine's agent does. The BPF object inside is the same.
pub fn agent_for_arm64() -> Result<PathBuf> {
    let own = agent()?;
    setup::arm64_tools(ARM64)?;
    let mut cargo = command::cargo("build");
    cargo.args(["--release", "--workspace", "--bin", "shunt"]);
    cargo.args(["--target", ARM64]);
    cargo.env("SHUNT_EBPF_OBJECT", object());
    let linker = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER";
    command::run(cargo.env(linker, "aarch64-linux-gnu-gcc"))?;
    let built = command::target(&format!("{ARM64}/release/shunt"));
    let mut emulated = Command::new("qemu-aarch64-static");
    emulated.args(["-L", "/usr/aarch64-linux-gnu"]).arg(&built);
    let (theirs, ours) = (explained(emulated)?, explained(Command::new(own))?);
    if theirs != ours {
        bail!("arm64 decides otherwise:\n{theirs}\ninstead of\n{ours}");
    }
    Ok(built)
}

/// What an agent says about a pod that dials a ClusterIP of the demo's manifests.
fn explained(mut shunt: Command) -> Result<String> {
    shunt.args(["explain", "-o", "json", "--node-name", "n1"]);
    shunt.args(["-s", "10.244.1.10:40000", "-d", "10.96.0.10:80"]);
    shunt
        .arg("--manifests")
        .arg(command::root().join("deploy/demo"));
    let output = shunt.output().context("starting the agent")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}): {errors}",
            shunt.get_program().display(),
            output.status
        );
    }
    String::from_utf8(output.stdout).context("reading what the agent says")
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
    [
        "-C",
        &linker,
        // BTF and line information come from debug information.
        "-C",
        "debuginfo=2",
        "-C",
        "link-arg=--btf",
        // Copies and zeros are stores in place: else each is a call that goes byte by byte.
        "-C",
        "link-arg=--disable-expand-memcpy-in-order",
    ]
    .join("\u{1f}")
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
