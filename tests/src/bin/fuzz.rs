//! The program of `cargo xtask fuzz`.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use tests::fuzz::check::Target;
use tests::fuzz::{FOUND, Fuzzer};

/// Damages packets and looks at what the packet's path makes of them.
#[derive(Parser)]
struct Arguments {
    /// What is fuzzed; both, if none is named
    #[arg(value_enum)]
    target: Option<Name>,
    /// How long
    #[arg(long, default_value_t = 1)]
    minutes: u64,
    /// Another order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the packets that led to an end of their own, as lines of the corpus
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    Parse,
    Pipeline,
}

/// Packets between two looks at the clock.
const BATCH: u64 = 1_000;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // What goes wrong is told once, as a finding.
    std::panic::set_hook(Box::new(|_| ()));
    let targets = match arguments.target {
        Some(Name::Parse) => vec![Target::Parse],
        Some(Name::Pipeline) => vec![Target::Pipeline],
        None => vec![Target::Parse, Target::Pipeline],
    };
    let time = Duration::from_secs(60 * arguments.minutes) / targets.len() as u32;
    let mut findings = Vec::new();
    for target in targets {
        let mut fuzzer = Fuzzer::new(target, arguments.seed, FOUND)?;
        let end = Instant::now() + time;
        while Instant::now() < end && fuzzer.report.findings.is_empty() {
            fuzzer.run(BATCH);
        }
        let report = fuzzer.report;
        println!(
            "{target:?}: {} executions, {} translated, {} restored, {} kept, {} findings",
            report.executions,
            report.translated,
            report.restored,
            report.kept.len(),
            report.findings.len()
        );
        if arguments.keep {
            println!("{}", report.kept.join("\n"));
        }
        findings.extend(report.findings);
    }
    if !findings.is_empty() {
        bail!("{}", findings.join("\n\n"));
    }
    Ok(())
}
