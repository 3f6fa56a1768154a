//! Commands whose failure says what was run and what it answered.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `words` and returns its standard output.
///
/// Fails when the program is missing or its status is not 0, with the command and what it wrote
/// to standard error.
pub fn run(words: &[&str]) -> Result<String> {
    run_with_input(words, "")
}

/// Runs `words` with `input` on its standard input; otherwise like [`run`].
pub fn run_with_input(words: &[&str], input: &str) -> Result<String> {
    let shown = words.join(" ");
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running `{shown}`"))?;
    let mut stdin = child.stdin.take().context("standard input was asked for")?;
    // A program that fails early closes its input: its own message is the better one.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child
        .wait_with_output()
        .with_context(|| format!("running `{shown}`"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{shown}` failed ({}): {}\n{input}",
            output.status,
            message.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `program` is found in PATH.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .any(|folder| folder.join(program).exists())
}
