//! Long steps: a spinner on a terminal, plain lines elsewhere; their output lies in a log.

use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::command;

const TICK: Duration = Duration::from_millis(100);
const WORTH_SAYING: Duration = Duration::from_secs(2);
const STILL_RUNNING: Duration = Duration::from_secs(60);
const LOG_LINES_SHOWN: usize = 25;

/// Says one thing on the reader's side channel (stdout is for results).
pub fn say(text: &str) {
    eprintln!("xtask: {text}");
}

/// Runs a command that takes long: shows that it runs and how long it took. Its output goes to
/// `target/xtask/NAME.log`; the log's end is shown when the command fails.
pub fn long(what: &str, name: &str, command: &mut Command) -> Result<()> {
    logged(what, name, command, spinner(what))
}

/// As [`long`], for a step beside others that write to the terminal.
pub fn beside(what: &str, name: &str, command: &mut Command) -> Result<()> {
    logged(what, name, command, None)
}

fn logged(what: &str, name: &str, run: &mut Command, show: Option<ProgressBar>) -> Result<()> {
    let log = command::target(&format!("xtask/{name}.log"));
    fs::create_dir_all(command::target("xtask")).context("making target/xtask")?;
    let file = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    run.stdin(std::process::Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let started = Instant::now();
    let child = run
        .spawn()
        .with_context(|| format!("starting {name} ({what})"))?;
    let status = watch(what, child, show)?;
    if !status.success() {
        bail!(
            "{what}: failed ({status}); the end of {}:\n{}",
            log.display(),
            tail(&log)
        );
    }
    if started.elapsed() >= WORTH_SAYING {
        say(&format!(
            "{what}: done in {} s",
            started.elapsed().as_secs()
        ));
    }
    Ok(())
}

fn watch(what: &str, mut child: Child, spinner: Option<ProgressBar>) -> Result<ExitStatus> {
    if spinner.is_none() {
        say(&format!("{what} ..."));
    }
    let started = Instant::now();
    let mut said = started;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        thread::sleep(TICK);
        if spinner.is_none() && said.elapsed() >= STILL_RUNNING {
            said = Instant::now();
            say(&format!("{what}: {} s so far", started.elapsed().as_secs()));
        }
    };
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    Ok(status)
}

fn spinner(what: &str) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    let style = ProgressStyle::with_template("xtask: {msg} {spinner} {elapsed}");
    if let Ok(style) = style {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(TICK);
    Some(spinner)
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}
