//! A Rust that compiles for BPF: it needs unstable options and the standard library's source.
//! rustup's nightly where it has them, else Debian's own Rust.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::{linker, packages};
use crate::command;
use crate::progress;

/// Debian's Rust and what bpf-linker is built against.
const DEBIAN_PACKAGES: [&str; 5] = [
    "rustc-web",
    "rust-web-src",
    "cargo-web",
    "llvm-22-dev",
    "libzstd-dev",
];
/// Its compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// The oldest compiler, as minor version, that builds this workspace.
const RUST_MINOR_MIN: u32 = 95;

/// A compiler that builds for BPF.
pub struct BpfRust {
    /// Its cargo.
    pub cargo: PathBuf,
    /// Its rustc.
    pub rustc: PathBuf,
    /// Major version of the LLVM inside: the linker must read the bitcode of this one.
    pub llvm: u32,
}

impl BpfRust {
    /// Installs clippy beside the compiler where it is missing.
    pub fn ensure_clippy(&self) -> Result<()> {
        if self.rustc.with_file_name("cargo-clippy").is_file() {
            return Ok(());
        }
        if self.rustc != Path::new(DEBIAN_RUSTC) {
            bail!(
                "no clippy beside {}: rustup component add --toolchain nightly clippy",
                self.rustc.display()
            );
        }
        packages::install(&["rust-web-clippy"])
    }

    /// Its cargo, told nothing by the environment of this run, unstable options permitted.
    pub fn cargo(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.cargo);
        command.arg(verb).current_dir(command::root());
        command::scrub(&mut command, command::steers_rust);
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1");
        // cargo looks for its sub-commands (clippy) on PATH: those of this compiler come first.
        let beside = self.rustc.parent().map(Path::to_path_buf);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = beside.into_iter().chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        command
    }
}

/// Finds a Rust that compiles for BPF; installs Debian's when there is none.
pub fn find_or_install() -> Result<BpfRust> {
    if let Some(rust) = nightly().or_else(debian) {
        return Ok(rust);
    }
    progress::say(
        "no Rust for BPF here: neither a rustup nightly with the rust-src component and its LLVM, \
         nor Debian's rustc-web with rust-web-src",
    );
    packages::install(&DEBIAN_PACKAGES)?;
    let Some(rust) = debian() else {
        bail!(
            "Debian's packages are installed, yet /usr/bin/rustc (1.{RUST_MINOR_MIN} or later, \
             with source and llvm-22-dev) is not usable. Otherwise: rustup toolchain install \
             nightly --component rust-src"
        );
    };
    Ok(rust)
}

/// rustup's nightly. Only where its LLVM is here too, else no linker can be built for it.
fn nightly() -> Option<BpfRust> {
    let bin = |name| {
        command::first_line("rustup", &["which", "--toolchain", "nightly", name]).map(PathBuf::from)
    };
    inspect(bin("cargo")?, bin("rustc")?)
}

fn debian() -> Option<BpfRust> {
    inspect("/usr/bin/cargo".into(), DEBIAN_RUSTC.into())
}

fn inspect(cargo: PathBuf, rustc: PathBuf) -> Option<BpfRust> {
    let version = command::output(&rustc, &["-vV"])?;
    let field = |name: &str| {
        let value = version.lines().find_map(|line| line.strip_prefix(name))?;
        Some(
            value
                .trim()
                .split('.')
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    };
    let minor: u32 = field("release:")?.get(1)?.parse().ok()?;
    let llvm: u32 = field("LLVM version:")?.first()?.parse().ok()?;
    let sysroot = command::first_line(&rustc, &["--print", "sysroot"])?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    let usable =
        cargo.is_file() && source.is_file() && minor >= RUST_MINOR_MIN && linker::can_serve(llvm);
    usable.then_some(BpfRust { cargo, rustc, llvm })
}
