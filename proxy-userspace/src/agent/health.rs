//! The agent's side of the health servers: what they are told after each reconcile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::socket::Request;
use crate::config::AgentOptions;
use crate::events::Events;
use crate::health::metrics::Metrics;
use crate::health::pages::{self, Health};
use crate::health::proxy::Moment;
use crate::health::service::{self, Wanted};
use crate::health::{self, BindError, NodeServer};
use crate::objects::{Kind, ObjectEvent};
use crate::pipeline::Reconciler;

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
    revision: u64,
    /// Updates seen of each family.
    updates: [u64; 2],
    /// When one of them was last brought up to date.
    updated_at: Option<Instant>,
    _tasks: JoinSet<()>,
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
        let (wanted, watched) = watch::channel(Wanted::default());
        let mut tasks = JoinSet::new();
        if let Some(addr) = options.healthz {
            let server = NodeServer {
                name: "healthz",
                addr,
                failed: "FailedToStartProxierHealthcheck",
                handler: pages::health(health.clone(), metrics.clone()),
            };
            tasks.spawn(health::start(server, options.bind_failure, events)?);
        }
        if let Some(addr) = options.metrics {
            let server = NodeServer {
                name: "metrics",
                addr,
                failed: "FailedToStartMetricServer",
                handler: pages::status(options.configz.clone(), asked),
            };
            tasks.spawn(health::start(server, options.bind_failure, events)?);
        }
        tasks.spawn(service::serve(watched, health.clone(), events.clone()));
        Ok(Self {
            health,
            metrics,
            wanted,
            revision: 0,
            updates: [0; 2],
            updated_at: None,
            _tasks: tasks,
        })
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Since when the maps are as the last update made them; `None` before the first.
    pub(super) fn since_update(&self) -> Option<Duration> {
        self.updated_at.map(|at| at.elapsed())
    }

    /// Counts objects that changed.
    pub(super) fn take_objects(&self, events: &[ObjectEvent]) {
        let [services, slices] = counts(events);
        self.metrics.changed(services, slices);
    }

    /// Passes on what a reconcile, which took so long, has made of both families.
    pub(super) fn reconciled(&mut self, reconciler: &Reconciler, took: Duration) {
        let (metrics, updates) = (&self.metrics, &mut self.updates);
        let updated_at = &mut self.updated_at;
        self.health.update(|state, now| {
            state.set_node(reconciler.existing_node());
            for ((family, sync), known) in reconciler.syncs().into_iter().zip(updates) {
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
                    metrics.synced(family, now.time, took);
                }
            }
        });
        let (revision, wanted) = reconciler.health_checks();
        if reconciler.is_synced() && revision != self.revision {
            self.revision = revision;
            self.wanted.send_replace(wanted.clone());
        }
    }
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
