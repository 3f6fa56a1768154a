//! The agent's process against a real API server, with a client that only watches beside it.

mod agent;
mod probe;
mod server;
mod storm;

use std::time::Duration;

use anyhow::{Context, Result};

use self::agent::Process;
use self::probe::{Change, Probe};
pub use self::server::{API, Server};
use crate::control_plane::{Figures, FromApi, Options, Percentiles};
use crate::objects::Size;
use crate::process;

/// How long anything may take before the bench gives up: far beyond any bar.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs everything.
pub fn measure(server: &Server, size: Size, options: &Options) -> Result<Figures> {
    let mut agent = Process::start(server)?;
    let mut figures = Figures {
        cold_start_s: agent.wait_until_ready()?,
        ..Figures::default()
    };
    figures.cold_cpu_ms = agent
        .logged("cpu_ms")?
        .first()
        .copied()
        .context("no cpu_ms")?;
    println!(
        "all programmed {:.2} s after the start, {:.1} ms of CPU behind the lists",
        figures.cold_start_s, figures.cold_cpu_ms
    );
    for line in agent.milestones()? {
        println!("  {line}");
    }
    let mut rounds = vec![0_u32; size.services as usize];
    let (changes, writes) = server.netns.enter(|| {
        std::thread::scope(|scope| {
            let (mut probe, writer) = Probe::start(scope, server, &agent, size)?;
            let before = agent.logged("writes")?.iter().sum::<f64>();
            let changes: Result<Vec<Change>> = (0..options.changes)
                .map(|change| probe.change(size.spread(change), &mut rounds))
                .collect();
            let writes = agent.logged("writes")?.iter().sum::<f64>() - before;
            let storm = storm::storm(server, &agent, options, (size, &mut probe), &mut rounds);
            probe::end(probe, writer)?;
            storm?;
            anyhow::Ok((changes?, writes))
        })
    })??;
    figures.writes_per_change = writes / f64::from(options.changes.max(1));
    note_changes(&mut figures, &changes);
    let [rss, peak] = process::rss_mib(agent.child.id())?;
    println!("resident {rss:.1} MiB, peak {peak:.1} MiB");
    figures.rss_mib = rss;
    [figures.maps_mib, figures.flow_maps_mib] = process::maps_mib(&agent.bpffs)?;
    Ok(figures)
}

fn note_changes(figures: &mut Figures, changes: &[Change]) {
    let all = |value: fn(&Change) -> f64| Percentiles::of(changes.iter().map(value).collect());
    let visible = all(|change| change.visible * 1e3);
    let watch = all(|change| change.watched * 1e3);
    figures.change_us = all(|change| (change.visible - change.watched).max(0.0) * 1e6);
    figures.change_from_api_ms = Some(FromApi {
        visible,
        watch_p99: watch.p99,
    });
    println!(
        "{} changes from the API: p50 {:.2} ms, p99 {:.2} ms; \
         a bare watch: p50 {:.2} ms, p99 {:.2} ms",
        changes.len(),
        visible.p50,
        visible.p99,
        watch.p50,
        watch.p99
    );
}
