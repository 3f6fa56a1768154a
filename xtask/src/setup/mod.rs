//! Bootstrap: finds what a verb needs, or installs it, and says what it did or what is missing.
//! Every step looks at the thing itself, so a second run costs nothing.

pub mod lab;
mod linker;
mod packages;
mod toolchain;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command;

pub use toolchain::BpfRust;

/// What builds the BPF object.
pub struct BpfTools {
    /// The compiler.
    pub rust: BpfRust,
    /// The linker that makes one BPF object of LLVM bitcode.
    pub linker: PathBuf,
}

/// Finds or installs the compiler and the linker for BPF.
pub fn bpf_tools() -> Result<BpfTools> {
    let rust = toolchain::find_or_install()?;
    let linker = linker::find_or_install(rust.llvm)?;
    Ok(BpfTools { rust, linker })
}

/// Finds or installs the programs that make network namespaces, rules and terminals.
pub fn network_tools() -> Result<()> {
    packages::ensure_programs(&[
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("iptables", "iptables"),
        ("ethtool", "ethtool"),
        ("ping", "iputils-ping"),
        ("sysctl", "procps"),
        ("unshare", "util-linux"),
        ("tmux", "tmux"),
    ])
}

/// Finds or installs what boots a kernel in an emulated machine.
pub fn kernel_tools() -> Result<()> {
    packages::ensure_programs(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("cpio", "cpio"),
        ("depmod", "kmod"),
        ("objcopy", "binutils"),
    ])
}

/// Finds or installs what builds for the arm64 `target`, and what runs the outcome here.
pub fn arm64_tools(target: &str) -> Result<()> {
    packages::ensure_programs(&[
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        ("aarch64-linux-gnu-gcc", "libc6-dev-arm64-cross"),
        ("qemu-aarch64-static", "qemu-user-static"),
    ])?;
    command::run(Command::new("rustup").args(["target", "add", target]))
}

/// apt's package lists, read in this run.
pub fn package_lists() -> Result<()> {
    packages::update()
}

/// Fails where this process may not load BPF programs or make network namespaces.
pub fn require_root(verb: &str, instead: &str) -> Result<()> {
    if !command::is_root() {
        bail!("`cargo xtask {verb}` loads BPF programs and makes network namespaces: {instead}");
    }
    Ok(())
}
