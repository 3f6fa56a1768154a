//! bpf-linker, built into `target/tools/` against the LLVM of the compiler it serves.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::command;
use crate::progress;

const VERSION: &str = "0.13.0";

/// The linker for a compiler with this LLVM; built when it is not there.
pub fn find_or_install(llvm: u32) -> Result<PathBuf> {
    let folder = folder(llvm);
    let linker = folder.join("bin/bpf-linker");
    if works(&linker) {
        return Ok(linker);
    }
    let Some(prefix) = llvm_prefix(llvm) else {
        bail!("no LLVM {llvm} to build bpf-linker against: install llvm-{llvm}-dev, libzstd-dev");
    };
    let mut install = command::bare_cargo("install");
    install
        .arg("--root")
        .arg(&folder)
        .args(["bpf-linker", "--version", VERSION, "--locked"]);
    install.args([
        "--force",
        "--no-default-features",
        "--features",
        &format!("llvm-{llvm}"),
    ]);
    // Built beside the workspace's own artifacts, so that a cut-off build goes on where it was.
    install
        .arg("--target-dir")
        .arg(command::target("tools-build"));
    install.env("LLVM_PREFIX", &prefix);
    // Flags meant for the agent's CPU or linker have no business in a tool.
    install
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let what = format!("building bpf-linker {VERSION} for LLVM {llvm} (2 to 3 minutes, once)");
    progress::long(&what, "bpf-linker", &mut install)?;
    if !works(&linker) {
        bail!(
            "bpf-linker was built, but {} does not run",
            linker.display()
        );
    }
    Ok(linker)
}

/// Whether a linker for this LLVM is there or can be built from what is installed.
pub fn can_serve(llvm: u32) -> bool {
    works(&folder(llvm).join("bin/bpf-linker")) || llvm_prefix(llvm).is_some()
}

fn folder(llvm: u32) -> PathBuf {
    command::target(&format!("tools/llvm-{llvm}"))
}

fn works(linker: &Path) -> bool {
    command::first_line(linker, &["--version"]).is_some_and(|line| line.ends_with(VERSION))
}

/// Where the development files of this LLVM are, Debian's place first.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let debian = format!("/usr/lib/llvm-{llvm}/bin/llvm-config");
    [
        debian.as_str(),
        &format!("llvm-config-{llvm}"),
        "llvm-config",
    ]
    .iter()
    .find_map(|config| {
        let version = command::first_line(config, &["--version"])?;
        let is_wanted = version.split('.').next() == Some(&llvm.to_string());
        let prefix = command::first_line(config, &["--prefix"])?;
        is_wanted.then(|| prefix.into())
    })
}
