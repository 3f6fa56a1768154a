//! The rows of one setting: rounds of test runs, each after the other, so that what disturbs the
//! machine disturbs all alike.

use std::collections::BTreeMap;

use ::tests::cases::world::CaseFamily;
use anyhow::{Context, Result, ensure};

use super::Extent;
use super::plan::plan;
use super::programs::{Program, Programs, Target};
use super::report::Row;
use super::tables;
use super::what::{ALL, What};

/// What is the same for a few rows.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where the programs run.
    pub programs: Vec<Program>,
    /// 4 or 6.
    pub family: u8,
    /// IP protocol.
    pub protocol: u8,
    /// Flows that are known, and among which packets are drawn.
    pub flows: u32,
    /// Numbers of Services, ascending.
    pub services: Vec<u32>,
}

/// Nanoseconds of every run, by program, number of Services and row.
type Samples = BTreeMap<(&'static str, u32, &'static str), Vec<f64>>;

/// Measures a setting.
pub fn measure<F: CaseFamily>(setting: &Setting, extent: Extent) -> Result<Vec<Row>> {
    let mut programs = Programs::load::<F>(setting.flows)?;
    prepare::<F>(&mut programs, setting)?;
    let mut samples = Samples::new();
    for services in &setting.services {
        let hz = programs.hz;
        programs
            .tables
            .fill(&tables::services::<F>(*services, hz))?;
        for program in &setting.programs {
            for _ in 0..extent.rounds {
                for what in ALL {
                    let ns = one::<F>(&mut programs, setting, what, extent.repeat)
                        .with_context(|| what.name())?;
                    let key = (program.name(), *services, what.name());
                    samples.entry(key).or_default().push(ns);
                }
            }
        }
    }
    Ok(rows(setting, &samples))
}

/// Flows into both flow tables, and what the yardsticks need.
fn prepare<F: CaseFamily>(programs: &mut Programs, setting: &Setting) -> Result<()> {
    let hz = programs.hz;
    programs.tables.fill(&tables::services::<F>(1, hz))?;
    let now = now::<F>(programs, setting)?;
    let family = tables::suffix::<F>();
    let flows = programs.map(&format!("FLOWS{family}"))?;
    let yardsticks = programs.map(&format!("YARDSTICKS{family}"))?;
    tables::fill_flows::<F>(&[flows, yardsticks], setting.protocol, setting.flows, now)?;
    tables::fill_choices::<F>(programs.map(&format!("CHOICES{family}"))?)
}

/// Seconds of the programs' clock, as a flow that they create shows it.
fn now<F: CaseFamily>(programs: &mut Programs, setting: &Setting) -> Result<u32> {
    one::<F>(programs, setting, What::NewFlow, 1)?;
    let flows = programs.tables.flows::<F>();
    let written = flows.written.borrow();
    let flow = written.handshakes.values().next();
    Ok(flow.context("no flow was created")?.last_seen_secs)
}

/// What one packet takes, without the wrapper. Every packet must come to the same end.
fn one<F: CaseFamily>(
    programs: &mut Programs,
    setting: &Setting,
    what: What,
    repeat: u32,
) -> Result<f64> {
    let flows = if what.is_new() { 0 } else { setting.flows };
    let bytes = what.packet(setting.protocol).bytes::<F>();
    let mut plan = plan::<F>(&bytes, setting.protocol, what.varied(), flows);
    plan.state = next_state();
    programs.set_plan(&plan)?;
    let wrapper = programs.run::<F>(Target::Null, &bytes, repeat)?;
    programs.set_plan(&plan)?;
    programs.tables.clear_counters()?;
    let all = programs.run::<F>(Target::Of(what), &bytes, repeat)?;
    if !matches!(what, What::Yardstick | What::YardstickNew) {
        let counters = programs.tables.counters()?;
        let count = counters.get(&what.reason()).copied().unwrap_or(0);
        ensure!(
            is_nearly_all(count, repeat),
            "{count} of {repeat} packets came to the end {:?}: {counters:?}",
            what.reason()
        );
    }
    Ok(all - wrapper)
}

/// Flows that are drawn twice, and what the machine does beside, may be a thousandth.
fn is_nearly_all(count: u64, repeat: u32) -> bool {
    count + u64::from(repeat / 1000) >= u64::from(repeat)
}

/// Another beginning of the random numbers for every run, so that no run finds what an earlier one
/// left in the caches, and new flows are new.
fn next_state() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static STATE: AtomicU32 = AtomicU32::new(1);
    STATE.fetch_add(0x9e37_79b9, Ordering::Relaxed)
}

fn rows(setting: &Setting, samples: &Samples) -> Vec<Row> {
    let mut rows = Vec::new();
    for program in &setting.programs {
        // A yardstick knows no Services: it is one figure for all rows of the setting.
        let yardstick = |what: What| {
            let of_all = setting
                .services
                .iter()
                .filter_map(|services| samples.get(&(program.name(), *services, what.name())));
            median(of_all.flatten().copied().collect())
        };
        for services in &setting.services {
            for what in ALL {
                let ns = match what {
                    What::Yardstick | What::YardstickNew => yardstick(what),
                    _ => median(samples[&(program.name(), *services, what.name())].clone()),
                };
                rows.push(Row {
                    program: program.name(),
                    family: setting.family,
                    protocol: setting.protocol,
                    what,
                    flows: setting.flows,
                    services: *services,
                    ns,
                    ratio: ns / yardstick(what.yardstick()),
                });
            }
        }
    }
    rows
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_number_lies_between_the_two() {
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    }
}
