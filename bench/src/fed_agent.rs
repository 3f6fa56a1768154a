//! The agent without an API server: objects come as text on standard input, one a line, and go the
//! way that a watch's go: decoded on one thread, queued, taken in and reconciled on another, into
//! maps in the kernel. What it measures goes to standard output, one JSON object a line.

use std::io::{BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proxy_userspace::datapath::catalog::MapSizes;
use proxy_userspace::datapath::interfaces::{self, Rules};
use proxy_userspace::datapath::maps::KernelMaps;
use proxy_userspace::datapath::netlink::Reader;
use proxy_userspace::datapath::{Datapath, DatapathOptions};
use proxy_userspace::objects::{Kind, ObjectEvent};
use proxy_userspace::pipeline::{Reconciler, watch};
use proxy_userspace::settings::Settings;
use serde_json::json;

use crate::lookup::Lookup;
use crate::process;

/// As many as wait between a watch and the agent.
const QUEUED_MAX: usize = 1024;
/// As many as the agent takes at once.
const BATCH_MAX: usize = 4096;
/// How often it is told how much is done.
const PROGRESS: Duration = Duration::from_millis(100);
/// How long a change may take before the bench gives up: far beyond any bar.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where it works.
#[derive(clap::Args)]
pub struct Options {
    /// A folder on a bpffs
    #[arg(long)]
    bpffs: PathBuf,
    /// The interface that packets of the probes enter by
    #[arg(long)]
    ifindex: u32,
    /// Services that must fit
    #[arg(long)]
    services: u32,
    /// Endpoints that must fit
    #[arg(long)]
    endpoints: u32,
}

impl Options {
    /// The default sizes, or larger ones where these would not do.
    fn sizes(&self) -> MapSizes {
        let default = MapSizes::default();
        let fit = |default: u32, needed: u32| default.max(needed.next_power_of_two());
        // Moved endpoints and replaced regions rest for a while: a quarter more.
        let words = self.services * 4 + self.endpoints;
        MapSizes {
            frontends: fit(default.frontends, self.services / 4 * 5),
            cluster_ips: fit(default.cluster_ips, self.services / 4 * 5),
            backends: fit(default.backends, self.endpoints / 4 * 5),
            slots: fit(default.slots, words),
            ..default
        }
    }
}

/// One line of standard input.
#[expect(
    clippy::large_enum_variant,
    reason = "moved once, through a queue as the agent's own"
)]
enum Fed {
    /// An event, when its text had arrived, and the CPU time of the process at that moment.
    Event(ObjectEvent, Instant, Duration),
    /// Reports when connections to an address reach a backend.
    Await(Ipv4Addr, Ipv4Addr),
    /// Reports memory.
    Memory,
}

/// Runs until standard input ends.
pub fn run(options: &Options) -> Result<()> {
    let datapath_options = DatapathOptions {
        bpffs: options.bpffs.clone(),
        cgroup: None,
        sizes: options.sizes(),
        ..DatapathOptions::default()
    };
    let (mut datapath, mut maps) = Datapath::load(&datapath_options)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let snapshot = runtime.block_on(async { Reader::open()?.snapshot().await })?;
    let rules = Rules {
        globs: vec!["*".to_owned()],
        ..Rules::default()
    };
    datapath.start_interfaces(&mut maps, interfaces::plan(&snapshot, &rules));
    let settings = Settings {
        node_name: "node-1".to_owned(),
        ..Settings::default()
    };
    let mut agent = FedAgent {
        reconciler: Reconciler::restore(settings, &maps),
        maps,
        lookup: Lookup::open(&options.bpffs, options.ifindex)?,
        arrived: (Instant::now(), Duration::ZERO),
        writes: 0,
        done: 0,
        told: Instant::now(),
    };
    agent
        .reconciler
        .set_local_addresses(interfaces::local_addresses(&snapshot));
    let (sender, receiver) = sync_channel(QUEUED_MAX);
    let reader = std::thread::spawn(move || read(&sender));
    agent.follow(&receiver)?;
    match reader.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Decodes standard input.
fn read(sender: &SyncSender<Fed>) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let arrived = Instant::now();
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let event = match word {
            "service" => watch::decode_object(Kind::Service, rest)?,
            "slice" => watch::decode_object(Kind::EndpointSlice, rest)?,
            "begin" => ObjectEvent::Restarted(kind(rest)?),
            "end" => ObjectEvent::Listed(kind(rest)?),
            _ => {
                sender
                    .send(command(word, rest)?)
                    .context("the agent ended")?;
                continue;
            }
        };
        let fed = Fed::Event(event, arrived, process::cpu_time()?);
        sender.send(fed).context("the agent ended")?;
    }
    Ok(())
}

fn kind(word: &str) -> Result<Kind> {
    match word {
        "services" => Ok(Kind::Service),
        "slices" => Ok(Kind::EndpointSlice),
        "nodes" => Ok(Kind::Node),
        _ => bail!("{word} is no kind"),
    }
}

fn command(word: &str, rest: &str) -> Result<Fed> {
    let mut words = rest.split(' ').map(str::parse::<Ipv4Addr>);
    let mut address = || {
        words
            .next()
            .context("an address is missing")?
            .context(rest.to_owned())
    };
    match word {
        "await" => Ok(Fed::Await(address()?, address()?)),
        "memory" => Ok(Fed::Memory),
        _ => bail!("{word} is no command"),
    }
}

struct FedAgent {
    reconciler: Reconciler,
    maps: KernelMaps,
    lookup: Lookup,
    /// When the last event's text had arrived, and the CPU time then.
    arrived: (Instant, Duration),
    /// Since the last command.
    writes: u64,
    done: u64,
    told: Instant,
}

impl FedAgent {
    /// As the agent's own loop: everything that waits is taken in, then the maps are reconciled.
    fn follow(&mut self, receiver: &Receiver<Fed>) -> Result<()> {
        while let Ok(first) = receiver.recv() {
            let mut next = Some(first);
            let mut command = None;
            for _ in 0..BATCH_MAX {
                match next.take() {
                    Some(Fed::Event(event, at, cpu)) => {
                        self.reconciler.handle(event);
                        self.arrived = (at, cpu);
                        self.done += 1;
                    }
                    other => {
                        command = other;
                        break;
                    }
                }
                next = receiver.try_recv().ok();
            }
            let was_synced = self.maps_are_filled();
            self.reconcile()?;
            if !was_synced && self.reconciler.is_synced() {
                let cpu = process::cpu_time()? - self.arrived.1;
                say(&json!({"cold_cpu_ms": cpu.as_secs_f64() * 1e3, "writes": self.writes}));
                // As the agent does.
                proxy_userspace::memory::give_back();
                self.writes = 0;
            }
            if let Some(command) = next.or(command) {
                self.obey(command)?;
            }
            if self.told.elapsed() > PROGRESS {
                self.told = Instant::now();
                say(&json!({"done": self.done}));
            }
        }
        Ok(())
    }

    fn reconcile(&mut self) -> Result<()> {
        let report = self.reconciler.reconcile(&mut self.maps, Instant::now());
        ensure!(
            report.failed + report.full == 0,
            "not programmed: {report:?}"
        );
        self.writes += report.writes;
        Ok(())
    }

    /// True if the first lists were reconciled before.
    fn maps_are_filled(&self) -> bool {
        self.reconciler.syncs()[0].1.updates > 0
    }

    fn obey(&mut self, command: Fed) -> Result<()> {
        match command {
            Fed::Event(event, at, cpu) => {
                self.reconciler.handle(event);
                self.arrived = (at, cpu);
                self.done += 1;
                self.reconcile()?;
            }
            Fed::Await(frontend, backend) => {
                while !self.lookup.reaches(frontend, backend)? {
                    let waited = self.arrived.0.elapsed();
                    ensure!(waited < PATIENCE, "{frontend} never leads to {backend}");
                }
                let change_us = self.arrived.0.elapsed().as_secs_f64() * 1e6;
                say(&json!({"change_us": change_us, "writes": self.writes}));
                self.writes = 0;
            }
            Fed::Memory => {
                let [rss, peak] = process::rss_mib(std::process::id())?;
                say(&json!({"rss_mib": rss, "peak_mib": peak, "done": self.done}));
            }
        }
        Ok(())
    }
}

/// Writes one line of standard output.
fn say(value: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: standard input ends next.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}
