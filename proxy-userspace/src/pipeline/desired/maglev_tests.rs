//! What Maglev promises: balance, few moves, the same table everywhere.

use std::collections::HashMap;
use std::fmt::Write as _;

use proptest::prelude::*;
use proxy_common::{Addr4, Addr6};

use super::*;
use crate::rules;

/// Tables of this version of the algorithm: nodes of one cluster with different versions of shunt
/// must agree, so a change of these needs another name in the annotation.
const GOLDEN: &str = include_str!("maglev_golden_1.txt");

fn v4(count: u16) -> Vec<Endpoint<Addr4>> {
    let endpoint = |number: u16| {
        let [high, low] = number.to_be_bytes();
        Endpoint {
            addr: Addr4::from_octets([10, 4, high, low]),
            port: 8080,
        }
    };
    (0..count).map(endpoint).collect()
}

fn v6(count: u16) -> Vec<Endpoint<Addr6>> {
    let endpoint = |number: u16| {
        let addr = std::net::Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, number);
        Endpoint {
            addr: Addr6::from(addr),
            port: 8080,
        }
    };
    (0..count).map(endpoint).collect()
}

fn counts<A: IpFamily>(table: &[Endpoint<A>]) -> HashMap<Endpoint<A>, usize> {
    let mut counts = HashMap::new();
    for endpoint in table {
        *counts.entry(*endpoint).or_default() += 1;
    }
    counts
}

/// Of the flows that need not move, the share that does when endpoint `gone` goes, as part of all.
fn moved(set: &[Endpoint<Addr4>], before: &[Endpoint<Addr4>], gone: usize) -> f64 {
    let gone = set[gone];
    let left: Vec<_> = set.iter().copied().filter(|it| *it != gone).collect();
    let after = table(&left, &Weights::default());
    let moved = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before != after);
    moved.count() as f64 / before.len() as f64
}

#[test]
fn size_is_the_first_rung_with_a_hundred_entries_for_each() {
    rules(&["S-069"]);
    let sizes = [
        0, 1, 2, 3, 10, 11, 40, 41, 163, 164, 655, 656, 1_310, 50_000,
    ]
    .map(size);
    let expected = [
        251, 251, 251, 1_021, 1_021, 4_093, 4_093, 16_381, 16_381, 65_521, 65_521, 131_071,
        131_071, 131_071,
    ];
    assert_eq!(sizes, expected);
}

#[test]
fn tables_are_those_of_this_version() {
    let mut text = String::new();
    for count in [1, 2, 3, 10, 100] {
        golden(&v4(count), &Weights::default(), &mut text);
        golden(&v6(count), &Weights::default(), &mut text);
    }
    let weights = Weights::parse("10.4.0.0=3, 10.4.0.2/31=2", &mut Vec::new());
    golden(&v4(5), &weights, &mut text);
    assert_eq!(text, GOLDEN, "{text}");
}

fn golden<A: IpFamily>(set: &[Endpoint<A>], weights: &Weights, text: &mut String) {
    let table = table(set, weights);
    let index = |endpoint| {
        set.iter()
            .position(|it| it == endpoint)
            .expect("of the set")
    };
    let entries: Vec<u16> = table.iter().map(|it| index(it) as u16).collect();
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect();
    let hash = xxh3_64_with_seed(&bytes, 0);
    let (family, size) = (A::NAME, table.len());
    let _ = writeln!(
        text,
        "{family} endpoints={} weights={} size={size} xxh3={hash:016x} {:?}",
        set.len(),
        weights.0.len(),
        &entries[..12]
    );
}

#[test]
fn endpoints_have_their_weight_of_a_table() {
    let mut problems = Vec::new();
    let weights = Weights::parse("10.4.0.0/30=2, 10.4.0.1=10,", &mut problems);
    assert_eq!(problems, Vec::<String>::new());
    let set = v4(8);
    let table = table(&set, &weights);
    let counts = counts(&table);
    // 2, 10, 2, 2 and four times 1.
    let unit = table.len() as f64 / 20.0;
    for (index, weight) in [2, 10, 2, 2, 1, 1, 1, 1].into_iter().enumerate() {
        let share = counts[&set[index]] as f64 / unit;
        let weight = f64::from(weight);
        assert!(
            (share / weight - 1.0).abs() < 0.03,
            "{index}: {share} for {weight}"
        );
    }
}

#[test]
fn annotations_that_cannot_be_understood_are_problems_and_change_nothing() {
    let of = |pairs: &[(&str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(key, text)| ((*key).into(), (*text).into()));
        let metadata = Metadata {
            annotations: pairs.collect(),
            ..Metadata::default()
        };
        let mut problems = Vec::new();
        (Algorithm::of(&metadata, &mut problems), problems.len())
    };
    let plain = || Algorithm::Maglev(Weights::default());
    assert_eq!(of(&[]), (Algorithm::Random, 0));
    assert_eq!(of(&[(ALGORITHM, "random")]), (Algorithm::Random, 0));
    assert_eq!(of(&[(ALGORITHM, " maglev ")]), (plain(), 0));
    assert_eq!(of(&[(ALGORITHM, "wrr")]), (Algorithm::Random, 1));
    assert_eq!(of(&[(WEIGHTS, "10.4.1.5=3")]), (Algorithm::Random, 1));
    let bad = "10.4.1.5, x=3, 10.4.1.5=0, 10.4.1.5=101, 10.4.1.5/33=1";
    assert_eq!(of(&[(ALGORITHM, "maglev"), (WEIGHTS, bad)]), (plain(), 5));
}

#[test]
fn removal_of_one_endpoint_moves_few_flows_on_average() {
    rules(&["S-069"]);
    // Within one rung: 11 to 40 endpoints share a size.
    for count in [12_u16, 25, 40] {
        let set = v4(count);
        let before = table(&set, &Weights::default());
        let all = (0..set.len()).map(|gone| moved(&set, &before, gone));
        let mean = all.sum::<f64>() / f64::from(count);
        let bound = 1.0 / f64::from(count) + 0.03;
        assert!(
            mean <= bound,
            "{count} endpoints: {mean:.4} of the flows, {bound:.4} allowed"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn fullest_endpoint_is_two_percent_above_the_mean_at_most(count in 1_u16..=655) {
        rules(&["S-069"]);
        let set = v6(count);
        let table = table(&set, &Weights::default());
        prop_assert_eq!(table.len(), size(set.len()) as usize);
        let counts = counts(&table);
        let mean = table.len() as f64 / f64::from(count);
        let most = *counts.values().max().expect("an endpoint") as f64;
        prop_assert_eq!(counts.len(), set.len());
        prop_assert!(most / mean <= 1.02, "{most} of {mean}");
    }

    #[test]
    fn removal_of_any_endpoint_never_moves_many_flows(
        count in 12_u16..=163,
        pick in any::<prop::sample::Index>(),
    ) {
        rules(&["S-069"]);
        let set = v4(count);
        prop_assume!(size(set.len()) == size(set.len() - 1));
        let before = table(&set, &Weights::default());
        let share = moved(&set, &before, pick.index(set.len()));
        let bound = 1.0 / f64::from(count) + 0.06;
        prop_assert!(share <= bound, "{share:.4} of the flows, {bound:.4} allowed");
    }

    #[test]
    fn other_endpoints_and_weights_do_not_change_the_size(
        count in 1_u16..300,
        weight in 1_u32..=WEIGHT_MAX,
    ) {
        let weights = Weights::parse(&format!("10.4.0.0/31={weight}"), &mut Vec::new());
        let weighted = table(&v4(count), &weights);
        prop_assert_eq!(weighted.len(), table(&v6(count), &Weights::default()).len());
    }
}
