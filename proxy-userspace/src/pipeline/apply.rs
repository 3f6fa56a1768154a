//! Stage 5: performing a Plan. ActualState follows successful writes only; what failed is handed
//! back, to be compared and tried again at the next reconcile.

mod backend;
mod frontend;

pub(super) use self::backend::backend_value;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use proxy_common::{BackendState, ClusterIpKey, SourceRangeKey};

use crate::family::{Endpoint, IpFamily, Prefix};
use crate::maps::{FamilyMaps, MapError, MapResult, Maps};
use crate::pipeline::actual::{ActualState, SharedState};
use crate::pipeline::desired::{ServicePortName, TouchedPorts};
use crate::pipeline::diff::{BackendOp, Op, Plan};

/// What became of a Plan.
#[derive(Debug)]
pub struct Outcome<A> {
    /// Successful writes.
    pub writes: u64,
    /// Writes that failed.
    pub failed: u64,
    /// Backends of UDP service ports that are gone (S-123).
    pub lost_udp: u64,
    /// Service ports whose Plan was not carried out completely, and why.
    pub obstacles: BTreeMap<Arc<ServicePortName>, Obstacle>,
    /// Prefixes of CLUSTER_IPS that were not written, and why.
    pub prefixes: BTreeMap<Prefix<A>, Obstacle>,
}

/// Why an operation was not carried out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Obstacle {
    /// A restart found it in the maps, and rejected objects may be about it.
    #[error("kept as before the restart while rejected objects may be about it")]
    Kept,
    /// It waits for another operation that failed.
    #[error("waits for another write")]
    Waits,
    /// The write failed.
    #[error("{0}")]
    Failed(String),
    /// There is no room.
    #[error("{0}")]
    Full(String),
}

impl Obstacle {
    fn full(map: &'static str, limit: u32) -> Self {
        Self::Full(MapError::Full { map, limit }.to_string())
    }
}

/// Performs a Plan, first to last. An operation that fails holds up those of its service port that
/// depend on it, and nothing else.
pub fn apply<A: IpFamily, M: Maps + FamilyMaps<A>>(
    plan: Plan<A>,
    maps: &mut M,
    actual: &mut ActualState<A>,
    shared: &mut SharedState,
    now: Instant,
) -> Outcome<A> {
    let outcome = Outcome {
        writes: 0,
        failed: 0,
        lost_udp: 0,
        obstacles: BTreeMap::new(),
        prefixes: BTreeMap::new(),
    };
    let mut run = Run {
        maps,
        actual,
        shared,
        now,
        outcome,
    };
    for op in plan.ops {
        run.perform(op);
    }
    run.outcome
}

impl<A: IpFamily> Outcome<A> {
    /// True if nothing of the Plan is left.
    pub fn is_complete(&self) -> bool {
        self.obstacles.is_empty() && self.prefixes.is_empty()
    }

    /// True if something is left, and nothing but want of room is in the way of it.
    pub fn is_short_of_room(&self) -> bool {
        let obstacles = || self.obstacles.values().chain(self.prefixes.values());
        self.failed == 0 && obstacles().any(|obstacle| matches!(obstacle, Obstacle::Full(_)))
    }

    /// What must be compared again.
    pub fn pending(&self) -> TouchedPorts<A> {
        TouchedPorts {
            ports: self.obstacles.keys().cloned().collect(),
            prefixes: self.prefixes.keys().copied().collect(),
        }
    }
}

struct Run<'a, A: IpFamily, M> {
    maps: &'a mut M,
    actual: &'a mut ActualState<A>,
    shared: &'a mut SharedState,
    now: Instant,
    outcome: Outcome<A>,
}

impl<A: IpFamily, M: Maps + FamilyMaps<A>> Run<'_, A, M> {
    fn perform(&mut self, op: Op<A>) {
        let (name, result) = match op {
            Op::SetPortFilter { index, bits } => {
                // Whoever needs a bit that is not there is not published.
                let _ = self.set_port_filter(index, bits);
                return;
            }
            Op::PutPrefix(prefix, value) => return self.put_prefix(prefix, value),
            Op::RemovePrefix(prefix) => return self.remove_prefix(prefix),
            Op::Claim {
                name,
                backends,
                frontends,
            } => {
                let result = self.claim(&name, backends, frontends);
                (name, result)
            }
            Op::PutBackend(op) => {
                let result = self
                    .unless_held_up(&op.name)
                    .and_then(|()| self.put_backend(&op));
                (op.name, result)
            }
            Op::PutSourceRange(op) => {
                let result = self
                    .unless_held_up(&op.name)
                    .and_then(|()| self.put_range(&op.name, op.range));
                (op.name, result)
            }
            Op::Publish(op) => {
                let result = self.publish_or_vacate(&op);
                (op.name, result)
            }
            Op::Reach { name, key } => {
                let result = self.reach(&key);
                (name, result)
            }
            Op::RemoveFrontend { name, key } => {
                let result = self.remove_frontend(&key);
                (name, result)
            }
            Op::DemoteBackend(op) => {
                let result = self.unless_needed(&op).and_then(|()| self.put_backend(&op));
                (op.name, result)
            }
            Op::FreeBackend { name, endpoint } => {
                let result = self.unless_referenced(&name, endpoint);
                let result = result.and_then(|()| self.free_backend(&name, endpoint));
                (name, result)
            }
            Op::RemoveSourceRange(op) => {
                let result = self.unless_held_up(&op.name);
                let result = result.and_then(|()| self.remove_range(&op.name, op.range));
                (op.name, result)
            }
            Op::Forget(name) => {
                let result = self.forget(&name);
                (name, result)
            }
        };
        if let Err(obstacle) = result {
            let worst = self
                .outcome
                .obstacles
                .entry(name)
                .or_insert(Obstacle::Waits);
            *worst = obstacle.max(worst.clone());
        }
    }

    fn note(&mut self, result: MapResult) -> Result<(), Obstacle> {
        match result {
            Ok(()) => {
                self.outcome.writes += 1;
                Ok(())
            }
            Err(error @ MapError::Full { .. }) => Err(Obstacle::Full(error.to_string())),
            Err(MapError::Write { map, source }) => {
                self.outcome.failed += 1;
                Err(Obstacle::Failed(format!("writing {map}: {source}")))
            }
        }
    }

    /// An earlier failure of this service port holds up what depends on it.
    fn unless_held_up(&self, name: &Arc<ServicePortName>) -> Result<(), Obstacle> {
        match self.outcome.obstacles.contains_key(name) {
            true => Err(Obstacle::Waits),
            false => Ok(()),
        }
    }

    /// A backend stays in its sets while what should be published is not, and is not quarantined
    /// while a published region holds it.
    fn unless_needed(&self, op: &BackendOp<A>) -> Result<(), Obstacle> {
        match op.backend.state {
            BackendState::Quarantined => self.unless_referenced(&op.name, op.endpoint),
            _ => self.unless_held_up(&op.name),
        }
    }

    /// A backend in a published region stays as it is.
    fn unless_referenced(
        &self,
        name: &Arc<ServicePortName>,
        endpoint: Endpoint<A>,
    ) -> Result<(), Obstacle> {
        let port = self.actual.ports.get(name);
        let backend = port.and_then(|port| port.backends.get(&endpoint));
        match backend.is_some_and(|backend| self.actual.references.contains(backend.id)) {
            true => Err(Obstacle::Waits),
            false => Ok(()),
        }
    }

    fn set_port_filter(&mut self, index: u32, bits: u64) -> Result<(), Obstacle> {
        let result = self.shared.set_filter(self.maps, index, bits);
        self.note(result)
    }

    fn claim(
        &mut self,
        name: &Arc<ServicePortName>,
        backends: usize,
        frontends: usize,
    ) -> Result<(), Obstacle> {
        if self.actual.backend_ids.available() < backends {
            return Err(Obstacle::full("BACKENDS", self.actual.capacity.backends));
        }
        if self.actual.frontend_ids.available() < frontends {
            return Err(Obstacle::full("FRONTENDS", self.actual.capacity.frontends));
        }
        let port = self.actual.port_mut(name);
        port.backends.reserve(backends);
        port.frontends.reserve(frontends);
        Ok(())
    }

    fn put_range(&mut self, name: &Arc<ServicePortName>, range: Prefix<A>) -> Result<(), Obstacle> {
        let key = range_key(self.actual.port_mut(name).id, range);
        let result = FamilyMaps::<A>::insert_source_range(self.maps, &key);
        self.note(result)?;
        self.actual.port_mut(name).source_ranges.insert(range);
        Ok(())
    }

    fn remove_range(
        &mut self,
        name: &Arc<ServicePortName>,
        range: Prefix<A>,
    ) -> Result<(), Obstacle> {
        let key = range_key(self.actual.port_mut(name).id, range);
        let result = FamilyMaps::<A>::remove_source_range(self.maps, &key);
        self.note(result)?;
        self.actual.port_mut(name).source_ranges.remove(&range);
        Ok(())
    }

    fn forget(&mut self, name: &Arc<ServicePortName>) -> Result<(), Obstacle> {
        match self.actual.ports.get(name) {
            Some(port) if port.is_empty() => {
                self.actual.ports.remove(name);
                Ok(())
            }
            Some(_) => Err(Obstacle::Waits),
            None => Ok(()),
        }
    }

    fn put_prefix(&mut self, prefix: Prefix<A>, value: u32) {
        let key = ClusterIpKey {
            prefix_len: prefix.len,
            addr: prefix.addr,
        };
        let result = FamilyMaps::<A>::insert_cluster_ip(self.maps, &key, value);
        match self.note(result) {
            Ok(()) => {
                self.actual.prefixes.insert(prefix, value);
            }
            Err(obstacle) => {
                self.outcome.prefixes.insert(prefix, obstacle);
            }
        }
    }

    fn remove_prefix(&mut self, prefix: Prefix<A>) {
        let key = ClusterIpKey {
            prefix_len: prefix.len,
            addr: prefix.addr,
        };
        let result = FamilyMaps::<A>::remove_cluster_ip(self.maps, &key);
        match self.note(result) {
            Ok(()) => {
                self.actual.prefixes.remove(&prefix);
            }
            Err(obstacle) => {
                self.outcome.prefixes.insert(prefix, obstacle);
            }
        }
    }
}

/// The key of a range: its length counts the service port's 32 bits too.
pub(super) fn range_key<A: IpFamily>(service_port: u32, range: Prefix<A>) -> SourceRangeKey<A> {
    SourceRangeKey {
        prefix_len: 32 + range.len,
        service_port,
        addr: range.addr,
    }
}
