//! All cells in turn, over and over: what disturbs the machine disturbs all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::cells::{Cell, GROUPS, Links, Path, Way};
use super::hooks::{self, Reading, Share};
use super::statistics::median_of;
use super::traffic::Task;
use super::world::World;

/// What a row is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Figure {
    Stream,
    LatencyP50,
    LatencyP99,
    Connects,
    Datagrams,
}

/// The tasks, each with the figures that it gives.
pub const TASKS: [(Task, &[Figure]); 4] = [
    (Task::Stream, &[Figure::Stream]),
    (Task::Latency, &[Figure::LatencyP50, Figure::LatencyP99]),
    (Task::Connects, &[Figure::Connects]),
    (Task::Datagrams, &[Figure::Datagrams]),
];

/// Parts of a round of calls to connect(), in turn with and without a Service.
const PARTS: u32 = 10;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub rounds: u32,
    /// Of one task of one cell.
    pub time: Duration,
}

/// What was measured with one number of Services. Every list is by round.
#[derive(Default)]
pub struct Samples {
    pub values: BTreeMap<(Cell, Figure), Vec<f64>>,
    /// What our hooks answered.
    pub shares: BTreeMap<(Cell, Task), Share>,
    pub connect: ConnectCalls,
}

/// Nanoseconds of connect(), medians of each round.
#[derive(Default)]
pub struct ConnectCalls {
    /// To the backend, without any proxy.
    pub direct: Vec<f64>,
    /// What a ClusterIP takes longer than that, through the socket hook.
    pub added: Vec<f64>,
    /// What it takes longer than the backend itself where shunt is.
    pub added_here: Vec<f64>,
}

/// Measures everything.
pub fn measure(world: &mut World, extent: Extent) -> Result<Samples> {
    let mut samples = Samples::default();
    for round in 0..extent.rounds {
        world.begin_round(round)?;
        for (task, figures) in TASKS {
            for group in &GROUPS {
                let mut cells: Vec<Cell> = group.cells().collect();
                // Nobody is always first.
                let count = cells.len();
                cells.rotate_left(round as usize % count);
                for cell in cells {
                    one(world, cell, (task, figures), extent, &mut samples)?;
                }
            }
        }
        connect_calls(world, extent, &mut samples.connect)?;
        println!("round {} of {}", round + 1, extent.rounds);
    }
    Ok(samples)
}

fn one(
    world: &mut World,
    cell: Cell,
    (task, figures): (Task, &[Figure]),
    extent: Extent,
    samples: &mut Samples,
) -> Result<()> {
    let site = world.site(cell)?;
    let before = match cell.way.is_ours() {
        true => Some(Reading::take(cell.way, site)?),
        false => None,
    };
    let outcome = site.measure(cell, task, extent.time);
    let outcome = outcome.with_context(|| hooks::counted(site))?;
    if let Some(before) = before {
        let share = before.since(cell.way, site, outcome.calls)?;
        *samples.shares.entry((cell, task)).or_default() += share;
    }
    for (figure, value) in figures.iter().zip(outcome.values) {
        let values = samples.values.entry((cell, *figure)).or_default();
        values.push(value);
    }
    Ok(())
}

fn connect_calls(world: &mut World, extent: Extent, calls: &mut ConnectCalls) -> Result<()> {
    let socket = Cell {
        path: Path::ClusterIp,
        links: Links::Offloaded,
        way: Way::Socket,
    };
    let direct = socket.direct();
    let dialled = [(direct, direct), (socket, direct), (socket, socket)];
    let mut nanos = dialled.map(|cells| (cells, Vec::new()));
    for _ in 0..PARTS {
        for ((at, cell), nanos) in &mut nanos {
            let (site, time) = (world.site(*at)?, extent.time / PARTS);
            nanos.extend(site.measure(*cell, Task::ConnectCalls, time)?.values);
        }
    }
    let [direct, direct_here, service] = nanos.map(|(_, nanos)| median_of(nanos));
    calls.direct.push(direct);
    calls.added.push(service - direct);
    calls.added_here.push(service - direct_here);
    Ok(())
}

impl Figure {
    /// As rows name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "tcp_stream",
            Self::LatencyP50 => "latency_p50",
            Self::LatencyP99 => "latency_p99",
            Self::Connects => "connects",
            Self::Datagrams => "udp_packets",
        }
    }

    /// Of its values as they are printed.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Stream => "Gbit/s",
            Self::LatencyP50 | Self::LatencyP99 => "us",
            Self::Connects | Self::Datagrams => "1/s",
        }
    }

    /// A value in that unit.
    pub fn scaled(self, value: f64) -> f64 {
        match self {
            Self::Stream => value / 1e9,
            _ => value,
        }
    }

    /// How good `value` is where `other` is 1: more is better, of times too.
    pub fn ratio(self, value: f64, other: f64) -> f64 {
        match self {
            Self::LatencyP50 | Self::LatencyP99 => other / value,
            Self::Stream | Self::Connects | Self::Datagrams => value / other,
        }
    }

    /// The task that gives it.
    pub fn task(self) -> Task {
        match self {
            Self::Stream => Task::Stream,
            Self::LatencyP50 | Self::LatencyP99 => Task::Latency,
            Self::Connects => Task::Connects,
            Self::Datagrams => Task::Datagrams,
        }
    }
}
