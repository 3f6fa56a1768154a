//! The rows of one setting: rounds of test runs, each after the other, so that what disturbs the
//! machine disturbs all alike.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ::tests::cases::world::CaseFamily;
use anyhow::{Context, Result, ensure};
use proxy_ebpf::pipeline::verdict::TURN_SECS;

use super::Extent;
use super::plan::plan;
use super::programs::{Program, Programs, Target};
use super::report::Row;
use super::tables;
use super::what::What;

/// What is the same for a few rows.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where the programs run.
    pub program: Program,
    /// 4 or 6.
    pub family: u8,
    /// IP protocol.
    pub protocol: u8,
    /// Flows that are known, and among which packets are drawn.
    pub flows: u32,
    /// Numbers of Services, ascending.
    pub services: Vec<u32>,
    /// What is measured, the yardsticks first.
    pub rows: Vec<What>,
}

/// Nanoseconds of every run, by number of Services and row.
type Samples = BTreeMap<(u32, &'static str), Vec<f64>>;

/// Measures a setting.
pub fn measure<F: CaseFamily>(setting: &Setting, extent: Extent) -> Result<Vec<Row>> {
    let mut programs = Programs::load::<F>(setting.program, setting.flows)?;
    let mut clock = prepare::<F>(&mut programs, setting)?;
    let mut samples = Samples::new();
    for services in &setting.services {
        let hz = programs.hz;
        programs
            .tables
            .fill(&tables::services::<F>(*services, hz))?;
        for _ in 0..extent.rounds {
            for what in setting.rows.iter().copied() {
                clock.keep_flows::<F>(&programs, setting)?;
                let ns = one::<F>(&mut programs, setting, what, extent.repeat)
                    .with_context(|| what.name())?;
                samples
                    .entry((*services, what.name()))
                    .or_default()
                    .push(ns);
            }
        }
    }
    Ok(rows(setting, &samples))
}

/// Flows into both flow tables, and what the yardsticks need.
fn prepare<F: CaseFamily>(programs: &mut Programs, setting: &Setting) -> Result<Clock> {
    let hz = programs.hz;
    programs.tables.fill(&tables::services::<F>(1, hz))?;
    let now = now::<F>(programs, setting)?;
    let clock = Clock {
        now,
        at: Instant::now(),
        filled: now,
    };
    let family = tables::suffix::<F>();
    fill::<F>(programs, setting, now)?;
    tables::fill_choices::<F>(programs.map(&format!("CHOICES{family}"))?)?;
    Ok(clock)
}

/// The flows of a setting, last seen at `now`.
fn fill<F: CaseFamily>(programs: &Programs, setting: &Setting, now: u32) -> Result<()> {
    let family = tables::suffix::<F>();
    let flows = programs.map(&format!("FLOWS{family}"))?;
    let yardsticks = programs.map(&format!("YARDSTICKS{family}"))?;
    tables::fill_flows::<F>(&[flows, yardsticks], setting, now)
}

/// Seconds of the programs' clock.
struct Clock {
    /// What it showed.
    now: u32,
    /// When.
    at: Instant,
    /// What it showed when flows were filled in.
    filled: u32,
}

/// Seconds at the end of a turn that are too few for a row.
const TURN_END_SECS: u32 = 4;

impl Clock {
    /// XDP leaves the first packet of a flow in each turn to tc, which is not there: before the
    /// turn in which the flows were seen is over, they are filled in anew, in the next one.
    fn keep_flows<F: CaseFamily>(&mut self, programs: &Programs, setting: &Setting) -> Result<()> {
        if setting.program == Program::Tc {
            return Ok(());
        }
        let turn = |secs: u32| secs / TURN_SECS;
        if turn(self.read() + TURN_END_SECS) == turn(self.filled) {
            return Ok(());
        }
        while turn(self.read() + TURN_END_SECS) != turn(self.read()) {
            std::thread::sleep(Duration::from_millis(100));
        }
        self.filled = self.read();
        fill::<F>(programs, setting, self.filled)
    }

    fn read(&self) -> u32 {
        self.now + self.at.elapsed().as_secs() as u32
    }
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
    let program = setting.program;
    let bytes = what.packet(program, setting.protocol).bytes::<F>();
    let mut plan = plan::<F>(&bytes, setting.protocol, what.varied(), flows);
    plan.state = next_state();
    programs.set_plan(&plan)?;
    let wrapper = programs.run::<F>(Target::Null, &bytes, repeat)?;
    programs.set_plan(&plan)?;
    programs.tables.clear_counters()?;
    let all = programs.run::<F>(Target::Of(what), &bytes, repeat)?;
    if !what.is_yardstick() {
        let counters = programs.tables.counters()?;
        let reason = what.reason(program);
        let count = counters.get(&reason).copied().unwrap_or(0);
        ensure!(
            is_nearly_all(count, repeat),
            "{count} of {repeat} packets came to the end {reason:?}: {counters:?}"
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
    let program = setting.program.name();
    // A yardstick knows no Services: it is one figure for all rows of the setting.
    let yardstick = |what: What| {
        let of_all = setting
            .services
            .iter()
            .filter_map(|services| samples.get(&(*services, what.name())));
        median(of_all.flatten().copied().collect())
    };
    let row = |services: u32, what: What| {
        let ns = match what {
            _ if what.is_yardstick() => yardstick(what),
            _ => median(samples[&(services, what.name())].clone()),
        };
        Row {
            program,
            family: setting.family,
            protocol: setting.protocol,
            what,
            flows: setting.flows,
            services,
            ns,
            ratio: ns / yardstick(what.yardstick()),
        }
    };
    let of = |services: &u32| {
        let services = *services;
        let rows = setting.rows.iter();
        rows.map(|what| row(services, *what)).collect::<Vec<_>>()
    };
    setting.services.iter().flat_map(of).collect()
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
