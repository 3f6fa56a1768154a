//! Test programs: built by cargo, found in what it says, run side by side.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command;

/// A program of tests.
pub struct Program {
    /// The file of integration tests, or the library or binary whose units it tests.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// The folder of its package, where cargo would start it.
    folder: PathBuf,
    /// What to give to `cargo test` for this program alone.
    selection: String,
}

/// What came of a program that ran.
pub struct Finished {
    /// The program.
    pub program: Program,
    /// All that it printed, and how it ended.
    pub output: Output,
    /// How long it ran.
    pub took: Duration,
}

/// Builds what `selection` selects, in the way of `cargo test`, without running it.
pub fn build(mut cargo_test: Command, selection: &[String]) -> Result<Vec<Program>> {
    cargo_test.args(selection);
    cargo_test.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    let output = cargo_test
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo test")?;
    if !output.status.success() {
        bail!("the test programs were not built");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    Ok(messages.filter_map(|message| program(&message)).collect())
}

/// Reads cargo's message about a program of tests; other messages are none.
fn program(message: &Value) -> Option<Program> {
    let path = message["executable"].as_str()?;
    if message["profile"]["test"] != true {
        return None;
    }
    let name = message["target"]["name"].as_str()?;
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    let package = folder.file_name()?.to_str()?;
    let selection = match message["target"]["kind"][0].as_str()? {
        "lib" => format!("-p {package} --lib"),
        kind => format!("-p {package} --{kind} {name}"),
    };
    Some(Program {
        name: name.to_owned(),
        path: path.into(),
        folder: folder.to_owned(),
        selection,
    })
}

impl Program {
    /// What to type for this program alone.
    pub fn again(&self) -> String {
        format!("cargo test {}", self.selection)
    }

    fn run(self, variables: &[(&str, PathBuf)]) -> Result<Finished> {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).stdin(Stdio::null());
        command::scrub(&mut command, command::is_of_this_run);
        command.env("CARGO_MANIFEST_DIR", &self.folder);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let start = Instant::now();
        let output = command
            .output()
            .with_context(|| format!("starting {}", self.path.display()))?;
        Ok(Finished {
            program: self,
            output,
            took: start.elapsed(),
        })
    }
}

/// Runs programs in their order, `lanes` at a time, and tells of each as it ends. All run,
/// whatever goes wrong; the first that could not be started or told of is the error.
pub fn run(
    programs: Vec<Program>,
    lanes: usize,
    variables: &[(&str, PathBuf)],
    mut tell: impl FnMut(Finished) -> Result<()>,
) -> Result<()> {
    let waiting = Mutex::new(VecDeque::from(programs));
    let next = || {
        waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..lanes {
            let sender = sender.clone();
            scope.spawn(move || {
                while let Some(program) = next() {
                    if sender.send(program.run(variables)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut outcome = Ok(());
        for finished in receiver {
            outcome = outcome.and(finished.and_then(&mut tell));
        }
        outcome
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn message_of_a_test_program_is_read_and_of_another_not() {
        let mut message = json!({
            "reason": "compiler-artifact",
            "manifest_path": "/shunt/tests/Cargo.toml",
            "target": {"kind": ["test"], "name": "net_paths"},
            "profile": {"test": true},
            "executable": "/shunt/target/debug/deps/net_paths-1",
        });
        let found = program(&message).expect("a program");
        assert_eq!(found.again(), "cargo test -p tests --test net_paths");
        assert_eq!(found.folder, Path::new("/shunt/tests"));
        message["profile"]["test"] = json!(false);
        assert!(program(&message).is_none());
    }

    fn shell(name: &str, script: &Path) -> Program {
        Program {
            name: name.to_owned(),
            path: script.to_owned(),
            folder: "/".into(),
            selection: String::new(),
        }
    }

    #[test]
    fn programs_run_side_by_side_and_all_are_told_of() {
        let programs = ["/bin/true", "/bin/false", "/nowhere", "/bin/true"];
        let programs = programs.map(|path| shell(path, Path::new(path)));
        let mut ended = Vec::new();
        let outcome = run(programs.into(), 2, &[], |finished| {
            ended.push((finished.program.name, finished.output.status.success()));
            Ok(())
        });
        assert!(format!("{:#}", outcome.expect_err("one is nowhere")).contains("/nowhere"));
        ended.sort();
        let expected = [
            ("/bin/false", false),
            ("/bin/true", true),
            ("/bin/true", true),
        ];
        assert_eq!(
            ended,
            expected.map(|(name, passed)| (name.to_owned(), passed))
        );
    }
}
