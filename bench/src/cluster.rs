//! What the agents of a whole cluster do to its API servers, by simulation: no machine here holds
//! one. Time is simulated and chance is seeded, so that the same options print the same text.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Result, ensure};
use backon::BackoffBuilder as _;
use fastrand::Rng;
use proxy_userspace::pipeline::watch::{KINDS, WATCH_SECS, backoff};

/// Seconds of one step of a rollout.
const STEP: f64 = 0.1;
/// Bytes of a Service as an API server writes it.
const SERVICE_SIZE: f64 = 1000.0;
/// Bytes of an endpoint within a slice.
const ENDPOINT_SIZE: f64 = 250.0;
/// Endpoints of a slice.
const SLICE_ENDPOINTS: f64 = 100.0;
/// Seconds from the end of an agent until the next one lists: its pod is made, its programs are
/// verified.
const REPLACE_SECS: Range<f64> = 3.0..8.0;

/// The cluster.
#[derive(clap::Args, Clone, Copy)]
pub struct Options {
    /// Nodes, each with an agent
    #[arg(long, default_value_t = 5000)]
    pub nodes: u32,
    /// Services
    #[arg(long, default_value_t = 100_000)]
    pub services: u32,
    /// Endpoints in total
    #[arg(long, default_value_t = 1_000_000)]
    pub endpoints: u32,
    /// API servers
    #[arg(long, default_value_t = 3)]
    pub servers: u32,
    /// What one API server sends at most, MB/s
    #[arg(long, default_value_t = 1000.0)]
    pub server_mb_s: f64,
    /// What one agent takes in at most, MB/s
    #[arg(long, default_value_t = 100.0)]
    pub agent_mb_s: f64,
    /// Seconds for which all API servers are away
    #[arg(long, default_value_t = 120)]
    pub outage_secs: u32,
    /// The beginning of all chance
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Options {
    /// Bytes of both lists.
    fn lists(&self) -> f64 {
        f64::from(self.services) * SERVICE_SIZE + f64::from(self.endpoints) * ENDPOINT_SIZE
    }

    /// Watches of all agents.
    fn watches(&self) -> u32 {
        self.nodes * KINDS.len() as u32
    }
}

/// Simulates, and prints what was found.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.nodes > 0 && options.servers > 0, "an empty cluster");
    print!("{}", report(options));
    Ok(())
}

/// Everything, as text.
fn report(options: &Options) -> String {
    let mut lines = vec![format!(
        "{} agents, {} API servers, lists of {:.0} MB",
        options.nodes,
        options.servers,
        options.lists() / 1e6
    )];
    lines.extend(rollouts(options));
    lines.extend(outages(options));
    lines.extend(watch_ends(options));
    lines.push("\nchanges of slices of 100 endpoints: sent by all API servers".to_owned());
    for changes in [1.0, 10.0, 100.0] {
        let sent = changes * SLICE_ENDPOINTS * ENDPOINT_SIZE * f64::from(options.nodes);
        lines.push(format!("{changes:>4} a second {:>9.2} GB/s", sent / 1e9));
    }
    lines.join("\n") + "\n"
}

fn rollouts(options: &Options) -> Vec<String> {
    let mut lines = vec![
        "\nrolling restart of all agents".to_owned(),
        "unavailable   took      listing   sent     list p50   p99".to_owned(),
    ];
    for share in [0.0, 0.01, 0.1, 1.0] {
        let most = ((f64::from(options.nodes) * share) as usize).max(1);
        let Rollout {
            took,
            most_listing,
            most_sent,
            mut lists,
        } = rollout(options, most);
        lists.sort_by(f64::total_cmp);
        let at = |share: f64| lists[((lists.len() - 1) as f64 * share) as usize];
        lines.push(format!(
            "{most:<13} {took:>6.0} s {most_listing:>9} {:>5.2} GB/s {:>6.1} s {:>6.1} s",
            most_sent / 1e9,
            at(0.5),
            at(0.99)
        ));
    }
    lines
}

fn outages(options: &Options) -> Vec<String> {
    let secs = options.outage_secs;
    let mut lines = vec![
        format!("\nall API servers away for {secs} s: tries a second"),
        "                         most     in its last 10 s   back: 50 %    99 %".to_owned(),
    ];
    let strategies: [(&str, Waits); 2] = [
        ("1 s between rounds", |_| Box::new(std::iter::repeat(1.0))),
        ("growing, by chance", agents_waits),
    ];
    for (name, waits) in strategies {
        let Outage { most, last, back } = outage(options, waits);
        lines.push(format!(
            "{name:<22} {most:>6}   {last:>12.0}       {:>6.1} s  {:>6.1} s",
            back[0], back[1]
        ));
    }
    let capacity = f64::from(options.servers) * options.server_mb_s * 1e6;
    lines.push(format!(
        "then, if every agent listed again: {:.0} s until the last one knows;\n\
         watches that go on where they stopped: nothing is sent but what has changed",
        f64::from(options.nodes) * options.lists() / capacity
    ));
    lines
}

/// As the agent waits itself.
fn agents_waits(seed: u64) -> Box<dyn Iterator<Item = f64>> {
    let waits = backoff().with_jitter_seed(seed).build();
    Box::new(waits.map(|wait| wait.as_secs_f64()))
}

fn watch_ends(options: &Options) -> Vec<String> {
    let (fixed, by_chance) = (WATCH_SECS.start..WATCH_SECS.start + 1, WATCH_SECS);
    // Behind the first two rounds.
    let later = 2 * WATCH_SECS.end;
    vec![
        format!(
            "\n{} watches that began in one second: most that end in one second of the next hour",
            options.watches()
        ),
        format!("after 300 s each       {:>6}", endings(options, fixed, 0)),
        format!(
            "after 300 to 600 s     {:>6} in the first round, {} from the third on",
            endings(options, by_chance.clone(), 0),
            endings(options, by_chance, later)
        ),
    ]
}

/// What a rolling restart was like.
struct Rollout {
    /// Seconds.
    took: f64,
    /// Agents that list at once, at most.
    most_listing: usize,
    /// Bytes a second of all servers, at most.
    most_sent: f64,
    /// Seconds that each list took.
    lists: Vec<f64>,
}

/// An agent that is not back yet.
struct Restarting {
    lists_at: f64,
    left: f64,
    server: usize,
}

/// Restarts every agent, so many at a time. A server shares what it can send among those who list.
fn rollout(options: &Options, most: usize) -> Rollout {
    let mut rng = Rng::with_seed(options.seed);
    let mut found = Rollout {
        took: 0.0,
        most_listing: 0,
        most_sent: 0.0,
        lists: Vec::new(),
    };
    let mut waiting = options.nodes;
    let mut restarting: Vec<Restarting> = Vec::new();
    while waiting > 0 || !restarting.is_empty() {
        let now = found.took;
        while waiting > 0 && restarting.len() < most {
            waiting -= 1;
            let spread = REPLACE_SECS.end - REPLACE_SECS.start;
            restarting.push(Restarting {
                lists_at: now + REPLACE_SECS.start + spread * rng.f64(),
                left: options.lists(),
                server: rng.usize(..options.servers as usize),
            });
        }
        let mut busy = vec![0_usize; options.servers as usize];
        let listing = restarting.iter().filter(|agent| agent.lists_at <= now);
        listing.for_each(|agent| busy[agent.server] += 1);
        let mut sent = 0.0;
        for agent in restarting.iter_mut().filter(|agent| agent.lists_at <= now) {
            let share = options.server_mb_s / busy[agent.server] as f64;
            let bytes = share.min(options.agent_mb_s) * 1e6 * STEP;
            sent += bytes.min(agent.left);
            agent.left -= bytes;
        }
        found.took += STEP;
        found.most_listing = found.most_listing.max(busy.iter().sum());
        found.most_sent = found.most_sent.max(sent / STEP);
        restarting.retain(|agent| {
            let is_back = agent.left <= 0.0;
            if is_back {
                found.lists.push(found.took - agent.lists_at);
            }
            !is_back
        });
    }
    found
}

/// The waits of one watch, in seconds.
type Waits = fn(u64) -> Box<dyn Iterator<Item = f64>>;

/// What an outage was like.
struct Outage {
    /// Tries of all watches in one second, at most.
    most: u32,
    /// A second, at its end.
    last: f64,
    /// Seconds behind its end until so many are back: the half, and 99 of 100.
    back: [f64; 2],
}

/// All servers go at once and come back at once. A round tries each of them.
fn outage(options: &Options, waits: Waits) -> Outage {
    let over = f64::from(options.outage_secs);
    let mut tries: BTreeMap<u32, u32> = BTreeMap::new();
    let mut back = Vec::new();
    for watch in 0..options.watches() {
        let mut at = 0.0;
        for wait in waits(options.seed.wrapping_add(watch.into())) {
            if at >= over {
                back.push(at - over);
                break;
            }
            *tries.entry(at as u32).or_default() += options.servers;
            at += wait;
        }
    }
    back.sort_by(f64::total_cmp);
    let at = |share: f64| back[((back.len() - 1) as f64 * share) as usize];
    let end = options.outage_secs;
    let last: u32 = tries
        .range(end.saturating_sub(10)..)
        .map(|(_, count)| count)
        .sum();
    Outage {
        most: tries.values().copied().max().unwrap_or_default(),
        last: f64::from(last) / 10.0,
        back: [at(0.5), at(0.99)],
    }
}

/// Most watches that end in one second of the first hour, from `from` on.
fn endings(options: &Options, secs: Range<u32>, from: u32) -> u32 {
    let mut rng = Rng::with_seed(options.seed);
    let mut ends: BTreeMap<u32, u32> = BTreeMap::new();
    for _ in 0..options.watches() {
        let mut at = rng.u32(secs.clone());
        while at < 3600 {
            *ends.entry(at).or_default() += 1;
            at += rng.u32(secs.clone());
        }
    }
    let ends = ends.range(from..).map(|(_, count)| *count);
    ends.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Options = Options {
        nodes: 100,
        services: 1000,
        endpoints: 10_000,
        servers: 2,
        server_mb_s: 10.0,
        agent_mb_s: 5.0,
        outage_secs: 60,
        seed: 7,
    };

    #[test]
    fn same_options_print_the_same_text() {
        assert_eq!(report(&SMALL), report(&SMALL));
        let other = Options { seed: 8, ..SMALL };
        assert_ne!(report(&SMALL), report(&other));
    }

    #[test]
    fn rollout_sends_every_list_once_and_no_more_than_servers_can() {
        let one = rollout(&SMALL, 1);
        let all = rollout(&SMALL, 100);
        for found in [&one, &all] {
            assert_eq!(found.lists.len(), 100);
            assert!(found.most_sent <= 20.0 * 1e6 * 1.01, "{}", found.most_sent);
        }
        assert_eq!((one.most_listing, all.most_listing > 1), (1, true));
        // 3.5 MB at 5 MB/s, alone; 350 MB at 20 MB/s, together.
        assert!(one.lists.iter().all(|secs| (0.7..0.9).contains(secs)));
        assert!(all.took > 350.0 / 20.0, "{}", all.took);
    }

    #[test]
    fn growing_waits_spare_servers_that_are_away() {
        let steady = outage(&SMALL, |_| Box::new(std::iter::repeat(1.0)));
        let growing = outage(&SMALL, agents_waits);
        assert_eq!(steady.last, 800.0);
        assert!(growing.last < steady.last / 10.0, "{}", growing.last);
        // The longest wait, and not in step.
        assert!(growing.back[1] <= 30.0 && growing.back[0] > 1.0);
    }
}
