//! The columns of both lists, as data: one more counter is one more entry of [`Counter`], and one
//! more column is one more line of a list below.

use std::cmp::Ordering;

use super::state::Row;
use crate::cli::table::bytes;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    /// New connections.
    Connections,
    /// First packets and calls that were refused.
    Refused,
    /// First packets and calls that were dropped.
    Dropped,
    /// Bytes to backends.
    BytesTo,
    /// Bytes from backends.
    BytesFrom,
}

/// How many counters there are.
pub const COUNTERS: usize = 5;

/// A value of each counter.
pub type Counts = [u64; COUNTERS];

/// How a column is sorted.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// By the text; the first is the smallest.
    Text,
    /// By a number; the first is the largest.
    Number(fn(&Row) -> f64),
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Above it.
    pub title: &'static str,
    /// Sorts by it, and back again.
    pub key: char,
    /// Characters; 0: what is left, which the first column takes.
    pub width: u16,
    /// What it shows of a row.
    pub text: fn(&Row) -> String,
    /// How it sorts.
    pub by: By,
}

impl Column {
    /// The usual order of two rows; equal ones are in the order of their names.
    pub fn compare(&self, a: &Row, b: &Row) -> Ordering {
        let order = match self.by {
            By::Text => (self.text)(a).cmp(&(self.text)(b)),
            By::Number(number) => number(b).total_cmp(&number(a)),
        };
        order.then_with(|| a.name.cmp(&b.name))
    }
}

/// Characters of a history.
pub const HISTORY: usize = 30;
/// Of them those of backends, which have more columns.
const HISTORY_SHORT: usize = 16;

const NAME: Column = Column {
    title: "SERVICE",
    key: 'n',
    width: 0,
    text: |row| row.name.to_string(),
    by: By::Text,
};
const RATE: Column = Column {
    title: "CONN/S",
    key: 'c',
    width: 9,
    text: |row| rate(row, Counter::Connections),
    by: By::Number(|row| row.rate(Counter::Connections)),
};
const LAST: Column = Column {
    title: "LAST 30 TICKS",
    key: 'l',
    width: HISTORY as u16,
    text: |row| sparkline(&row.history),
    by: By::Number(|row| row.history.iter().sum()),
};
const TOTAL: Column = Column {
    title: "TOTAL",
    key: 't',
    width: 12,
    text: |row| row.count(Counter::Connections).to_string(),
    by: By::Number(|row| row.count(Counter::Connections) as f64),
};

/// Of the list of Services.
pub static OF_SERVICES: [Column; 6] = [
    NAME,
    RATE,
    LAST,
    TOTAL,
    Column {
        title: "REFUSED/S",
        key: 'r',
        width: 9,
        text: |row| rate(row, Counter::Refused),
        by: By::Number(|row| row.rate(Counter::Refused)),
    },
    Column {
        title: "DROPPED/S",
        key: 'd',
        width: 9,
        text: |row| rate(row, Counter::Dropped),
        by: By::Number(|row| row.rate(Counter::Dropped)),
    },
];

/// Of the list of the backends of one Service.
pub static OF_BACKENDS: [Column; 8] = [
    Column {
        title: "BACKEND",
        ..NAME
    },
    Column {
        title: "STATE",
        key: 's',
        width: 11,
        text: |row| row.tag(0),
        by: By::Text,
    },
    Column {
        title: "NODE",
        key: 'o',
        width: 5,
        text: |row| row.tag(1),
        by: By::Text,
    },
    RATE,
    Column {
        title: "LAST 16 TICKS",
        width: HISTORY_SHORT as u16,
        text: |row| sparkline(&row.history[row.history.len().saturating_sub(HISTORY_SHORT)..]),
        ..LAST
    },
    Column { width: 8, ..TOTAL },
    Column {
        title: "TO/S",
        key: 'i',
        width: 9,
        text: |row| bytes(row.rate(Counter::BytesTo) as u64),
        by: By::Number(|row| row.rate(Counter::BytesTo)),
    },
    Column {
        title: "FROM/S",
        key: 'f',
        width: 9,
        text: |row| bytes(row.rate(Counter::BytesFrom) as u64),
        by: By::Number(|row| row.rate(Counter::BytesFrom)),
    },
];

fn rate(row: &Row, counter: Counter) -> String {
    match row.rate(counter) {
        0.0 => "0".to_owned(),
        rate => format!("{rate:.1}"),
    }
}

/// The values as bars, the newest last, the highest as high as a line.
pub fn sparkline(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| match *value > 0.0 {
        // Whatever is there is seen.
        true => BARS[((value / highest * 8.0).ceil() as usize).clamp(1, 8) - 1],
        false => ' ',
    };
    let bars: String = values.iter().map(bar).collect();
    format!("{bars:>HISTORY$}")
}
