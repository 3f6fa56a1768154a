//! The rows of one setting: rounds of test runs, each after the other, so that what disturbs the
//! machine disturbs all alike.

use std::collections::BTreeMap;
use std::fmt;

use ::tests::cases::world::CaseFamily;
use anyhow::{Context, Result, ensure};
use proxy_common::protocol;
use proxy_ebpf::pipeline::verdict::TURN_SECS;

use super::Extent;
use super::parts::{Part, Parts};
use super::plan::plan;
use super::programs::{Program, Programs, Target};
use super::report::{self, Row};
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

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            protocol::UDP => "udp",
            _ => "tcp",
        };
        let (program, family) = (self.program.name(), self.family);
        write!(f, "{program} IPv{family} {protocol} {} flows", self.flows)
    }
}

/// Nanoseconds of every run, by number of Services and row.
type Samples = BTreeMap<(u32, &'static str), Vec<f64>>;

/// What settings leave to those after them.
#[derive(Debug, Default)]
pub struct Session {
    /// Kernel ticks per second, once they are known.
    hz: Option<u32>,
    /// What took the time.
    pub parts: Parts,
}

/// Measures a setting.
pub fn measure<F: CaseFamily>(
    setting: &Setting,
    extent: Extent,
    session: &mut Session,
) -> Result<Vec<Row>> {
    let Session { hz, parts } = session;
    let programs = parts.time(Part::Loading, || {
        Programs::load::<F>(setting.program, setting.flows, *hz)
    })?;
    *hz = Some(programs.hz);
    let mut bench = Bench {
        programs,
        setting,
        extent,
        filled: 0,
        parts,
    };
    bench.prepare::<F>()?;
    let mut samples = Samples::new();
    for (position, services) in (0..).zip(&setting.services) {
        bench.serve::<F>(*services)?;
        for round in 0..extent.rounds {
            // A yardstick knows no Services: its rounds are spread over all numbers of them.
            let has_yardsticks = round % setting.services.len() as u32 == position;
            bench.round::<F>(has_yardsticks, |what, ns| {
                let of_row = samples.entry((*services, what.name())).or_default();
                of_row.push(ns);
            })?;
        }
    }
    Ok(rows(setting, &samples))
}

/// The programs of a setting, and what they were given.
struct Bench<'a> {
    programs: Programs,
    setting: &'a Setting,
    extent: Extent,
    /// When flows were filled in, in seconds of the programs' clock.
    filled: u32,
    parts: &'a mut Parts,
}

impl Bench<'_> {
    /// Flows into both flow tables, and what the yardsticks need.
    fn prepare<F: CaseFamily>(&mut self) -> Result<()> {
        let family = tables::suffix::<F>();
        tables::fill_choices::<F>(self.programs.map(&format!("CHOICES{family}"))?)?;
        self.fill::<F>(&["FLOWS", "YARDSTICKS"])
    }

    /// The flows of the setting, last seen now, into these tables of the family.
    fn fill<F: CaseFamily>(&mut self, names: &[&str]) -> Result<()> {
        self.filled = self.programs.now()?;
        let (programs, setting, now) = (&self.programs, self.setting, self.filled);
        self.parts.time(Part::Filling, || {
            let family = tables::suffix::<F>();
            let maps = names
                .iter()
                .map(|name| programs.map(&format!("{name}{family}")));
            tables::fill_flows::<F>(&maps.collect::<Result<Vec<_>>>()?, setting, now)
        })
    }

    /// So many Services.
    fn serve<F: CaseFamily>(&mut self, services: u32) -> Result<()> {
        let programs = &mut self.programs;
        self.parts.time(Part::Filling, || {
            let services = tables::services::<F>(services, programs.hz);
            programs.tables.fill(&services)
        })
    }

    /// One run of each row.
    fn round<F: CaseFamily>(
        &mut self,
        has_yardsticks: bool,
        mut sample: impl FnMut(What, f64),
    ) -> Result<()> {
        let mut wrappers = BTreeMap::new();
        let rows = self.setting.rows.iter().copied();
        for what in rows.filter(|what| has_yardsticks || !what.is_yardstick()) {
            let ns = self.settled::<F>(what).with_context(|| what.name())?;
            let shape = (what.varied(), what.is_new());
            let wrapper = match wrappers.get(&shape) {
                Some(known) => *known,
                None => self.wrapper::<F>(what)?,
            };
            wrappers.insert(shape, wrapper);
            sample(what, ns - wrapper);
        }
        Ok(())
    }

    /// What one packet takes, with the wrapper. XDP leaves the first packet of a flow in each turn
    /// to tc, which is not there: flows are filled in anew in each turn, and a run that was under
    /// way when one ended is done again.
    fn settled<F: CaseFamily>(&mut self, what: What) -> Result<f64> {
        if self.setting.program == Program::Tc || !what.is_established() {
            let ns = self.run::<F>(what)?;
            self.check(what)?;
            return Ok(ns);
        }
        loop {
            while self.programs.now()? / TURN_SECS != self.filled / TURN_SECS {
                self.fill::<F>(&["FLOWS"])?;
            }
            let ns = self.run::<F>(what)?;
            if self.programs.now()? / TURN_SECS == self.filled / TURN_SECS {
                self.check(what)?;
                return Ok(ns);
            }
        }
    }

    fn run<F: CaseFamily>(&mut self, what: What) -> Result<f64> {
        self.programs.tables.clear_counters()?;
        self.test_run::<F>(Part::Rows, Target::Of(what), what)
    }

    /// What the wrapper alone takes to make the packets of a row.
    fn wrapper<F: CaseFamily>(&mut self, what: What) -> Result<f64> {
        self.test_run::<F>(Part::Wrapper, Target::Null, what)
    }

    fn test_run<F: CaseFamily>(&mut self, part: Part, target: Target, what: What) -> Result<f64> {
        let Setting {
            program,
            protocol,
            flows,
            ..
        } = *self.setting;
        let flows = if what.is_new() { 0 } else { flows };
        let bytes = what.packet(program, protocol).bytes::<F>();
        let mut plan = plan::<F>(&bytes, protocol, what.varied(), flows);
        plan.state = next_state();
        self.programs.set_plan(&plan)?;
        let (repeat, programs) = (self.repeat(what), &mut self.programs);
        self.parts
            .time(part, || programs.run::<F>(target, &bytes, repeat))
    }

    /// Packets of a test run of a row.
    fn repeat(&self, what: What) -> u32 {
        let extent = self.extent;
        if report::is_judged(what, self.setting.flows) {
            extent.repeat
        } else {
            extent.repeat_unjudged
        }
    }

    /// Every packet of the last run must have come to the row's end.
    fn check(&self, what: What) -> Result<()> {
        if what.is_yardstick() {
            return Ok(());
        }
        let counters = self.programs.tables.counters()?;
        let reason = what.reason(self.setting.program);
        let count = counters.get(&reason).copied().unwrap_or(0);
        let repeat = self.repeat(what);
        ensure!(
            is_nearly_all(count, repeat),
            "{count} of {repeat} packets came to the end {reason:?}: {counters:?}"
        );
        Ok(())
    }
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
