//! The agent's side of the health servers: what they are told after each reconcile.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::socket::Request;
use crate::config::AgentOptions;
use crate::datapath::fill;
use crate::datapath::pin::Pins;
use crate::datapath::runs::{self, ProgramStats};
use crate::events::Events;
use crate::health::latency::Triggers;
use crate::health::metrics::{Extent, Metrics};
use crate::health::node;
use crate::health::pages::{self, Health, Slow, StatusPages};
use crate::health::proxy::Moment;
use crate::health::service::{self, Wanted};
use crate::health::services::SeriesLimits;
use crate::health::slis::Slis;
use crate::health::{self, BindError, NodeServer};
use crate::objects::{Kind, ObjectEvent};
use crate::pipeline::Reconciler;

/// How long a look at all maps is good for: it reads whole flow tables.
const FILL_AGE: Duration = Duration::from_secs(30);

/// Why the health servers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// An address is taken, and that is fatal.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The metrics contradict one another.
    #[error("registering metrics")]
    Metrics(#[from] prometheus::Error),
}

/// The health servers of an agent; dropping it ends them.
pub(super) struct HealthSide {
    health: Health,
    metrics: Metrics,
    wanted: watch::Sender<Wanted>,
    /// How many series of Services and backends there may be.
    pub(super) series: SeriesLimits,
    /// Map writes that failed.
    pub(super) failed_writes: u64,
    triggers: Triggers,
    /// Changes of Services and of EndpointSlices that are not programmed yet.
    pending: [u64; 2],
    revision: u64,
    /// Updates seen of each family.
    updates: [u64; 2],
    /// When one of them was last brought up to date.
    updated_at: Option<Instant>,
    _tasks: JoinSet<()>,
    /// The kernel counts what programs do while it is open.
    _stats: Option<OwnedFd>,
}

impl HealthSide {
    /// Starts all servers. `asked`: where the status server asks the agent.
    pub(super) fn start(
        options: &AgentOptions,
        asked: mpsc::Sender<Request>,
        events: &Events,
    ) -> Result<Self, HealthError> {
        let health = Health::new(options.sync_period, Arc::new(Moment::now));
        let metrics = Metrics::new()?;
        let slis = Slis::new()?;
        let (wanted, watched) = watch::channel(Wanted::default());
        let mut tasks = JoinSet::new();
        if let Some(addr) = options.healthz {
            let server = NodeServer {
                name: "healthz",
                addr,
                failed: "FailedToStartProxierHealthcheck",
                handler: pages::health(health.clone(), metrics.clone(), slis.clone()),
            };
            tasks.spawn(health::start(server, options.bind_failure, events)?);
        }
        if let Some(addr) = options.metrics {
            let server = NodeServer {
                name: "metrics",
                addr,
                failed: "FailedToStartMetricServer",
                handler: pages::status(StatusPages {
                    configz: options.configz.clone(),
                    profiling: options.profiling,
                    agent: asked,
                    slow: slow_metrics(options),
                    slis,
                    started: Moment::now(),
                }),
            };
            tasks.spawn(health::start(server, options.bind_failure, events)?);
        }
        tasks.spawn(service::serve(watched, health.clone(), events.clone()));
        Ok(Self {
            health,
            metrics,
            wanted,
            series: options.series,
            failed_writes: 0,
            triggers: Triggers::new(Timestamp::now()),
            pending: [0; 2],
            revision: 0,
            updates: [0; 2],
            updated_at: None,
            _tasks: tasks,
            _stats: program_stats(options.program_stats),
        })
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Since when the maps are as the last update made them; `None` before the first.
    pub(super) fn since_update(&self) -> Option<Duration> {
        self.updated_at.map(|at| at.elapsed())
    }

    /// Counts objects that changed, and takes from them what is for this side only.
    pub(super) fn take_objects(&mut self, events: &mut [ObjectEvent]) {
        events
            .iter_mut()
            .for_each(|event| self.triggers.take(event));
        self.count(counts(events));
    }

    /// What came before this side was there.
    pub(super) fn take_intake(&mut self, (counts, triggers): ([u64; 2], Triggers)) {
        self.triggers = triggers;
        self.count(counts);
    }

    fn count(&mut self, [services, slices]: [u64; 2]) {
        self.metrics.changed(services, slices);
        self.pending = [self.pending[0] + services, self.pending[1] + slices];
        self.metrics.set_pending(self.pending);
    }

    /// Passes on what a reconcile, which took so long, has made of both families, and how many of
    /// its writes failed.
    pub(super) fn reconciled(&mut self, reconciler: &Reconciler, failed: u64, took: Duration) {
        self.failed_writes += failed;
        self.pass_on(reconciler, took);
        let mut syncs = reconciler.syncs().into_iter();
        if reconciler.is_synced() && syncs.all(|(_, sync)| !sync.is_pending) {
            self.pending = [0; 2];
        }
        self.metrics.set_pending(self.pending);
        let (revision, wanted) = reconciler.health_checks();
        if reconciler.is_synced() && revision != self.revision {
            self.revision = revision;
            self.wanted.send_replace(wanted.clone());
        }
    }

    fn pass_on(&mut self, reconciler: &Reconciler, took: Duration) {
        let triggers = &mut self.triggers;
        let (metrics, updates) = (&self.metrics, &mut self.updates);
        let updated_at = &mut self.updated_at;
        self.health.update(|state, now| {
            state.set_node(reconciler.existing_node());
            let syncs = reconciler.syncs().into_iter().zip(updates).enumerate();
            for (index, ((family, sync), known)) in syncs {
                let is_first = *known == 0;
                let is_updated = std::mem::replace(known, sync.updates) != sync.updates;
                if is_updated && !sync.is_pending {
                    *updated_at = Some(Instant::now());
                }
                if sync.is_pending || is_updated {
                    metrics.queued(family, now.time);
                }
                if sync.is_short_of_room {
                    state.short_of_room(family, now);
                } else if sync.is_pending {
                    state.queued(family, now);
                } else if is_updated {
                    state.updated(family, now);
                    metrics.synced(family, now.time, took, Extent::of(is_first));
                    metrics.programmed(family, &triggers.synced(index, now.time));
                } else {
                    // What changed makes no difference here.
                    triggers.synced(index, now.time);
                }
            }
        });
    }
}

/// Without it, /metrics says what programs did while somebody else made the kernel count.
fn program_stats(asked: ProgramStats) -> Option<OwnedFd> {
    if asked == ProgramStats::Off {
        return None;
    }
    runs::count()
        .inspect_err(|error| tracing::warn!(%error, "the kernel does not count runs of programs"))
        .ok()
}

/// What our programs have done and how full the maps are, for whoever may wait: maps are read at
/// most every [`FILL_AGE`].
fn slow_metrics(options: &AgentOptions) -> Slow {
    let pins = Pins::at(&options.bpffs);
    let known = Mutex::new(None::<(Instant, String)>);
    Arc::new(move || {
        let programs = node::program_text(&runs::runs(&pins));
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let maps = match known.as_ref() {
            Some((at, text)) if at.elapsed() < FILL_AGE => text.as_str(),
            _ => {
                let (fills, snat_ports_used) = fill::fill_and_snat_use(&pins);
                let text = node::map_text(&fills, snat_ports_used);
                &known.insert((Instant::now(), text)).1
            }
        };
        programs + maps
    })
}

/// Changes of Services and of EndpointSlices.
pub(super) fn counts(events: &[ObjectEvent]) -> [u64; 2] {
    [Kind::Service, Kind::EndpointSlice].map(|kind| {
        let changes = events.iter().filter(|event| match event {
            ObjectEvent::Applied(object) => object.kind() == kind,
            ObjectEvent::Deleted(deleted, _) => *deleted == kind,
            _ => false,
        });
        changes.count() as u64
    })
}
