//! The test programs, and what they need beside them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build;
use crate::command;
use crate::test::cargo_test;

/// Programs that the tests call.
const TOOLS: [&str; 7] = [
    "ip",
    "nft",
    "iptables",
    "ip6tables",
    "ping",
    "modprobe",
    "sysctl",
];

/// What runs on a kernel.
pub struct Programs {
    /// Test programs by name, in the order of the tests.
    pub tests: Vec<(String, PathBuf)>,
    /// The agent.
    pub agent: PathBuf,
    /// Client and server of the network tests.
    pub probe: PathBuf,
    /// The BPF object.
    pub object: PathBuf,
}

/// Builds the test programs without running them.
pub fn build(names: &[&str]) -> Result<Programs> {
    let mut cargo = cargo_test();
    for name in names {
        cargo.args(["--test", name]);
    }
    cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    let output = cargo
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("starting cargo test")?;
    if !output.status.success() {
        bail!("the test programs were not built");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let built: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let tests = names.iter().map(|name| {
        let found = built.iter().find(|message| {
            message["target"]["name"] == *name && message["executable"].is_string()
        });
        let path = found.and_then(|message| message["executable"].as_str());
        let path = path.with_context(|| format!("cargo built no {name}"))?;
        Ok(((*name).to_owned(), PathBuf::from(path)))
    });
    Ok(Programs {
        tests: tests.collect::<Result<_>>()?,
        agent: command::target("release/shunt"),
        probe: command::target("debug/probe"),
        object: build::object(),
    })
}

impl Programs {
    /// The tools that tests call, with the libraries of all programs.
    pub fn files_beside(&self) -> Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        for tool in TOOLS {
            let found = command::which(tool).with_context(|| format!("no program {tool}"))?;
            files.insert(found);
        }
        // nft reads names of protocols.
        files.insert(PathBuf::from("/etc/protocols"));
        // iptables loads its matches and targets by name.
        let multiarch = command::first_line("gcc", &["-print-multiarch"])
            .or_else(|| command::first_line("dpkg-architecture", &["-qDEB_HOST_MULTIARCH"]))
            .unwrap_or_else(|| "x86_64-linux-gnu".to_owned());
        for entry in std::fs::read_dir(format!("/usr/lib/{multiarch}/xtables"))
            .into_iter()
            .flatten()
            .flatten()
        {
            files.insert(entry.path());
        }
        let programs = self
            .tests
            .iter()
            .map(|(_, path)| path)
            .chain([&self.agent, &self.probe]);
        let mut libraries = BTreeSet::new();
        for file in programs.chain(&files) {
            libraries.extend(libraries_of(file)?);
        }
        files.extend(libraries);
        Ok(files)
    }
}

/// What the dynamic linker loads for a program.
fn libraries_of(file: &Path) -> Result<Vec<PathBuf>> {
    let text =
        command::output("ldd", &[file.to_str().context("a path in UTF-8")?]).unwrap_or_default();
    let path = |line: &str| {
        let words = line.split_whitespace();
        words
            .map(PathBuf::from)
            .find(|word| word.is_absolute() && word.is_file())
    };
    Ok(text.lines().filter_map(path).collect())
}
