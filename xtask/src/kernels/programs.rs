//! The test programs, and what they need beside them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::TESTS;
use crate::build;
use crate::command;
use crate::test::{cargo_test, programs};

/// Programs that the tests call.
const TOOLS: [&str; 9] = [
    "ip",
    "nft",
    "iptables",
    "ip6tables",
    "ping",
    "modprobe",
    "sysctl",
    "tc",
    "ethtool",
];

/// What runs on a kernel.
pub struct Programs {
    /// Test programs by name, in the order of the tests.
    pub tests: Vec<(String, PathBuf)>,
    /// The agent.
    pub agent: PathBuf,
    /// That of another version of the map ABI.
    pub other_agent: PathBuf,
    /// Client and server of the network tests.
    pub probe: PathBuf,
    /// The BPF object.
    pub object: PathBuf,
}

/// Builds the test programs without running them.
pub fn build(names: &[&str]) -> Result<Programs> {
    let selection: Vec<String> = names
        .iter()
        .flat_map(|name| ["--test".to_owned(), (*name).to_owned()])
        .collect();
    let built = programs::build(cargo_test(), &selection)?;
    let tests = names.iter().map(|name| {
        let found = built.iter().find(|program| program.name == *name);
        let found = found.with_context(|| format!("cargo built no {name}"))?;
        Ok(((*name).to_owned(), found.path.clone()))
    });
    Ok(Programs {
        tests: tests.collect::<Result<_>>()?,
        agent: command::target("release/shunt"),
        other_agent: command::target("other-abi/shunt"),
        probe: command::target("debug/probe"),
        object: build::object(),
    })
}

impl Programs {
    /// Without those of emulated machines.
    pub fn tests_of_all(&self) -> impl Iterator<Item = &(String, PathBuf)> {
        self.tests
            .iter()
            .filter(|(name, _)| TESTS.contains(&name.as_str()))
    }

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
        let programs = self.tests.iter().map(|(_, path)| path).chain([
            &self.agent,
            &self.other_agent,
            &self.probe,
        ]);
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
