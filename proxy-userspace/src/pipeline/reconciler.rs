//! The stages behind the watch, called in order. No I/O but the writes to the given maps; time is
//! an argument.

mod audit;
mod health;
mod kept;
mod node_state;
mod obstacles;
mod report;
mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proxy_common::node::cluster_ip;
use proxy_common::{Addr4, Addr6};

pub use self::audit::Round as AuditRound;
pub use self::health::FamilySync;
use self::health::HealthChecks;
#[cfg(test)]
pub(in crate::pipeline) use self::kept::CALM;
use self::kept::{Kept, SettledDoubt};
use self::obstacles::Obstacles;
pub use self::report::Report;
#[cfg(test)]
pub(in crate::pipeline) use self::verify::VERIFY_PERIOD;
use crate::family::{IpFamily, Prefix};
use crate::maps::{Capacity, FamilyMaps, Maps};
use crate::objects::{ObjectEvent, ObjectName};
use crate::pipeline::actual::{ActualState, SharedState};
use crate::pipeline::apply::{Obstacle, Outcome, apply};
use crate::pipeline::desired::node::{LocalAddress, NodeFacts};
use crate::pipeline::desired::service::{self, Context};
use crate::pipeline::desired::{DesiredState, TouchedPorts};
use crate::pipeline::diff::diff;
use crate::pipeline::status;
use crate::pipeline::store::{Doubt, Store};
use crate::restore;
use crate::settings::{Ipv6, Settings};

/// First wait before a failed write is tried again by itself; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);

/// Longest wait between two tries (S-010); also between tries of what found no room.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Keeps the maps in step with the objects.
#[derive(Debug)]
pub struct Reconciler {
    pub(super) settings: Settings,
    pub(super) store: Store,
    pub(super) node: NodeFacts,
    local_addresses: Vec<LocalAddress>,
    /// [`proxy_common::Config::next_hops`].
    next_hops: u32,
    is_node_touched: bool,
    service_cidrs: BTreeMap<ObjectName, Vec<IpNet>>,
    pub(super) shared: SharedState,
    pub(super) v4: Family<Addr4>,
    pub(super) v6: Family<Addr6>,
    /// Entries that had to be left out, by Service.
    pub(super) problems: BTreeMap<ObjectName, Vec<String>>,
    health_checks: HealthChecks,
    has_taken_restored: bool,
    /// The maps were told that everything is read.
    has_rested: bool,
    doubt: SettledDoubt,
    retry: Retry,
    /// When everything is compared anew.
    verify_at: Option<Instant>,
}

/// One address family: its own state, its own failures (S-011).
#[derive(Debug)]
pub(super) struct Family<A: IpFamily> {
    pub(super) desired: DesiredState<A>,
    pub(super) actual: ActualState<A>,
    pending: TouchedPorts<A>,
    pub(super) kept: Kept<A>,
    pub(super) obstacles: Obstacles<A>,
    sync: FamilySync,
}

/// When to try again without being asked.
#[derive(Debug, Default)]
struct Retry {
    at: Option<Instant>,
    wait: Duration,
}

impl Reconciler {
    /// Starts with empty maps.
    pub fn new(settings: Settings, capacity: Capacity) -> Self {
        let shared = SharedState::new(capacity);
        let (v4, v6) = (ActualState::new(capacity), ActualState::new(capacity));
        Self::with_state(settings, shared, v4, v6)
    }

    /// Starts with what the maps hold (S-178). Nothing is written before both lists are complete,
    /// but for CONFIG and NODE_ADDRESSES.
    pub fn restore(settings: Settings, maps: &impl Maps) -> Self {
        let mut shared = restore::shared(maps);
        let v4 = restore::family(maps, &mut shared);
        let v6 = restore::family(maps, &mut shared);
        Self::with_state(settings, shared, v4, v6)
    }

    /// Goes on with what was taken in before the maps were there.
    #[must_use]
    pub fn with_store(self, store: Store) -> Self {
        Self { store, ..self }
    }

    fn with_state(
        settings: Settings,
        shared: SharedState,
        v4: ActualState<Addr4>,
        v6: ActualState<Addr6>,
    ) -> Self {
        Self {
            node: NodeFacts::of(&settings, None),
            settings,
            store: Store::default(),
            local_addresses: Vec::new(),
            next_hops: shared.config.map_or(0, |config| config.next_hops),
            is_node_touched: true,
            service_cidrs: BTreeMap::new(),
            shared,
            v4: Family::new(v4),
            v6: Family::new(v6),
            problems: BTreeMap::new(),
            health_checks: HealthChecks::default(),
            has_taken_restored: false,
            has_rested: false,
            doubt: SettledDoubt::default(),
            retry: Retry::default(),
            verify_at: None,
        }
    }

    /// Takes in what a source tells.
    pub fn handle(&mut self, event: ObjectEvent) {
        self.store.handle(event);
    }

    /// Takes in the addresses of this node, all of them.
    pub fn set_local_addresses(&mut self, mut addresses: Vec<LocalAddress>) {
        addresses.sort();
        self.is_node_touched |= self.local_addresses != addresses;
        self.local_addresses = addresses;
    }

    /// Routes or neighbours are others: flows look for their next hops anew.
    pub fn next_hops_moved(&mut self) {
        self.next_hops = self.next_hops.wrapping_add(1);
        self.is_node_touched = true;
    }

    /// Replaces the settings.
    pub fn set_settings(&mut self, settings: Settings) {
        if self.settings != settings {
            self.settings = settings;
            self.is_node_touched = true;
            self.store.touch_all();
        }
    }

    /// True when Services and EndpointSlices were listed completely (S-007).
    pub fn is_synced(&self) -> bool {
        self.store.is_synced()
    }

    /// Brings the maps in step with the objects. Nothing changed: nothing is written.
    pub fn reconcile<M: Maps>(&mut self, maps: &mut M, now: Instant) -> Report {
        self.shared.regions.wake(now);
        self.v4.actual.wake(now);
        self.v6.actual.wake(now);
        self.verify_if_due(maps, now);
        if !std::mem::replace(&mut self.has_rested, true) {
            maps.rest();
        }
        let touched = self.store.take_touched();
        self.update_node(touched.node);
        self.update_service_cidrs(touched.service_cidrs);
        if self.store.is_synced() {
            let services = self.store.take_touched_services();
            self.update_services(services);
            self.sift_restored(now);
            self.is_node_touched |= self.v4.desired.cover().take_changed();
            self.is_node_touched |= self.v6.desired.cover().take_changed();
        }
        let mut report = Report::default();
        self.write_node(maps, &mut report);
        if self.store.is_synced() {
            report.add(self.v4.reconcile(maps, &mut self.shared, now));
            report.add(self.v6.reconcile(maps, &mut self.shared, now));
        }
        self.retry.plan(&report, now);
        report
    }

    /// When [`Reconciler::reconcile`] should be called even if nothing happens: something that
    /// failed is due, or something that waits for room may find it, or what was restored may be
    /// compared, or everything is.
    pub fn next_wakeup(&self) -> Option<Instant> {
        let calm = self.doubt.next_wake();
        let Some(retry) = self.retry.at else {
            return calm.into_iter().chain(self.verify_at).min();
        };
        let resting = [
            self.shared.regions.next_wake(),
            self.v4.actual.frontend_ids.next_wake(),
            self.v4.actual.backend_ids.next_wake(),
            self.v6.actual.frontend_ids.next_wake(),
            self.v6.actual.backend_ids.next_wake(),
            calm,
            self.verify_at,
        ];
        resting.into_iter().flatten().chain([retry]).min()
    }

    fn update_services(&mut self, touched: Vec<Arc<ObjectName>>) {
        let context = Context {
            settings: &self.settings,
            node: &self.node,
        };
        for name in touched {
            let mut problems = Vec::new();
            let service = self.store.service(&name);
            let slices = self.store.slices(&name);
            let service = service.as_ref();
            let v4 = service.and_then(|found| {
                service::desired(&name, found, slices.clone(), context, &mut problems)
            });
            let v6 = service
                .filter(|_| self.settings.ipv6 == Ipv6::Served)
                .and_then(|found| service::desired(&name, found, slices, context, &mut problems));
            self.health_checks
                .update(&name, service, v4.as_ref(), v6.as_ref());
            self.v4
                .desired
                .update_service(&name, v4, &mut self.v4.pending);
            self.v6
                .desired
                .update_service(&name, v6, &mut self.v6.pending);
            problems.sort();
            problems.dedup();
            note_problems(&mut self.problems, &name, problems);
        }
    }

    /// Behind the barrier, what was restored is compared as a whole, as far as complaints about
    /// objects leave no doubt.
    fn sift_restored(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.has_taken_restored, true) {
            self.v4.take_restored();
            self.v6.take_restored();
        }
        if self.v4.kept.is_empty() && self.v6.kept.is_empty() {
            return;
        }
        let doubt = self.doubt.update(self.store.doubt(), now);
        self.v4.sift_restored(doubt, &self.store);
        self.v6.sift_restored(doubt, &self.store);
        if self.v4.kept.is_empty() && self.v6.kept.is_empty() {
            self.doubt = SettledDoubt::default();
            self.is_node_touched = true;
        }
    }
}

impl<A: IpFamily> Family<A> {
    fn new(actual: ActualState<A>) -> Self {
        Self {
            desired: DesiredState::default(),
            actual,
            pending: TouchedPorts::default(),
            kept: Kept::new(),
            obstacles: Obstacles::new(),
            sync: FamilySync::default(),
        }
    }

    fn reconcile<M: Maps + FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        shared: &mut SharedState,
        now: Instant,
    ) -> Outcome<A> {
        let touched = std::mem::take(&mut self.pending);
        for (name, text) in status::collisions(self, touched.ports.iter()) {
            tracing::warn!(service_port = %name, text, "frontend is asked for twice");
        }
        let is_touched = !touched.ports.is_empty() || !touched.prefixes.is_empty();
        let plan = diff(&touched, &self.desired, &self.actual, &shared.port_filter);
        let outcome = apply(plan, maps, &mut self.actual, shared, now);
        self.pending = outcome.pending();
        self.sync.note(is_touched, &outcome);
        self.obstacles.update(&touched, &outcome);
        outcome
    }

    /// Replaces what the maps are believed to hold by what they hold.
    fn replace_actual(&mut self, actual: ActualState<A>) {
        let known = std::mem::replace(&mut self.actual, actual);
        self.actual.rest_like(known);
    }

    fn take_restored(&mut self) {
        let prefixes = self.actual.prefixes.iter();
        let active = prefixes.filter(|(_, value)| **value != cluster_ip::UNALLOCATED);
        let active: Vec<_> = active.map(|(prefix, _)| *prefix).collect();
        self.kept
            .take_restored(&self.desired, &mut self.actual, active);
        self.pending
            .ports
            .extend(self.desired.ports().keys().cloned());
        self.pending.prefixes.extend(self.desired.prefixes());
    }

    fn sift_restored(&mut self, doubt: Doubt, store: &Store) {
        self.kept
            .adopt(&self.desired, &mut self.actual, self.pending.ports.iter());
        let kept = self
            .kept
            .sift(doubt, store, &self.desired, &mut self.pending);
        for name in kept {
            self.obstacles.ports.insert(name, Obstacle::Kept);
        }
    }

    /// UNALLOCATED entries may go only when the ServiceCIDRs are listed.
    fn touch_unallocated(&mut self) {
        let all = self.actual.prefixes.iter();
        let unallocated = all.filter(|(_, value)| **value == cluster_ip::UNALLOCATED);
        self.pending
            .prefixes
            .extend(unallocated.map(|(prefix, _)| *prefix));
    }

    fn add_service_cidr(&mut self, net: &IpNet) {
        if let Some(prefix) = Prefix::from_net(net) {
            self.desired.add_service_cidr(prefix, &mut self.pending);
        }
    }

    fn remove_service_cidr(&mut self, net: &IpNet) {
        if let Some(prefix) = Prefix::from_net(net) {
            self.desired.remove_service_cidr(prefix, &mut self.pending);
        }
    }
}

impl Retry {
    fn plan(&mut self, report: &Report, now: Instant) {
        if report.pending == 0 {
            *self = Self::default();
            return;
        }
        self.wait = match report.failed {
            0 => RETRY_MAX,
            _ => (self.wait * 2).clamp(RETRY_MIN, RETRY_MAX),
        };
        self.at = Some(now + self.wait);
    }
}

fn note_problems(
    all: &mut BTreeMap<ObjectName, Vec<String>>,
    name: &ObjectName,
    problems: Vec<String>,
) {
    if problems.is_empty() {
        all.remove(name);
        return;
    }
    for problem in &problems {
        let (namespace, service) = (&name.namespace, &name.name);
        tracing::warn!(namespace, service, problem, "entry left out");
    }
    all.insert(name.clone(), problems);
}
