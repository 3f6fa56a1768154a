//! `cargo xtask coverage`: which lines of host code the host layers of the tests reach.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::command;
use crate::progress;
use crate::test;
use crate::test::programs::{self, Program};

/// What is not ours, or is a test itself.
const NOT_JUDGED: &str =
    r"(/registry/|/rustc/|/library/|/tests/|tests\.rs$|/bench/|/xtask/|/target/)";

/// Runs the host layers with counters in every line, and prints the share that ran by file.
///
/// Fails where a test fails, or where no llvm-cov reads what this compiler writes.
pub fn run() -> Result<()> {
    let tools = Tools::find()?;
    build::ebpf()?;
    let profiles = command::target("coverage/profiles");
    let _ = fs::remove_dir_all(&profiles);
    fs::create_dir_all(&profiles).context("making target/coverage")?;
    progress::say("building the host tests with counters, and running them");
    let programs = programs::build(instrumented(), &test::of_host()?)?;
    // What tests start counts too: the agent.
    let mut objects = vec![command::target("coverage/debug/shunt")];
    objects.extend(programs.iter().map(|program| program.path.clone()));
    run_tests(programs, &profiles)?;
    let merged = command::target("coverage/merged.profdata");
    let mut merge = Command::new(tools.profdata);
    merge.args(["merge", "--sparse", "--output"]);
    command::run(merge.arg(&merged).arg(&profiles))?;
    let mut report = Command::new(tools.cov);
    report
        .arg("report")
        .arg("--instr-profile")
        .arg(&merged)
        .args(["--ignore-filename-regex", NOT_JUDGED])
        .args(["--show-region-summary=false", "--show-branch-summary=false"]);
    for object in &objects {
        report.arg("--object").arg(object);
    }
    command::run(&mut report)
}

/// Cargo, for tests with counters, beside the usual artifacts.
fn instrumented() -> Command {
    let mut cargo = command::bare_cargo("test");
    cargo.arg("--workspace");
    cargo.arg("--target-dir").arg(command::target("coverage"));
    cargo.env("SHUNT_EBPF_OBJECT", build::object());
    cargo.env("RUSTFLAGS", "-C instrument-coverage");
    // A build script counts too when it runs: not beside the tests' counts.
    cargo.env("LLVM_PROFILE_FILE", "/dev/null");
    cargo
}

fn run_tests(programs: Vec<Program>, profiles: &Path) -> Result<()> {
    let variables = [
        ("SHUNT_EBPF_OBJECT", build::object()),
        ("LLVM_PROFILE_FILE", profiles.join("%p-%m.profraw")),
        (test::SHORT_MODEL.0, test::SHORT_MODEL.1.into()),
    ];
    programs::run(programs, test::lanes(), &variables, |finished| {
        let (again, output) = (finished.program.again(), finished.output);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            bail!("{again} failed ({}):\n{said}", output.status);
        }
        Ok(())
    })
}

/// LLVM's own tools, of a version that reads what this compiler writes.
struct Tools {
    profdata: PathBuf,
    cov: PathBuf,
}

impl Tools {
    fn find() -> Result<Self> {
        let version = command::output("rustc", &["-vV"]).context("rustc -vV failed")?;
        let llvm = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "));
        let llvm: u32 = llvm
            .and_then(|version| version.split('.').next()?.parse().ok())
            .context("rustc does not tell its LLVM")?;
        let sysroot = command::first_line("rustc", &["--print", "sysroot"]).unwrap_or_default();
        let host = version
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .unwrap_or_default();
        let component = Path::new(&sysroot)
            .join("lib/rustlib")
            .join(host)
            .join("bin");
        let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin"));
        let folder = [component, debian]
            .into_iter()
            .find(|folder| folder.join("llvm-cov").is_file());
        let Some(folder) = folder else {
            bail!(
                "no llvm-cov for LLVM {llvm}: rustup component add llvm-tools, or apt-get install \
                 llvm-{llvm}"
            );
        };
        Ok(Self {
            profdata: folder.join("llvm-profdata"),
            cov: folder.join("llvm-cov"),
        })
    }
}
