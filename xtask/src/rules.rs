//! `cargo xtask rules`: which tests cite which rule of `docs/service-semantics.md`.
//!
//! Read from the sources alone: string fields of tests and of the data that tests run, the
//! `# rules:` headers of Scenarios, and the `rules: [..]` of explain's tables; a comment cites
//! nothing. A rule without a test has to stand in
//! `docs/rules.md`, with the part that brings it or the reason why it is not for us. The results of
//! the last `cargo xtask test` are shown where there are any; the exit status does not depend on
//! them.

mod book;
mod source;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command;
use crate::tidy;
use book::{Exception, Rule, RuleId};
use source::Package;

/// The rules themselves.
const SEMANTICS: &str = "docs/service-semantics.md";
/// The rules that no test cites.
const EXCEPTIONS: &str = "docs/rules.md";
/// Folders of text files that tests read, each with the file of those tests.
const TEXTS: [(&str, &str); 2] = [
    ("tests/scenarios", "tests/tests/scenarios.rs"),
    ("tests/explain", "tests/tests/explain.rs"),
];

/// These have numbers of rules in their tests without testing any.
const OURSELVES: &str = "xtask/src/rules";

/// A place that cites rules, and what runs it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Citation {
    /// The file, below the root of the repository.
    path: PathBuf,
    line: usize,
    rules: BTreeSet<RuleId>,
    /// What cites: a test, a Case, a row, a Scenario.
    label: String,
    /// The functions with `#[test]` that run it.
    tests: BTreeSet<String>,
}

/// How the last run of a test ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Passed,
    Failed,
}

/// Which rules are cited where, and everything that is wrong with that.
struct Findings {
    rules: BTreeMap<RuleId, Rule>,
    exceptions: BTreeMap<RuleId, Exception>,
    citations: Vec<Citation>,
    complaints: Vec<String>,
}

/// Prints the table; fails where a rule has neither a test nor an exception.
pub fn run() -> Result<()> {
    let findings = find()?;
    let results = fs::read_to_string(results_path()).unwrap_or_default();
    let results = parse_results(&results);
    for rule in findings.rules.values() {
        print!("{}", row(rule, &findings, &results));
    }
    let summary = summary(&findings, &results);
    conclude(&findings.complaints)?;
    println!("{summary}");
    Ok(())
}

/// As [`run`], without the table.
pub fn check() -> Result<()> {
    conclude(&find()?.complaints)
}

/// Keeps what `cargo test` said of each test for the table.
pub fn keep_results(lines: &[String]) -> Result<()> {
    let path = results_path();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).context("making target/xtask")?;
    }
    fs::write(&path, lines.join("\n")).with_context(|| format!("writing {}", path.display()))
}

/// True for a line of `cargo test` that [`keep_results`] wants.
pub fn is_result(line: &str) -> bool {
    parse_result(line).is_some()
}

fn conclude(complaints: &[String]) -> Result<()> {
    for complaint in complaints {
        eprintln!("rules: {complaint}");
    }
    if !complaints.is_empty() {
        bail!("rules: {} complaints", complaints.len());
    }
    Ok(())
}

fn find() -> Result<Findings> {
    let read = |path: &str| {
        fs::read_to_string(command::root().join(path)).with_context(|| format!("reading {path}"))
    };
    let rules = book::rules(&read(SEMANTICS)?);
    let (exceptions, mut complaints) = book::exceptions(&read(EXCEPTIONS)?);
    let mut packages: BTreeMap<String, Package> = BTreeMap::new();
    let mut texts = Vec::new();
    let ours = |path: &PathBuf| !path.starts_with(OURSELVES);
    for path in tidy::tracked()?.into_iter().filter(ours) {
        let name = path.display().to_string();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let package = name.split('/').next().unwrap_or_default().to_owned();
            let package = packages.entry(package).or_default();
            if let Err(error) = package.read(&path, &read(&name)?) {
                complaints.push(format!("{name}: {error}"));
            }
        } else if let Some((_, runner)) = TEXTS.iter().find(|(folder, _)| path.starts_with(folder))
        {
            texts.push((path, *runner));
        }
    }
    let mut citations = Vec::new();
    for (path, runner) in texts {
        let text = read(&path.display().to_string())?;
        let tests = packages
            .values()
            .flat_map(|package| package.tests_in(Path::new(runner)))
            .collect::<BTreeSet<String>>();
        let found = book::fields(&text);
        if found.is_empty() && path.extension().is_some_and(|extension| extension == "txt") {
            complaints.push(format!("{}: no rules", path.display()));
        }
        citations.extend(found.into_iter().map(|field| Citation {
            path: path.clone(),
            line: field.line,
            rules: field.rules,
            label: field.label,
            tests: BTreeSet::clone(&tests),
        }));
    }
    for package in packages.values() {
        citations.extend(package.citations());
    }
    Ok(judge(rules, exceptions, citations, complaints))
}

/// Finds what does not fit together.
fn judge(
    rules: BTreeMap<RuleId, Rule>,
    exceptions: BTreeMap<RuleId, Exception>,
    citations: Vec<Citation>,
    mut complaints: Vec<String>,
) -> Findings {
    let mut cited = BTreeSet::new();
    for citation in &citations {
        let place = format!("{}:{}", citation.path.display(), citation.line);
        if citation.tests.is_empty() {
            complaints.push(format!("{place}: no test runs `{}`", citation.label));
            continue;
        }
        for rule in &citation.rules {
            // Rules of the datapath's design have numbers too.
            if rule.is_of_design() {
                continue;
            }
            if !rules.contains_key(rule) {
                complaints.push(format!("{place}: there is no rule {rule}"));
            }
            cited.insert(rule.clone());
        }
    }
    for (rule, exception) in &exceptions {
        if !rules.contains_key(rule) {
            complaints.push(format!("{EXCEPTIONS}: there is no rule {rule}"));
        } else if cited.contains(rule) != matches!(exception, Exception::Rest { .. }) {
            let is = if cited.contains(rule) { "is" } else { "is not" };
            let said = exception.text();
            complaints.push(format!("{EXCEPTIONS}: {rule} {is} cited, so not `{said}`"));
        }
    }
    for rule in rules.values() {
        if !cited.contains(&rule.id) && !exceptions.contains_key(&rule.id) {
            complaints.push(format!("no test cites {} {}", rule.id, rule.title));
        }
    }
    Findings {
        rules,
        exceptions,
        citations,
        complaints,
    }
}

/// A rule with the places that cite it.
fn row(rule: &Rule, findings: &Findings, results: &BTreeMap<String, Outcome>) -> String {
    let mut text = format!("{:<7} {}\n", rule.id.to_string(), rule.title);
    if let Some(exception) = findings.exceptions.get(&rule.id) {
        text += &format!("        - {}\n", exception.text());
    }
    for citation in findings.citations.iter() {
        if citation.rules.contains(&rule.id) {
            let outcome = match outcome(citation, results) {
                Some(Outcome::Passed) => "passed",
                Some(Outcome::Failed) => "FAILED",
                None => "",
            };
            let place = format!("{}:{}", citation.path.display(), citation.line);
            text += &format!("        {outcome:<7} {place}  {}\n", citation.label);
        }
    }
    text
}

fn summary(findings: &Findings, results: &BTreeMap<String, Outcome>) -> String {
    let of_rule = |rule: &&RuleId| {
        let citations = findings.citations.iter();
        citations
            .filter(|citation| citation.rules.contains(*rule))
            .map(|citation| outcome(citation, results))
            .collect::<Vec<_>>()
    };
    let (mut cited, mut passed, mut failed) = (0, 0, 0);
    for rule in findings.rules.keys() {
        let outcomes = of_rule(&rule);
        cited += usize::from(!outcomes.is_empty());
        if outcomes.contains(&Some(Outcome::Failed)) {
            failed += 1;
        } else if outcomes.contains(&Some(Outcome::Passed)) {
            passed += 1;
        }
    }
    let count = |is: fn(&Exception) -> bool| findings.exceptions.values().filter(|e| is(e)).count();
    let not_for_us = count(|exception| matches!(exception, Exception::NotForUs { .. }));
    let later = count(|exception| matches!(exception, Exception::Later { .. }));
    let mut text = format!(
        "rules: {} rules, {cited} cited in {} places, {later} of later parts, \
         {not_for_us} not for us",
        findings.rules.len(),
        findings.citations.len(),
    );
    if !results.is_empty() {
        text += &format!("; in the last test run {passed} passed, {failed} failed");
    }
    text
}

/// Failed where one of its tests did; `None` where none of them ran.
fn outcome(citation: &Citation, results: &BTreeMap<String, Outcome>) -> Option<Outcome> {
    let mut outcomes = citation.tests.iter().filter_map(|test| results.get(test));
    let first = *outcomes.next()?;
    let has_failed = first == Outcome::Failed || outcomes.any(|o| *o == Outcome::Failed);
    Some(if has_failed {
        Outcome::Failed
    } else {
        Outcome::Passed
    })
}

/// Results by the last part of a test's name; of several with one name the worst.
fn parse_results(text: &str) -> BTreeMap<String, Outcome> {
    let mut results = BTreeMap::new();
    for (name, outcome) in text.lines().filter_map(parse_result) {
        let name = name.rsplit("::").next().unwrap_or(name).to_owned();
        if outcome == Outcome::Failed || !results.contains_key(&name) {
            results.insert(name, outcome);
        }
    }
    results
}

/// Reads `test pipeline::tests::name ... ok`.
fn parse_result(line: &str) -> Option<(&str, Outcome)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    match outcome.trim() {
        "ok" => Some((name, Outcome::Passed)),
        "FAILED" => Some((name, Outcome::Failed)),
        _ => None,
    }
}

fn results_path() -> PathBuf {
    command::target("xtask/test-results.txt")
}
