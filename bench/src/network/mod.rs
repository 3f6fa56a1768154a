//! The network: real sockets through shunt and through the real kube-proxy, over a direct way of
//! the same length in the same run.
//!
//! Each proxy has a cluster of its own, all built alike, and one has none. Which one is measured
//! changes every half second, so that what disturbs the machine disturbs all; what is compared is
//! measured next to each other, and only ratios of one round are used.

mod cells;
mod hooks;
mod picture;
mod report;
mod rounds;
mod rows;
mod service;
mod statistics;
pub mod traffic;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::peers::KubeProxy;
use crate::process;
use cells::GROUPS;
use rounds::Extent;
use world::World;

pub use picture::draw;
pub use report::{interval, json, overhead_text, print};
pub use rows::Report;

/// Services that one range of addresses holds besides ours.
const SERVICES_MAX: u32 = 60_000;

/// What is measured.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; intervals of fewer than six hold the median with less than 95 % confidence
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Numbers of Services
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,10000",
        value_name = "N"
    )]
    pub services: Vec<u32>,
    /// Milliseconds of one figure in one round
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..10_000))]
    pub millis: u64,
    /// Three short rounds with 20 Services: shows that it works, and no more
    #[arg(long, conflicts_with_all = ["rounds", "services", "millis"])]
    pub quick: bool,
    /// Draw the ratios into this SVG file and a PNG file beside it
    #[arg(
        long, value_name = "FILE", num_args = 0..=1, default_missing_value = "target/network.svg"
    )]
    pub plot: Option<PathBuf>,
    /// The kube-proxy that is measured [default: the one that was built for the tests]
    #[arg(long, value_name = "FILE")]
    pub kube_proxy: Option<PathBuf>,
    /// Print one JSON object, on one line, as the last of stdout
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// With `quick`, or with everything as it is by default.
    pub fn of_quick(quick: bool) -> Self {
        Self {
            rounds: 10,
            services: vec![1, 10_000],
            millis: 400,
            quick,
            plot: None,
            kube_proxy: None,
            json: false,
        }
    }
}

/// Measures, and prints what came out. A hook that left its packets to others is an error.
pub fn run(options: &Options) -> Result<()> {
    let report = measure(options)?;
    report::print(&report);
    if let Some(path) = &options.plot {
        for path in picture::draw(path, &report)? {
            println!("drawn into {}", path.display());
        }
    }
    if options.json {
        println!("{}", report::json(&report));
    }
    ensure_hooks(&report)
}

/// An error where a hook left its packets to others.
pub fn ensure_hooks(report: &Report) -> Result<()> {
    let wrong = report.wrong_hooks();
    let names = wrong
        .iter()
        .map(|row| format!("{:?} {}", row.cell, row.figure.name()));
    let names: Vec<String> = names.collect();
    ensure!(
        names.is_empty(),
        "hooks did not answer what their rows are about:\n{}",
        names.join("\n")
    );
    Ok(())
}

/// Measures.
pub fn measure(options: &Options) -> Result<Report> {
    let kube_proxy = KubeProxy::at(options.kube_proxy.as_deref())?;
    let (services, extent) = match options.quick {
        true => (
            &[20][..],
            Extent {
                rounds: 3,
                time: Duration::from_millis(50),
            },
        ),
        false => (
            options.services.as_slice(),
            Extent {
                rounds: options.rounds,
                time: Duration::from_millis(options.millis),
            },
        ),
    };
    ensure!(
        services
            .iter()
            .all(|count| (1..=SERVICES_MAX).contains(count)),
        "Services: from 1 to {SERVICES_MAX}"
    );
    println!("load averages before: {}", process::load());
    let mut report = Report {
        rounds: extent.rounds,
        ..Report::default()
    };
    for count in services {
        println!("{count} Services");
        let mut world = World::start(*count, &kube_proxy)?;
        world.try_all(GROUPS.iter().flat_map(|group| group.cells()))?;
        let samples = rounds::measure(&mut world, extent)?;
        report.add(*count, &samples);
    }
    println!("load averages after: {}", process::load());
    Ok(report)
}
