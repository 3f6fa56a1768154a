//! The fuzzer's corpus, and some thousand packets beyond it: the same ones each time.
//! `cargo xtask fuzz` goes on from there.

use anyhow::{Result, ensure};
use tests::fuzz::check::Target;
use tests::fuzz::{FOUND, Fuzzer, Report};
use tests::rules;

/// Damaged packets of each target.
const PACKETS: u64 = 60_000;

fn run(target: Target, found: &str) -> Result<Report> {
    let mut fuzzer = Fuzzer::new(target, 1, found)?;
    fuzzer.run(PACKETS);
    let report = fuzzer.report;
    ensure!(
        report.findings.is_empty(),
        "{}",
        report.findings.join("\n\n")
    );
    Ok(report)
}

#[test]
fn any_headers_are_read_where_they_are() -> Result<()> {
    rules(&["S-133"]);
    let report = run(Target::Parse, FOUND)?;
    ensure!(report.executions > PACKETS, "{report:?}");
    Ok(())
}

/// No panic, one reason, foreign packets and wrong checksums as they came, answers that come back.
#[test]
fn any_packet_ends_as_it_may() -> Result<()> {
    rules(&["P-14", "S-133", "S-136"]);
    let report = run(Target::Pipeline, FOUND)?;
    // What is checked of translated packets and of their answers was checked.
    ensure!(report.translated > PACKETS / 50, "{}", report.translated);
    ensure!(report.restored > PACKETS / 200, "{}", report.restored);
    Ok(())
}

/// The mutations lead beyond what the Case table shows.
#[test]
fn damaged_packets_reach_ends_that_no_case_does() -> Result<()> {
    let report = run(Target::Pipeline, "")?;
    ensure!(report.kept.len() > 20, "{:?}", report.kept);
    Ok(())
}
