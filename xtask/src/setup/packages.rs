//! Debian packages: installed where this process may, named where it may not.

use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, bail};

use crate::command;
use crate::progress;

/// Installs the packages of the programs that are missing. Each pair is program and package.
pub fn ensure_programs(needed: &[(&str, &str)]) -> Result<()> {
    let missing = |(program, _): &&(&str, &str)| command::which(program).is_none();
    let packages: Vec<&str> = needed
        .iter()
        .filter(missing)
        .map(|(_, package)| *package)
        .collect();
    if packages.is_empty() {
        Ok(())
    } else {
        install(&packages)
    }
}

/// Installs packages with apt-get.
///
/// # Errors
/// When this is no Debian, or not root: the message names the packages and the command.
pub fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if command::which("apt-get").is_none() {
        bail!("missing: {list} (Debian's names). Install them with this system's package manager.");
    }
    if !command::is_root() {
        bail!("missing packages. Run as root: apt-get install --no-install-recommends {list}");
    }
    update()?;
    let mut install = apt("install");
    install
        .args(["--yes", "--no-install-recommends"])
        .args(packages);
    progress::long(
        &format!("installing Debian packages: {list}"),
        "apt-install",
        &mut install,
    )
}

/// Reads the package lists afresh, once: a fresh image has none.
pub fn update() -> Result<()> {
    static UPDATED: OnceLock<()> = OnceLock::new();
    if UPDATED.get().is_none() {
        progress::long(
            "reading Debian's package lists",
            "apt-update",
            &mut apt("update"),
        )?;
        UPDATED.get_or_init(|| ());
    }
    Ok(())
}

fn apt(verb: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.arg(verb).env("DEBIAN_FRONTEND", "noninteractive");
    command::scrub(&mut command, command::is_of_this_run);
    command
}
