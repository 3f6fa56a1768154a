//! `cargo xtask soak`: everything that happens to a node, over and over, under traffic. Nothing
//! may be lost, and memory must not grow.
//!
//! The agent of n1 is stopped, killed and left away; that of n2 lives through all of it, so its
//! memory is the one that tells.

mod deeds;
mod plot;
mod samples;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::traffic::Report;

use self::deeds::Deed;
use self::samples::Samples;
use self::world::World;

/// Between two deeds: traffic in peace, so that a loss has one cause.
const PEACE: Duration = Duration::from_millis(500);
/// Progress is told so often.
const TOLD_EVERY: Duration = Duration::from_secs(30);

/// How long, and what is printed.
#[derive(clap::Args)]
pub struct Options {
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Instead of minutes, for tests: end after so many deeds
    #[arg(long, hide = true)]
    deeds: Option<u64>,
    /// The order of what happens
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object, on one line, as the last of stdout
    #[arg(long)]
    json: bool,
    /// Draw the memory over time into this SVG file and a PNG file beside it
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Runs, prints what was tried and what was lost, and fails if anything was.
pub fn run(options: &Options) -> Result<()> {
    let mut random = Random(options.seed);
    let mut world = World::start()?;
    println!(
        "Two nodes, an agent on each, clients of {} kinds at work; seed {}.",
        world.load.streams(),
        options.seed
    );
    let started = Instant::now();
    let end = Duration::from_secs(options.minutes * 60);
    let mut samples = Samples::default();
    samples.take(&world)?;
    let mut done: BTreeMap<Deed, u64> = BTreeMap::new();
    let mut told = started;
    let mut count = 0;
    while options
        .deeds
        .map_or(started.elapsed() < end, |deeds| count < deeds)
    {
        // Each kind of deed once in a round, in an order that differs.
        for deed in random.shuffled(&Deed::ALL) {
            deed.do_to(&mut world, &mut random)
                .and_then(|()| world.load.ask())
                .with_context(|| world.logs())
                .with_context(|| format!("{deed:?}, deed {count} of seed {}", options.seed))?;
            *done.entry(deed).or_default() += 1;
            count += 1;
            samples.take(&world)?;
            std::thread::sleep(PEACE);
        }
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            println!(
                "{:>5} s: {count} deeds, {samples}",
                started.elapsed().as_secs()
            );
        }
    }
    let drift = world.drift()?;
    let streams = world.load.end()?;
    tell_deeds(&done, drift);
    let (connections, lost) = tell_streams(&streams);
    println!("\n{samples}");
    if let Some(path) = &options.plot {
        for path in plot::draw(path, &samples)? {
            println!("drawn in {}", path.display());
        }
    }
    if options.json {
        let deeds: BTreeMap<&str, u64> =
            done.iter().map(|(it, times)| (it.text(), *times)).collect();
        println!(
            "{}",
            json!({
                "seconds": started.elapsed().as_secs(), "seed": options.seed, "deeds": deeds,
                "connections": connections, "lost": lost, "memory": samples.figures(),
            })
        );
    }
    ensure!(lost == 0, "{lost} of {connections} connections were lost");
    samples.verdict()
}

/// What was tried.
fn tell_deeds(done: &BTreeMap<Deed, u64>, drift: u64) {
    println!("\n{:<44}{:>8}", "what happened", "times");
    for (deed, times) in done {
        println!("{:<44}{times:>8}", deed.text());
    }
    println!("{:<44}{drift:>8}", "repairs by audits on n2");
}

/// What was lost; returns the sums.
fn tell_streams(streams: &[(String, Report)]) -> (u64, u64) {
    println!(
        "\n{:<44}{:>12}{:>8}",
        "who connected", "connections", "lost"
    );
    let (mut connections, mut lost) = (0, 0);
    for (name, report) in streams {
        println!("{name:<44}{:>12}{:>8}", report.connections, report.failed());
        connections += u64::from(report.connections);
        lost += u64::from(report.failed());
    }
    // One that had been lost would have ended the run.
    let held = "held all the time, each asked after each deed";
    println!("{held:<44}{:>12}{:>8}", streams.len(), 0);
    (connections, lost)
}

/// Reproducible choices: Knuth's MMIX generator.
pub struct Random(u64);

impl Random {
    /// A number below `below`.
    pub fn below(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    /// The same in another order.
    fn shuffled<T: Copy>(&mut self, all: &[T]) -> Vec<T> {
        let mut all = all.to_vec();
        for last in (1..all.len()).rev() {
            all.swap(last, self.below(last + 1));
        }
        all
    }
}
