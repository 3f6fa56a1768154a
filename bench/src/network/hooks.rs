//! Whether the hook that a row is about did it: what it answered, of all that there was to answer.

use std::ops::AddAssign;

use anyhow::{Context as _, Result};
use proxy_common::Counter;

use super::cells::Way;
use super::world::Site;

/// Translated packets, whichever program did it.
const TRANSLATED: [Counter; 5] = [
    Counter::OriginalStack,
    Counter::OriginalRedirect,
    Counter::ReplyStack,
    Counter::ReplyRedirect,
    Counter::ReplyLocal,
];

/// Neighbours that are asked for: no packets of any row.
const OTHERS: [Counter; 2] = [Counter::NotIp, Counter::IcmpOther];

/// Of packets that entered the node, or of calls, those that the hook answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    answered: u64,
    all: u64,
}

/// Counters at one moment.
pub struct Reading {
    answered: u64,
    entered: u64,
}

impl Reading {
    /// Of the hook of `way`, one of ours, in its cluster.
    pub fn take(way: Way, site: &Site) -> Result<Self> {
        let maps = site.maps.as_ref().context("no maps")?;
        let sum = |counters: &[Counter]| -> u64 {
            let counts = counters.iter().map(|counter| maps.counter(*counter as u32));
            counts.sum()
        };
        let answered = match way {
            Way::Socket => sum(&[Counter::SocketConnected, Counter::SocketSent]),
            Way::Xdp => sum(&[Counter::XdpAnswered]),
            _ => sum(&TRANSLATED) - sum(&[Counter::XdpAnswered]),
        };
        let node = &site.cluster.nodes[0].netns;
        let table = node.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        Ok(Self {
            answered,
            entered: received(&table).saturating_sub(sum(&OTHERS)),
        })
    }

    /// What came since, when the client made so many `calls`.
    pub fn since(&self, way: Way, site: &Site, calls: u64) -> Result<Share> {
        let now = Self::take(way, site)?;
        let all = match way {
            Way::Socket => calls,
            _ => now.entered.saturating_sub(self.entered),
        };
        Ok(Share {
            answered: now.answered - self.answered,
            all,
        })
    }
}

/// All that the programs of a cluster have counted, for those who look for what went wrong.
pub fn counted(site: &Site) -> String {
    let Some(maps) = &site.maps else {
        return "no programs of ours there".to_owned();
    };
    let counts = Counter::ALL
        .iter()
        .map(|counter| (counter.name(), maps.counter(*counter as u32)));
    let counts = counts.filter(|(_, count)| *count > 0);
    let texts: Vec<String> = counts
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    format!("counted: {}", texts.join(", "))
}

impl Share {
    /// As a part of one.
    pub fn value(self) -> f64 {
        (self.answered as f64 / self.all.max(1) as f64).min(1.0)
    }
}

impl AddAssign for Share {
    fn add_assign(&mut self, more: Self) {
        self.answered += more.answered;
        self.all += more.all;
    }
}

/// Packets that came in by all interfaces but loopback.
fn received(table: &str) -> u64 {
    let lines = table.lines().filter_map(|line| line.split_once(':'));
    let links = lines.filter(|(name, _)| name.trim() != "lo");
    let counts = links.filter_map(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u64>().ok());
    counts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_all_links_are_counted_and_not_those_of_loopback() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes    packets errs\n    \
                     lo: 100 7 0 0 0 0 0 0 100 7 0\n   up0: 900 11 0 0 0 0 0 0 1 2 0\n\
                     p-near: 90 30 0 0 0 0 0 0 1 2 0\n";
        assert_eq!(received(table), 41);
    }
}
