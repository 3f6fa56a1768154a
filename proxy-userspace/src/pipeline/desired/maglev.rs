//! Maglev lookup tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4): what a frontend publishes instead of a plain set where flows
//! should keep their backend although nobody remembers them, or although another node gets them.
//!
//! A table depends on the endpoints and their weights alone, so every node makes the same one.
//! Its size is a function of the number of endpoints alone: only a change of rung moves flows that
//! need not move.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::family::{Endpoint, IpFamily};
use crate::ip_text::{parse_cidr, parse_ip};
use crate::objects::Metadata;

/// Annotation of a Service: how its frontends but the ClusterIP choose a backend for a new flow.
pub const ALGORITHM: &str = "shunt.io/algorithm";

/// Annotation of a Service with Maglev: relative weights of its endpoints, as a list of
/// `ADDRESS=WEIGHT` or `CIDR=WEIGHT`, of which the longest prefix counts. Others weigh 1.
pub const WEIGHTS: &str = "shunt.io/weights";

/// Sizes of tables: primes, so that every step visits every entry.
pub const RUNGS: [u32; 6] = [251, 1_021, 4_093, 16_381, 65_521, 131_071];

/// Entries for each endpoint, at least, as long as there is a rung: the fullest endpoint is at
/// most 2 % above the mean.
pub const ENTRIES_PER_ENDPOINT: usize = 100;

/// The largest weight.
pub const WEIGHT_MAX: u32 = 100;

/// How a Service spreads its flows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Algorithm {
    /// Every endpoint with the same chance.
    #[default]
    Random,
    /// By lookup table.
    Maglev(Weights),
}

/// Weights by prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Weights(BTreeMap<IpNet, u32>);

impl Algorithm {
    /// What the annotations of a Service ask for. What cannot be understood is left out and
    /// described in `problems`.
    pub fn of(metadata: &Metadata, problems: &mut Vec<String>) -> Self {
        let text = |key: &str| metadata.annotations.get(key).map(|text| text.trim());
        let weights = text(WEIGHTS);
        match text(ALGORITHM) {
            Some("maglev") => {
                return Self::Maglev(Weights::parse(weights.unwrap_or_default(), problems));
            }
            None | Some("random") => {}
            Some(other) => problems.push(format!(
                "metadata.annotations[{ALGORITHM}]: {other:?} is neither maglev nor random"
            )),
        }
        if weights.is_some() {
            problems.push(format!(
                "metadata.annotations[{WEIGHTS}]: without {ALGORITHM}=maglev it has no meaning"
            ));
        }
        Self::Random
    }
}

impl Weights {
    fn parse(text: &str, problems: &mut Vec<String>) -> Self {
        let mut weights = BTreeMap::new();
        for entry in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            match parse_weight(entry) {
                Some((net, weight)) => {
                    weights.insert(net, weight);
                }
                None => problems.push(format!(
                    "metadata.annotations[{WEIGHTS}]: {entry:?} is no address or CIDR with a \
                     weight of 1 to {WEIGHT_MAX}, as in 10.4.1.5=3"
                )),
            }
        }
        Self(weights)
    }

    fn of<A: IpFamily>(&self, endpoint: &Endpoint<A>) -> u32 {
        let addr = endpoint.addr.to_ip();
        let nets = self.0.iter().filter(|(net, _)| net.contains(&addr));
        nets.max_by_key(|(net, _)| net.prefix_len())
            .map_or(1, |(_, weight)| *weight)
    }
}

fn parse_weight(entry: &str) -> Option<(IpNet, u32)> {
    let (place, weight) = entry.split_once('=')?;
    let place = place.trim();
    let net = parse_cidr(place).or_else(|| parse_ip(place).map(IpNet::from))?;
    let weight: u32 = weight.trim().parse().ok()?;
    (1..=WEIGHT_MAX).contains(&weight).then_some((net, weight))
}

/// Lookup tables of the Cluster and the Local set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tables<A: IpFamily> {
    /// Of the Cluster set.
    pub cluster: Arc<[Endpoint<A>]>,
    /// Of the Local set.
    pub local: Arc<[Endpoint<A>]>,
}

impl Algorithm {
    /// The tables of both sets, where there are any.
    pub fn tables<A: IpFamily>(
        &self,
        cluster: &[Endpoint<A>],
        local: &[Endpoint<A>],
    ) -> Option<Box<Tables<A>>> {
        match self {
            Self::Random => None,
            Self::Maglev(weights) => Some(Box::new(Tables {
                cluster: table(cluster, weights).into(),
                local: table(local, weights).into(),
            })),
        }
    }
}

/// The size of a table: the first rung with enough entries for so many endpoints, or the last.
pub fn size(endpoints: usize) -> u32 {
    let wanted = endpoints.saturating_mul(ENTRIES_PER_ENDPOINT);
    let rung = RUNGS.into_iter().find(|rung| *rung as usize >= wanted);
    rung.unwrap_or(RUNGS[RUNGS.len() - 1])
}

/// The table of a set, which is sorted: empty for an empty one. Where there are more endpoints
/// than entries, some get none.
pub fn table<A: IpFamily>(set: &[Endpoint<A>], weights: &Weights) -> Vec<Endpoint<A>> {
    let size = size(set.len());
    let mut walkers: Vec<Walker> = set
        .iter()
        .map(|endpoint| Walker::new(endpoint, weights.of(endpoint), size))
        .collect();
    let Some(weight_max) = walkers.iter().map(|walker| walker.weight).max() else {
        return Vec::new();
    };
    let mut left = size as usize;
    let mut entries: Vec<Option<usize>> = vec![None; left];
    while left > 0 {
        for (index, walker) in walkers.iter_mut().enumerate() {
            // The heaviest has a turn in every round, the others in their share of rounds.
            walker.credit += walker.weight;
            if walker.credit < weight_max {
                continue;
            }
            walker.credit -= weight_max;
            let entry = walker.next_free(&entries);
            entries[entry] = Some(index);
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    entries
        .into_iter()
        .flatten()
        .map(|index| set[index])
        .collect()
}

/// One endpoint's way through the table: its permutation of the entries, which depends on nothing
/// but its address and port.
struct Walker {
    weight: u32,
    /// Turns that it has saved up, in parts of the largest weight.
    credit: u32,
    next: u32,
    step: u32,
    size: u32,
}

impl Walker {
    fn new<A: IpFamily>(endpoint: &Endpoint<A>, weight: u32, size: u32) -> Self {
        let mut key = [0; 18];
        let addr = endpoint.addr.to_ip();
        let len = match addr {
            std::net::IpAddr::V4(v4) => copy(&mut key, &v4.octets()),
            std::net::IpAddr::V6(v6) => copy(&mut key, &v6.octets()),
        };
        key[len..len + 2].copy_from_slice(&endpoint.port.to_be_bytes());
        let hash = |seed| xxh3_64_with_seed(&key[..len + 2], seed);
        Self {
            weight,
            credit: 0,
            next: (hash(0) % u64::from(size)) as u32,
            step: (hash(1) % u64::from(size - 1)) as u32 + 1,
            size,
        }
    }

    /// The first entry on the way that nobody has. There is one.
    fn next_free(&mut self, entries: &[Option<usize>]) -> usize {
        loop {
            let entry = self.next as usize;
            self.next = (self.next + self.step) % self.size;
            if entries[entry].is_none() {
                return entry;
            }
        }
    }
}

fn copy(to: &mut [u8], from: &[u8]) -> usize {
    to[..from.len()].copy_from_slice(from);
    from.len()
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
