//! Prometheus' own engine, asked about scrapes (`tests/prometheus`).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// What a target said at a time.
#[derive(Clone, Debug, Serialize)]
pub struct Scrape {
    /// Seconds of the day's clock.
    pub at: i64,
    /// Labels of the target.
    pub labels: BTreeMap<String, String>,
    /// What it said.
    pub text: String,
}

/// What is asked.
#[derive(Debug, Serialize)]
pub struct Question {
    /// By time.
    pub scrapes: Vec<Scrape>,
    /// Seconds between two points.
    pub step: i64,
    /// What is evaluated from the first scrape to the last.
    pub expressions: Vec<String>,
    /// Texts of rule files.
    pub rules: Vec<String>,
}

/// One series of a result.
#[derive(Debug, Deserialize)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Seconds and values.
    pub points: Vec<(f64, f64)>,
}

/// What became of one expression.
#[derive(Debug, Deserialize)]
pub struct Evaluated {
    /// Why it has no result.
    #[serde(default)]
    pub error: Option<String>,
    /// Its result.
    #[serde(default)]
    pub series: Option<Vec<Series>>,
}

/// Everything that came back, in the order of what was asked.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// Of expressions.
    pub results: Vec<Evaluated>,
    /// What is wrong with each rule file.
    pub rules: Option<Vec<Vec<String>>>,
}

/// Asks the program that SHUNT_PROMETHEUS_BIN names.
pub fn ask(question: &Question) -> Result<Answer> {
    let program = std::env::var_os("SHUNT_PROMETHEUS_BIN");
    let program = program.context("no SHUNT_PROMETHEUS_BIN: use cargo xtask bench pictures")?;
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting Prometheus' engine")?;
    let mut input = child.stdin.take().context("its standard input")?;
    input.write_all(&serde_json::to_vec(question)?)?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "Prometheus' engine: {}",
        output.status
    );
    serde_json::from_slice(&output.stdout).context("reading the answer of Prometheus' engine")
}
