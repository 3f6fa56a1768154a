//! Boots a kernel and reads what its console says.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::guest::{BEGIN, END};
use super::package::Image;
use super::programs::Programs;
use super::{Outcome, Ran};
use crate::command;
use crate::progress;

/// Memory of a guest, in MiB: its root is a part of that.
const MEMORY: &str = "4096";

/// Runs the tests in an emulated machine, whose console is kept in `target/xtask`.
pub fn qemu(name: &str, image: &Image, initramfs: &Path, programs: &Programs) -> Result<Outcome> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", MEMORY, "-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(&image.vmlinuz)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1"]);
    let log = command::target(&format!("xtask/kernel-{name}.log"));
    let mut outcome = watch(&mut qemu, name, &log)?;
    outcome.expected = names(programs.tests.iter());
    if outcome.release.is_empty() {
        bail!("{name}: it did not boot; see {}", log.display());
    }
    if !outcome.is_good() {
        progress::say(&format!("{name}: see {}", log.display()));
    }
    Ok(outcome)
}

/// Runs the tests on the running kernel.
pub fn here(programs: &Programs) -> Result<Outcome> {
    let (agent, object) = (programs.agent.display(), programs.object.display());
    let mut script = format!(
        "export SHUNT_BIN={agent} SHUNT_EBPF_OBJECT={object}\necho \"@release $(uname -r)\"\n"
    );
    for (name, path) in programs.tests_of_all() {
        let path = path.display();
        script += &format!(
            "echo \"{BEGIN} {name}\"\n{path} --nocapture 2>&1\necho \"{END} {name} $?\"\n"
        );
    }
    let log = command::target("xtask/kernel-host.log");
    let mut outcome = watch(Command::new("sh").arg("-c").arg(script), "host", &log)?;
    outcome.expected = names(programs.tests_of_all());
    Ok(outcome)
}

fn names<'a>(tests: impl Iterator<Item = &'a (String, PathBuf)>) -> Vec<String> {
    tests.map(|(name, _)| name.clone()).collect()
}

/// Reads the marks of init from what a command prints, and keeps all of it.
fn watch(command: &mut Command, name: &str, log: &Path) -> Result<Outcome> {
    fs::create_dir_all(command::target("xtask")).context("making target/xtask")?;
    let mut kept = File::create(log).with_context(|| format!("writing {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let output = child.stdout.take().context("its output was asked for")?;
    let mut outcome = Outcome::default();
    let mut began = Instant::now();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("reading the console")?;
        let line = String::from_utf8_lossy(&line);
        writeln!(kept, "{}", line.trim_end()).context("keeping the console")?;
        if let Some((BEGIN, test)) = line.trim().split_once(' ') {
            progress::say(&format!("{name}: {test} ..."));
            began = Instant::now();
        }
        outcome.take(&line, began)?;
    }
    child.wait().context("waiting for the end")?;
    Ok(outcome)
}

impl Outcome {
    /// Reads one line of a console; `began` is when the tests did that run.
    fn take(&mut self, line: &str, began: Instant) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["@release", release] => (*release).clone_into(&mut self.release),
            ["@features", features] => {
                self.features = serde_json::from_str(features).context("the features")?;
            }
            ["@fact", fact @ ..] => {
                let fact = fact.join(" ");
                let (name, value) = fact.split_once(" = ").context("a fact with a value")?;
                self.facts.push((name.to_owned(), value.to_owned()));
            }
            [BEGIN, test] => self.tests.push(((*test).to_owned(), Ran::default())),
            [
                "test",
                "result:",
                _,
                passed,
                "passed;",
                failed,
                _,
                ignored,
                "ignored;",
                ..,
            ] => {
                if let Some((_, ran)) = self.tests.last_mut() {
                    let number = |word: &str| word.parse::<u64>().context("a number of tests");
                    ran.passed = number(passed)?;
                    ran.others = number(failed)? + number(ignored)?;
                }
            }
            [END, _, status] => {
                if let Some((_, ran)) = self.tests.last_mut() {
                    ran.is_done = *status == "0";
                    ran.secs = began.elapsed().as_secs();
                }
            }
            _ => {}
        }
        Ok(())
    }
}
