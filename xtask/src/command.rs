//! Child processes: found, run in a clean environment, and judged by their exit.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The repository's root.
pub fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask)
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A file or folder below `target/`.
pub fn target(relative: &str) -> PathBuf {
    root().join("target").join(relative)
}

/// The cargo that runs this program, on this workspace's own `target/`.
pub fn cargo(verb: &str) -> Command {
    let mut command = bare_cargo(verb);
    command.arg("--target-dir").arg(root().join("target"));
    command
}

/// The cargo that runs this program, with no options set.
pub fn bare_cargo(verb: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.arg(verb).current_dir(root());
    scrub(&mut command, is_of_this_run);
    command
}

/// Removes the variables that `unwanted` names from what the command inherits.
pub fn scrub(command: &mut Command, unwanted: impl Fn(&str) -> bool) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(&unwanted) {
            command.env_remove(name);
        }
    }
}

/// Variables that the outer cargo set for this program alone. A child that inherits them
/// mistakes itself for a part of this package, or loads the outer toolchain's libraries.
pub fn is_of_this_run(name: &str) -> bool {
    const PREFIXES: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
    const NAMES: [&str; 4] = [
        "CARGO",
        "LD_LIBRARY_PATH",
        "OUT_DIR",
        "RUST_RECURSION_COUNT",
    ];
    PREFIXES.iter().any(|p| name.starts_with(p)) || NAMES.contains(&name)
}

/// Variables that choose or steer a Rust toolchain, besides those of this run.
pub fn steers_rust(name: &str) -> bool {
    const PREFIXES: [&str; 6] = [
        "RUSTC",
        "RUSTUP_",
        "RUSTDOC",
        "CARGO_BUILD_",
        "CARGO_TARGET_",
        "CARGO_PROFILE_",
    ];
    const NAMES: [&str; 2] = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"];
    is_of_this_run(name) || PREFIXES.iter().any(|p| name.starts_with(p)) || NAMES.contains(&name)
}

/// Runs a command whose output goes to the reader as it comes; fails when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command
        .status()
        .with_context(|| format!("starting `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    Ok(())
}

/// The first line a command prints, or `None` when it cannot be run or fails.
pub fn first_line(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let text = output(program, arguments)?;
    text.lines().next().map(str::to_owned)
}

/// All that a command prints, or `None` when it cannot be run or fails.
pub fn output(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    scrub(&mut command, steers_rust);
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Where a program is: `PATH`, then the folders of root's programs, which `PATH` may lack.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(more)
        .map(|folder| folder.join(program))
        .find(|p| p.is_file())
}

/// Whether this process may do everything on the machine.
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
