//! What the samples say: a row a figure, compared with the direct way and with kube-proxy.

use super::cells::{Cell, GROUPS, Way};
use super::rounds::{ConnectCalls, Figure, Samples, TASKS};
use super::statistics::{Estimate, median_of};

/// The least part that a hook has to answer of what its row is about.
const SHARE_MIN: f64 = 0.99;

/// One figure of one way.
#[derive(Clone, Debug)]
pub struct Row {
    pub services: u32,
    pub cell: Cell,
    pub figure: Figure,
    /// The median, in the figure's unit.
    pub value: f64,
    /// How good it is where direct is 1: ratios of each round.
    pub ratio: Estimate,
    /// How good it is where the better mode of kube-proxy is 1.
    pub to_peer: Option<(Way, Estimate)>,
    /// What the hook answered, as a part of one.
    pub share: Option<f64>,
}

/// What the socket hook adds to connect(), in nanoseconds.
#[derive(Clone, Debug)]
pub struct Overhead {
    pub services: u32,
    /// connect() to the backend where no proxy is.
    pub direct: f64,
    /// What a ClusterIP takes longer than that.
    pub added: Estimate,
    /// What it takes longer than the backend itself in the same cluster.
    pub added_here: Estimate,
}

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub rounds: u32,
    pub rows: Vec<Row>,
    pub overheads: Vec<Overhead>,
}

impl Report {
    /// Adds what was measured with this number of Services.
    pub fn add(&mut self, services: u32, samples: &Samples) {
        self.overheads.push(overhead(services, &samples.connect));
        for (_, figures) in TASKS {
            for figure in figures {
                let cells = GROUPS.iter().flat_map(|group| group.cells());
                let rows = cells.filter_map(|cell| row(services, samples, cell, *figure));
                self.rows.extend(rows);
            }
        }
    }

    /// The rows whose hook left too much to others.
    pub fn wrong_hooks(&self) -> Vec<&Row> {
        let is_wrong = |row: &&Row| row.share.is_some_and(|share| share < SHARE_MIN);
        self.rows.iter().filter(is_wrong).collect()
    }
}

impl Row {
    /// What its interval has to reach, of direct.
    pub fn bar(&self) -> Option<f64> {
        match (self.cell.way, self.figure) {
            (Way::Socket, Figure::Stream) => Some(0.98),
            (Way::Socket, Figure::Connects) => Some(0.95),
            _ => None,
        }
    }

    /// What it misses, in words.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if let Some(bar) = self.bar().filter(|bar| self.ratio.high < *bar) {
            missed.push(format!("below {bar} of direct"));
        }
        if let Some((way, _)) = self.to_peer.filter(|(_, ratio)| ratio.high < 1.0) {
            missed.push(format!("worse than {}", way.name()));
        }
        missed
    }
}

fn overhead(services: u32, calls: &ConnectCalls) -> Overhead {
    Overhead {
        services,
        direct: median_of(calls.direct.clone()),
        added: Estimate::of(&calls.added),
        added_here: Estimate::of(&calls.added_here),
    }
}

fn row(services: u32, samples: &Samples, cell: Cell, figure: Figure) -> Option<Row> {
    let own = samples.values.get(&(cell, figure))?;
    let to = |way| {
        let other = samples.values.get(&(Cell { way, ..cell }, figure))?;
        let pairs = own.iter().zip(other);
        let ratios: Vec<f64> = pairs
            .map(|(own, other)| figure.ratio(*own, *other))
            .collect();
        Some(Estimate::of(&ratios))
    };
    let share = samples.shares.get(&(cell, figure.task()));
    // The better mode is the one that we look worse against.
    let peers = [Way::Iptables, Way::Nftables].into_iter();
    let to_peer = peers
        .filter(|_| cell.way.is_ours())
        .filter_map(|way| Some((way, to(way)?)))
        .min_by(|(_, one), (_, other)| one.median.total_cmp(&other.median));
    Some(Row {
        services,
        cell,
        figure,
        value: figure.scaled(median_of(own.clone())),
        ratio: to(Way::Direct)?,
        to_peer,
        share: share.map(|share| share.value()),
    })
}
