//! The agent: one closed loop. Everything that happens is an [`Event`]; one match decides.

mod answers;
pub mod config_file;
mod error;
mod health;
mod intake;
mod lookout;
mod monitors;
pub mod names;
mod node_wait;
mod setup;
pub mod socket;
mod sources;
pub mod status;
pub mod view;

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use self::config_file::ConfigFile;
use self::health::HealthSide;
use self::intake::Intake;
use self::lookout::Lookout;
use self::monitors::Monitors;
use self::node_wait::{NodeError, NodeWait};
use self::socket::Request;
use self::sources::Sources;
use crate::config::AgentOptions;
use crate::datapath::interfaces::{self, Rules};
use crate::datapath::maps::KernelMaps;
use crate::datapath::netlink::{Changes, NetlinkError, Reader};
use crate::datapath::next_hops::NextHops;
use crate::datapath::udp_sockets::Destroyer;
use crate::datapath::xdp::XdpChoice;
use crate::datapath::{Datapath, TcChoice};
use crate::events::Events;
use crate::objects::ObjectEvent;
use crate::pipeline::{LocalAddress, Reconciler, Report};
use crate::settings::SocketLb;
use crate::{error_chain, memory};

/// Least time between two readings of the interfaces: a storm of changes costs no more.
const INTERFACES_PACE: Duration = Duration::from_millis(50);
/// Interfaces are read again after this time even without news: what netlink does not tell (the
/// setting of br_netfilter), and attachments that failed.
const INTERFACES_PERIOD: Duration = Duration::from_secs(10);
/// Events taken at once before the maps are reconciled.
const BATCH_MAX: usize = 4096;

pub use self::error::AgentError;
pub use self::setup::init;

/// What only the command line says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RunOptions {
    /// How to attach to interfaces.
    pub tc: TcChoice,
    /// Where XDP is wanted.
    pub xdp: XdpChoice,
    /// A file that is made when everything is programmed.
    pub ready_file: Option<PathBuf>,
    /// The configuration file, as it was read.
    pub config: Option<ConfigFile>,
    /// For tests: SIGKILL after so many writes that follow the first complete programming.
    pub kill_after_writes: Option<u64>,
    /// For tests: SIGKILL after so many writes of this process.
    pub kill_after_first_writes: Option<u64>,
    /// For tests: old programs and those that take their places are to run side by side so long.
    pub pause_after_swaps: Duration,
}

/// Everything that can happen to an agent.
#[derive(Debug)]
enum Event {
    /// Objects changed; the source is still there unless nothing came.
    Objects,
    /// Links, addresses or routes changed.
    Interfaces(Result<(), NetlinkError>),
    /// Routes or neighbours changed.
    NextHops(Result<(), NetlinkError>),
    /// It is time to read the interfaces.
    ReadInterfaces,
    /// The reconciler wanted to be called.
    Wakeup,
    /// It is time to look whether the kernel holds what it should.
    Audit,
    /// Somebody asks.
    Asked(Request),
    /// The first monitor has come.
    Monitored,
    /// SIGTERM or SIGINT.
    Stop,
}

/// Runs until a signal or an error. What is in the kernel stays there (S-180).
pub async fn run(options: AgentOptions, run_options: RunOptions) -> Result<(), AgentError> {
    let mut agent = Agent::start(options, run_options).await?;
    loop {
        if let Some(error) = agent.failure.take() {
            return Err(error.into());
        }
        match agent.next().await {
            Event::Objects if agent.batch.is_empty() => return Err(AgentError::SourceEnded),
            Event::Objects => agent.take_objects(),
            Event::Interfaces(Ok(())) => agent.interfaces_changed(),
            Event::Interfaces(Err(error)) | Event::NextHops(Err(error)) => {
                return Err(error.into());
            }
            Event::NextHops(Ok(())) => {
                agent.reconciler.next_hops_moved();
                agent.reconcile();
            }
            Event::ReadInterfaces => {
                agent.check_config()?;
                agent.read_interfaces().await;
            }
            Event::Wakeup => agent.reconcile(),
            Event::Audit => agent.audit(),
            Event::Asked(request) => agent.answer(request),
            Event::Monitored => agent.monitors.tell(&agent.reconciler),
            Event::Stop => {
                tracing::info!("stopped; the datapath stays in place");
                return Ok(());
            }
        }
    }
}

struct Agent {
    node_name: String,
    rules: Rules,
    ready_file: Option<PathBuf>,
    config: Option<ConfigFile>,
    kill_after_writes: Option<u64>,
    has_socket_lb: bool,
    destroyer: Option<Destroyer>,

    datapath: Datapath,
    maps: KernelMaps,
    reconciler: Reconciler,
    /// Since when everything is programmed.
    ready_at: Option<Instant>,
    node_wait: NodeWait,
    node_source: node_wait::Source,
    /// When the wait for the Node is looked at again.
    waits_until: Option<Instant>,
    failure: Option<NodeError>,

    sources: Sources,
    objects: mpsc::Receiver<ObjectEvent>,
    batch: Vec<ObjectEvent>,
    /// CPU time of this process when the last batch came, or the datapath was loaded.
    batch_cpu: Duration,
    reader: Reader,
    changes: Changes,
    /// Where XDP is wanted.
    next_hops: Option<NextHops>,
    last_read: Instant,
    next_read: Instant,
    requests: mpsc::Receiver<Request>,
    monitors: Monitors,
    health: HealthSide,
    lookout: Lookout,
    terminate: Signal,
    interrupt: Signal,
}

impl Agent {
    /// S-177: options are checked, then the source and the machine, then the datapath is made while
    /// the first lists come; objects are acted on last.
    async fn start(options: AgentOptions, run_options: RunOptions) -> Result<Self, AgentError> {
        let [terminate, interrupt] = setup::signals()?;
        let datapath_options = setup::datapath_options(&options, &run_options);
        setup::kernel(&options)?;
        // Started first, so that a source that cannot be watched leaves the machine untouched.
        let (sources, clients, mut objects) = Sources::start(&options).await?;
        let loading = (datapath_options, options.settings.clone());
        let Intake {
            mut datapath,
            mut maps,
            settings,
            store,
            told,
            cpu,
        } = intake::load(loading, &mut objects).await?;
        setup::end_after(&mut maps, run_options.kill_after_first_writes);
        // Subscribed before the first reading, so that nothing is missed between the two.
        let changes = Changes::subscribe()?;
        let reader = Reader::open()?;
        let next_hops = setup::next_hops(run_options.xdp, &reader).await?;
        let rules = setup::rules(&options, &settings, run_options.xdp);
        let snapshot = reader.snapshot().await?;
        datapath.start_interfaces(&mut maps, interfaces::plan(&snapshot, &rules));
        datapath.attach_sockets()?;
        datapath.finish_exchange()?;
        let has_socket_lb = settings.socket_lb != SocketLb::Off;
        let node_name = settings.node_name.clone();
        let events = Events::to_servers(clients, node_name.clone());
        let (asked, requests, monitors) = setup::listen(&datapath);
        let mut health = HealthSide::start(&options, asked, &events)?;
        health.take_intake(told);
        events.publish(setup::starting());
        let now = Instant::now();
        let mut agent = Self {
            node_name,
            rules,
            ready_file: run_options.ready_file,
            config: run_options.config,
            kill_after_writes: run_options.kill_after_writes,
            node_wait: NodeWait::new(setup::needs(&settings), settings.ipv6),
            node_source: setup::node_source(&options.source),
            waits_until: None,
            failure: None,
            has_socket_lb,
            destroyer: has_socket_lb.then(|| setup::destroyer(&datapath)).flatten(),
            reconciler: Reconciler::restore(settings, &maps).with_store(store),
            requests,
            monitors,
            health,
            lookout: Lookout::new(events, options.audit_period),
            datapath,
            maps,
            ready_at: None,
            sources,
            objects,
            batch: Vec::new(),
            batch_cpu: cpu,
            reader,
            changes,
            next_hops,
            last_read: now,
            next_read: now + INTERFACES_PERIOD,
            terminate,
            interrupt,
        };
        agent.set_local_addresses(interfaces::local_addresses(&snapshot));
        Ok(agent)
    }

    /// Waits for what happens next. Signals and interfaces come before a flood of objects.
    async fn next(&mut self) -> Event {
        self.batch.clear();
        let wakeup = self.reconciler.next_wakeup().map(Instant::from_std);
        let wakeup = self.waits_until.or(wakeup);
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            () = sleep_until(self.next_read) => Event::ReadInterfaces,
            changed = self.changes.next() => Event::Interfaces(changed),
            moved = moved(&mut self.next_hops) => Event::NextHops(moved),
            Some(request) = self.requests.recv() => Event::Asked(request),
            Some(()) = self.monitors.wanted() => Event::Monitored,
            () = at(wakeup) => Event::Wakeup,
            () = sleep_until(self.lookout.next) => Event::Audit,
            _ = self.objects.recv_many(&mut self.batch, BATCH_MAX) => Event::Objects,
        }
    }

    fn take_objects(&mut self) {
        if self.ready_at.is_none() {
            self.batch_cpu = cpu_time();
        }
        self.health.take_objects(&mut self.batch);
        for event in self.batch.drain(..) {
            self.reconciler.handle(event);
        }
        self.reconcile();
    }

    /// Runs at once after every event: the loop is idle between events, so nothing waits.
    fn reconcile(&mut self) {
        let now = std::time::Instant::now();
        if self.waits_for_node(now) {
            return;
        }
        let report = self.reconciler.reconcile(&mut self.maps, now);
        let took = now.elapsed();
        self.health
            .reconciled(&self.reconciler, report.failed, took);
        self.tell_room(report.full);
        if report != Report::default() {
            self.monitors.tell(&self.reconciler);
            let Report {
                writes,
                failed,
                full,
                pending,
                lost_udp,
            } = report;
            tracing::debug!(writes, failed, full, pending, lost_udp, "reconciled");
        }
        let is_first = self.ready_at.is_none() && self.reconciler.is_synced();
        // Sockets may hang on backends that went while no agent ran.
        if (report.lost_udp > 0 || is_first)
            && let Some(destroyer) = &self.destroyer
        {
            destroyer.wake();
        }
        if is_first && report.failed == 0 {
            self.ready_at = Some(Instant::now());
            setup::end_after(&mut self.maps, self.kill_after_writes);
            let cpu = cpu_time().saturating_sub(self.batch_cpu);
            let cpu_ms = cpu.as_secs_f64() * 1e3;
            tracing::info!(cpu_ms, "ready: Services and EndpointSlices are programmed");
            memory::give_back();
            if let Some(path) = &self.ready_file
                && let Err(error) = std::fs::write(path, [])
            {
                tracing::error!(path = %path.display(), %error, "ready file not made");
            }
        }
    }

    /// S-172: what is pinned goes on serving meanwhile.
    fn waits_for_node(&mut self, now: std::time::Instant) -> bool {
        let (node, is_listed) = self.reconciler.upcoming_node();
        let source = match (self.node_source, is_listed) {
            (node_wait::Source::Listed, true) => node_wait::Source::Listed,
            _ => node_wait::Source::Server,
        };
        let checked = self.node_wait.check(&node, source, now);
        self.waits_until = checked
            .as_ref()
            .ok()
            .copied()
            .flatten()
            .map(Instant::from_std);
        self.failure = checked.as_ref().err().copied();
        !matches!(checked, Ok(None))
    }

    /// S-182.
    fn check_config(&self) -> Result<(), AgentError> {
        match self.config.as_ref().is_some_and(ConfigFile::has_changed) {
            true => Err(AgentError::ConfigChanged),
            false => Ok(()),
        }
    }

    fn interfaces_changed(&mut self) {
        self.next_read = self.next_read.min(self.last_read + INTERFACES_PACE);
    }

    /// Follows links, addresses and routes (S-119b).
    async fn read_interfaces(&mut self) {
        let snapshot = self.reader.snapshot().await;
        self.last_read = Instant::now();
        self.next_read = self.last_read + INTERFACES_PERIOD;
        match snapshot {
            Ok(snapshot) => {
                let plans = interfaces::plan(&snapshot, &self.rules);
                self.datapath.set_interfaces(&mut self.maps, plans);
                self.set_local_addresses(interfaces::local_addresses(&snapshot));
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(error, "interfaces not read; trying again");
            }
        }
    }

    /// The reconciler compares: addresses that are the same cost nothing.
    fn set_local_addresses(&mut self, addresses: Vec<LocalAddress>) {
        self.reconciler.set_local_addresses(addresses);
        self.reconcile();
    }
}

/// CPU time of all threads of this process.
pub(crate) fn cpu_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    nix::time::clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

async fn moved(next_hops: &mut Option<NextHops>) -> Result<(), NetlinkError> {
    match next_hops {
        Some(next_hops) => next_hops.moved().await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
