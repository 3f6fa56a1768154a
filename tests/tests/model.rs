//! The model test: seeded random runs against the oracle.
//!
//! It tries seeds for a minute (`SHUNT_MODEL_MINUTES` for as many minutes), and whether it passes
//! depends on what it finds alone. `SHUNT_MODEL_SEED=N` replays one seed; `SHUNT_MODEL_FAILURES=N`
//! goes on until so many seeds have failed.

use std::time::{Duration, Instant};

use tests::model::run::{Failure, Seen, run};
use tests::model::{random, shrink};
use tests::rules;

/// Seeds that are tried however slow the machine is.
const SEEDS_MIN: u64 = 200;
/// What must have been seen in them, so that the test is known to test something.
const WANTED: [&str; 9] = [
    "none",
    "drop",
    "reject",
    "dnat",
    "dnat and snat",
    "followed",
    "answered by a backend",
    "audited",
    "evicted",
];

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let number = text.parse().ok();
    Some(number.unwrap_or_else(|| panic!("{name} is no number")))
}

/// What went wrong with a seed, if something did, in words.
fn try_seed(seed: u64, seen: &mut Seen) -> Option<String> {
    let plan = random::plan(seed);
    match run(&plan, seed as u32) {
        Ok(found) => {
            for (what, count) in found {
                *seen.entry(what).or_default() += count;
            }
            None
        }
        Err(failure) => Some(describe(seed, failure)),
    }
}

fn describe(seed: u64, failure: Failure) -> String {
    let whole = random::plan(seed);
    let (plan, failure) = shrink::shrink(&whole, seed as u32, failure);
    let lines = plan.actions.iter().enumerate();
    let lines: Vec<String> = lines
        .map(|(at, action)| format!("{at}: {action:?}"))
        .collect();
    format!(
        "seed {seed}, action {}: {}\n{:?}\n{}\nagain: SHUNT_MODEL_SEED={seed} cargo test -p tests \
         --test model\n",
        failure.at,
        failure.text,
        plan.settings,
        lines.join("\n"),
    )
}

#[test]
fn the_product_agrees_with_the_oracle() {
    rules(&[
        "S-002", "S-009", "S-010", "S-020", "S-021", "S-024", "S-026", "S-027", "S-028", "S-034",
        "S-035", "S-042", "S-043", "S-046", "S-060", "S-061", "S-062", "S-065", "S-067", "S-071",
        "S-075", "S-077", "S-078", "S-080", "S-081", "S-083", "S-091", "S-094", "S-095", "S-099",
        "S-101", "S-104", "S-105", "S-106", "S-107", "S-113", "S-119a", "S-119b", "S-120", "S-121",
        "S-124",
    ]);
    let mut seen = Seen::new();
    let mut failures = Vec::new();
    if let Some(seed) = number("SHUNT_MODEL_SEED") {
        failures.extend(try_seed(seed, &mut seen));
        assert!(failures.is_empty(), "{}", failures.join("\n"));
        return;
    }
    let minutes: f64 = number("SHUNT_MODEL_MINUTES").unwrap_or(1.0);
    let failures_max = number("SHUNT_MODEL_FAILURES").unwrap_or(1);
    let (budget, start) = (Duration::from_secs_f64(60.0 * minutes), Instant::now());
    let mut seed = 0;
    // Time only decides how many seeds are tried.
    while failures.len() < failures_max && (seed < SEEDS_MIN || start.elapsed() < budget) {
        failures.extend(try_seed(seed, &mut seen));
        seed += 1;
    }
    println!("{seed} seeds: {seen:?}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for what in WANTED {
        assert!(seen.contains_key(what), "{what} was never seen");
    }
}
