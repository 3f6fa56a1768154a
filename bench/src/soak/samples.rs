//! Memory over time.

use std::fmt;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::world::World;
use crate::process;

/// What may come on top of what was there after the first quarter, in MiB: caches of the
/// allocator.
const GROWTH_MAX_MIB: f64 = 4.0;
/// With fewer there is nothing to compare.
const SAMPLES_MIN: usize = 40;

/// Memory at one moment, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Since the first sample.
    pub secs: f64,
    /// Resident in the agent of n1, which starts again and again.
    pub young_agent: f64,
    /// Resident in the agent of n2, which lives all the time.
    pub old_agent: f64,
    /// Maps of n1.
    pub maps: f64,
}

/// All moments.
#[derive(Debug, Default)]
pub struct Samples {
    first: Option<Instant>,
    all: Vec<Sample>,
}

impl Samples {
    /// Takes one more.
    pub fn take(&mut self, world: &World) -> Result<()> {
        let first = *self.first.get_or_insert_with(Instant::now);
        let rss = |node: usize| {
            let pid = world.rig.agents[node].pid().context("it does not run")?;
            Ok::<_, anyhow::Error>(process::rss_mib(pid)?[0])
        };
        let bpffs = world.rig.agents[0].bpffs();
        self.all.push(Sample {
            secs: first.elapsed().as_secs_f64(),
            young_agent: rss(0)?,
            old_agent: rss(1)?,
            maps: process::maps_mib(bpffs.as_ref())?.iter().sum(),
        });
        Ok(())
    }

    /// In order of time.
    pub fn all(&self) -> &[Sample] {
        &self.all
    }

    /// First and last values, for programs.
    pub fn figures(&self) -> Value {
        let ends = [self.all.first(), self.all.last()];
        let of = |value: fn(&Sample) -> f64| ends.map(|sample| sample.map(value));
        json!({
            "agent_mib": of(|sample| sample.old_agent),
            "restarted_agent_mib": of(|sample| sample.young_agent),
            "maps_mib": of(|sample| sample.maps),
        })
    }

    /// Fails where memory has grown: the last quarter's median against the second one's.
    pub fn verdict(&self) -> Result<()> {
        let quarter = self.all.len() / 4;
        if self.all.len() < SAMPLES_MIN {
            return Ok(());
        }
        for (what, value) in [
            ("the agent", (|it| it.old_agent) as fn(&Sample) -> f64),
            ("the restarted agent", |it| it.young_agent),
            ("the maps", |it| it.maps),
        ] {
            let median = |from: usize| {
                let mut part: Vec<f64> = self.all[from..from + quarter].iter().map(value).collect();
                part.sort_by(f64::total_cmp);
                part[quarter / 2]
            };
            let (before, after) = (median(quarter), median(self.all.len() - quarter));
            ensure!(
                after <= before + GROWTH_MAX_MIB,
                "{what} has grown from {before:.1} to {after:.1} MiB"
            );
        }
        Ok(())
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(first), Some(last)) = (self.all.first(), self.all.last()) else {
            return Ok(());
        };
        write!(
            f,
            "agent {:.1} MiB ({:.1} at first), restarted agent {:.1} MiB ({:.1}), \
             maps {:.1} MiB ({:.1})",
            last.old_agent,
            first.old_agent,
            last.young_agent,
            first.young_agent,
            last.maps,
            first.maps
        )
    }
}
