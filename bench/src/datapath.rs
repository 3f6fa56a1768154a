//! The datapath: what one packet costs our programs, over yardsticks in the same run.
//!
//! A wrapper restores the packet, makes it one of another flow and tail-calls what is measured
//! (`bench-ebpf`). What the wrapper itself costs is measured with a target that does nothing, and
//! taken off. Absolute times mean nothing: the ratios do.

mod measure;
mod parts;
mod plan;
mod programs;
mod report;
mod tables;
mod what;

use std::path::PathBuf;

use ::tests::cases::kernel;
use ::tests::net::Sandbox;
use anyhow::{Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use proxy_common::protocol;
use proxy_ebpf::{V4, V6};

use measure::{Session, Setting};
use programs::Program;
use report::Row;
use what::{ALL, What};

/// What is measured.
#[derive(clap::Args)]
pub struct Options {
    /// Every combination: UDP and 10,000 Services with every number of flows, and every row with
    /// 1,000,000 packets
    #[arg(long)]
    full: bool,
    /// Only with these numbers of flows
    #[arg(long, value_delimiter = ',', value_name = "N")]
    flows: Vec<u32>,
    /// Only the programs of this hook
    #[arg(long)]
    program: Option<Program>,
    /// Only this family
    #[arg(long, value_enum)]
    family: Option<Version>,
    /// Only these rows, and the yardsticks
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    rows: Vec<What>,
    /// Few packets of few flows: shows that it works, and no more
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Draw the ratios into this SVG file and a PNG file beside it
    #[arg(
        long, value_name = "FILE", num_args = 0..=1, default_missing_value = "target/datapath.svg"
    )]
    plot: Option<PathBuf>,
    /// Print one JSON object, on one line, as the last of stdout
    #[arg(long)]
    json: bool,
}

/// A family by its version of IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Version {
    #[value(name = "4")]
    V4,
    #[value(name = "6")]
    V6,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Packets of one test run.
    repeat: u32,
    /// Of one whose row is judged by nothing.
    repeat_unjudged: u32,
    /// Test runs of which the median is taken.
    rounds: u32,
}

/// Flows of the rows that are there in every case but a quick one.
const FLOWS: [u32; 4] = [1, 100, 10_000, 1_000_000];
/// Flows where UDP and 10,000 Services are measured too.
const FLOWS_USUAL: u32 = 10_000;
/// Numbers of Services.
const SERVICES: [u32; 2] = [10, 10_000];

/// Measures, and prints what came out.
pub fn run(options: &Options) -> Result<()> {
    pin_to_one_cpu()?;
    let extent = extent(options);
    let sandbox = Sandbox::new()?;
    let netns = kernel::namespace(&sandbox)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut session = Session::default();
    report::heading();
    for setting in settings(options) {
        let before = session.parts;
        let found = netns.enter(|| match setting.family {
            4 => measure::measure::<V4>(&setting, extent, &mut session),
            _ => measure::measure::<V6>(&setting, extent, &mut session),
        })??;
        report::print(&found);
        eprintln!("{setting}: {}", session.parts.since(&before));
        rows.extend(found);
    }
    report::judge(&rows);
    println!("{}, {:.1} s of the processor", session.parts, cpu_secs()?);
    if let Some(path) = &options.plot {
        report::draw(path, &rows)?;
        println!("drawn: {}", path.display());
    }
    if options.json {
        println!("{}", report::json(&rows));
    }
    Ok(())
}

/// How much of it was asked for.
fn extent(options: &Options) -> Extent {
    let (repeat, repeat_unjudged) = match (options.quick, options.full) {
        (true, _) => (2_000, 2_000),
        (false, true) => (1_000_000, 1_000_000),
        (false, false) => (1_000_000, 200_000),
    };
    Extent {
        repeat,
        repeat_unjudged,
        rounds: 5,
    }
}

/// The combinations, in the order in which they are measured.
fn settings(options: &Options) -> Vec<Setting> {
    let flows: &[u32] = match (options.quick, options.flows.as_slice()) {
        (true, _) => &[100],
        (false, []) => &FLOWS,
        (false, chosen) => chosen,
    };
    let programs = [Program::Tc, Program::Xdp];
    let programs = programs
        .into_iter()
        .filter(|program| is_chosen(&options.program, program));
    let families = [(Version::V4, 4), (Version::V6, 6)];
    let families = families
        .into_iter()
        .filter(|(version, _)| is_chosen(&options.family, version));
    let rows = rows(&options.rows);
    let mut settings = Vec::new();
    for (_, family) in families {
        for protocol in [protocol::TCP, protocol::UDP] {
            for flows in flows {
                let is_usual = *flows == FLOWS_USUAL;
                let is_tcp = protocol == protocol::TCP;
                if !is_tcp && !is_usual && !options.full {
                    continue;
                }
                // UDP and 10,000 Services are varied each by itself.
                let has_all_services = options.full || is_usual && is_tcp;
                settings.extend(programs.clone().map(|program| Setting {
                    program,
                    family,
                    protocol,
                    flows: *flows,
                    services: SERVICES[..if has_all_services { 2 } else { 1 }].to_vec(),
                    rows: rows.clone(),
                }));
            }
        }
    }
    settings
}

/// The rows that were asked for with the yardsticks, or all.
fn rows(asked: &[What]) -> Vec<What> {
    let is_wanted = |what: &What| asked.is_empty() || what.is_yardstick() || asked.contains(what);
    ALL.into_iter().filter(is_wanted).collect()
}

/// True where nothing else was asked for.
fn is_chosen<T: PartialEq>(asked: &Option<T>, one: &T) -> bool {
    asked.as_ref().is_none_or(|asked| asked == one)
}

/// Time of a processor that this process took, in seconds: on a quiet machine a run takes little
/// more.
fn cpu_secs() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let times = [usage.user_time(), usage.system_time()];
    let secs = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(times.into_iter().map(secs).sum())
}

/// Stays on one processor: caches and the clock are its own.
fn pin_to_one_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    let Some(last) = std::thread::available_parallelism()?.get().checked_sub(1) else {
        bail!("no processor");
    };
    cpus.set(last)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn varied(words: &[&str]) -> Vec<(u8, u32, Vec<u32>)> {
        let words = ["bench", "--program", "tc", "--family", "4"]
            .iter()
            .chain(words);
        let settings = settings(&Line::parse_from(words).options);
        let of = |it: Setting| (it.protocol, it.flows, it.services);
        settings.into_iter().map(of).collect()
    }

    #[test]
    fn default_set_varies_udp_and_services_each_by_itself() {
        let (few, all) = (vec![10], vec![10, 10_000]);
        let expected = [
            (protocol::TCP, 1, few.clone()),
            (protocol::TCP, 100, few.clone()),
            (protocol::TCP, 10_000, all.clone()),
            (protocol::TCP, 1_000_000, few.clone()),
            (protocol::UDP, 10_000, few),
        ];
        assert_eq!(varied(&[]), expected);
        let full = varied(&["--full"]);
        assert_eq!(full.len(), 8);
        assert!(full.iter().all(|(_, _, services)| *services == all));
    }
}
