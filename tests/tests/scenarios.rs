//! Runs every file in `tests/scenarios`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tests::scenarios::{Mode, Scenario};

/// Seeds of failing writes.
const SEEDS: u64 = 10;

fn run_all(modes: &[Mode]) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut paths: Vec<_> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    assert!(!paths.is_empty(), "no scenarios");
    let mut failures = Vec::new();
    for path in paths {
        let scenario = Scenario::parse(&fs::read_to_string(&path)?)
            .with_context(|| path.display().to_string())?;
        for mode in modes {
            if let Err(error) = scenario.run(*mode) {
                failures.push(format!("{}, {mode:?}: {error:#}", path.display()));
                break;
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}

#[test]
fn scenarios_end_in_the_expected_maps() -> Result<()> {
    run_all(&[Mode::Plain])
}

#[test]
fn scenarios_converge_while_writes_fail() -> Result<()> {
    let modes: Vec<Mode> = (1..=SEEDS).map(|seed| Mode::Failing(seed * 7919)).collect();
    run_all(&modes)
}

#[test]
fn scenarios_survive_a_kill_after_each_write() -> Result<()> {
    run_all(&[Mode::Killed])
}
