//! What kube-proxy left in netfilter (S-181): `shunt doctor` finds it, `shunt cleanup --kube-proxy`
//! removes it. By the tools that kube-proxy itself uses; a tool that is missing has left nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Chains that begin so are kube-proxy's,
const PREFIX: &str = "KUBE-";
/// but for those that the kubelet keeps.
const KUBELET: [&str; 3] = ["KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-IPTABLES-HINT"];
/// The device that mode ipvs binds addresses to.
const IPVS_DEVICE: &str = "kube-ipvs0";
/// Families of nftables.
const FAMILIES: [&str; 2] = ["ip", "ip6"];

/// One thing that kube-proxy left, with what it takes to remove it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leftover {
    /// Its nftables table of a family.
    Table(&'static str),
    /// Its chains and what jumps to them.
    Chains {
        /// Name of the tool that shows them.
        tool: String,
        /// What removes them, given to its `-restore`.
        input: String,
    },
    /// The device of mode ipvs.
    Ipvs,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(family) => write!(f, "nftables table {family} kube-proxy"),
            Self::Chains { tool, .. } => write!(f, "{tool}: chains {PREFIX}*"),
            Self::Ipvs => write!(f, "ipvs and its device {IPVS_DEVICE}"),
        }
    }
}

/// What was found, and where it could not be looked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// What is there.
    pub leftovers: Vec<Leftover>,
    /// Tools that are not installed.
    pub missing_tools: Vec<String>,
    /// Tools that failed, with their complaints.
    pub failures: Vec<String>,
}

/// Looks for everything; changes nothing.
pub fn find() -> Result<Found> {
    let mut found = Found::default();
    for family in FAMILIES {
        match run("nft", &["list", "table", family, "kube-proxy"], "")? {
            Some(ran) if ran.is_success => found.leftovers.push(Leftover::Table(family)),
            // The answer where there is no such table.
            Some(ran) if ran.errors.contains("No such file or directory") => {}
            Some(ran) => found.failures.push(format!("nft: {}", ran.errors.trim())),
            None if found.missing_tools.is_empty() => found.missing_tools.push("nft".to_owned()),
            None => {}
        }
    }
    for tool in ["iptables", "ip6tables"] {
        for variant in ["-nft", "-legacy", ""] {
            find_chains(format!("{tool}{variant}"), &mut found)?;
        }
    }
    if Path::new("/sys/class/net").join(IPVS_DEVICE).exists() {
        found.leftovers.push(Leftover::Ipvs);
    }
    Ok(found)
}

fn find_chains(tool: String, found: &mut Found) -> Result<()> {
    match run(&format!("{tool}-save"), &[], "")? {
        Some(ran) if ran.is_success => {
            let family = tool.split('-').next().unwrap_or_default().to_owned();
            // `iptables` is another name of one of the variants.
            let is_known = |input: &String| {
                found.leftovers.iter().any(|known| match known {
                    Leftover::Chains { tool, input: same } => {
                        tool.split('-').next() == Some(&family) && same == input
                    }
                    _ => false,
                })
            };
            if let Some(input) = restore_input(&ran.output).filter(|input| !is_known(input)) {
                found.leftovers.push(Leftover::Chains { tool, input });
            }
        }
        Some(ran) => found
            .failures
            .push(format!("{tool}-save: {}", ran.errors.trim())),
        None => found.missing_tools.push(tool),
    }
    Ok(())
}

/// Removes everything, and says what there was.
pub fn remove() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for leftover in find()?.leftovers {
        match &leftover {
            Leftover::Table(family) => must("nft", &["delete", "table", family, "kube-proxy"], "")?,
            Leftover::Chains { tool, input } => {
                must(&format!("{tool}-restore"), &["--noflush"], input)?;
            }
            Leftover::Ipvs => {
                must("ip", &["link", "delete", IPVS_DEVICE], "")?;
                run("ipvsadm", &["--clear"], "")?;
            }
        }
        removed.push(leftover.to_string());
    }
    Ok(removed)
}

/// What takes kube-proxy's chains out of a saved rule set, all tables at once; `None`: it has none.
fn restore_input(saved: &str) -> Option<String> {
    let mut input = String::new();
    for table in saved.split_inclusive("COMMIT\n") {
        let name = table.lines().find_map(|line| line.strip_prefix('*'));
        let chains: BTreeSet<&str> = table
            .lines()
            .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
            .filter(|chain| is_ours(chain))
            .collect();
        let Some(name) = name.filter(|_| !chains.is_empty()) else {
            continue;
        };
        // Writing to a string cannot fail.
        let _ = writeln!(input, "*{name}");
        for chain in &chains {
            // Naming it empties it.
            let _ = writeln!(input, ":{chain} - [0:0]");
        }
        for rule in table.lines().filter(|line| leads_in(line)) {
            let _ = writeln!(input, "{}", rule.replacen("-A", "-D", 1));
        }
        for chain in &chains {
            let _ = writeln!(input, "-X {chain}");
        }
        input.push_str("COMMIT\n");
    }
    (!input.is_empty()).then_some(input)
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(PREFIX) && !KUBELET.contains(&chain)
}

/// A rule of another chain that jumps to one of kube-proxy's.
fn leads_in(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    let jump = words.windows(2).find(|pair| pair[0] == "-j");
    words.len() > 2
        && words[0] == "-A"
        && !is_ours(words[1])
        && jump.is_some_and(|pair| is_ours(pair[1]))
}

struct Ran {
    is_success: bool,
    output: String,
    errors: String,
}

/// `None`: there is no such program.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<Option<Ran>> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        child => child.with_context(|| format!("starting {program}"))?,
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read ends with its own complaint.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    Ok(Some(Ran {
        is_success: output.status.success(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }))
}

fn must(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    match run(program, arguments, input)? {
        Some(ran) if ran.is_success => Ok(()),
        Some(ran) => bail!("{program} {}: {}", arguments.join(" "), ran.errors.trim()),
        None => bail!("{program} is not installed"),
    }
}

#[cfg(test)]
mod tests {
    use crate::rules;

    use super::restore_input;

    #[test]
    fn only_chains_of_kube_proxy_go() {
        rules(&["S-181"]);
        let saved = "\
# comment
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -j DOCKER
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j KUBE-SVC-ABC
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
COMMIT
";
        let expected = "\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-ABC
COMMIT
";
        assert_eq!(restore_input(saved).as_deref(), Some(expected));
        assert_eq!(
            restore_input("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"),
            None
        );
    }
}
