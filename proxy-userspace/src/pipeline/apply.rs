//! Stage 5: performing a Plan. ActualState follows successful writes only; what failed is handed
//! back, to be compared and tried again at the next reconcile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use proxy_common::backend::flags;
use proxy_common::port_filter::{bit, index};
use proxy_common::{
    Backend, BackendState, Be16, ClusterIpKey, Frontend, FrontendKey, Side, SourceRangeKey, Word,
};

use crate::family::{Endpoint, IpFamily, Prefix};
use crate::ids::Region;
use crate::maps::{FamilyMaps, MapError, MapResult, Maps};
use crate::pipeline::actual::{ActualBackend, ActualFrontend, ActualState, SharedState};
use crate::pipeline::desired::{DesiredBackend, ServicePortName, TouchedPorts};
use crate::pipeline::diff::{BackendOp, Op, Plan, Publication};

/// What became of a Plan.
#[derive(Debug)]
pub struct Outcome<A> {
    /// Successful writes.
    pub writes: u64,
    /// Writes that failed.
    pub failed: u64,
    /// Service ports whose Plan was not carried out completely, and why.
    pub obstacles: BTreeMap<Arc<ServicePortName>, Obstacle>,
    /// Prefixes of CLUSTER_IPS that were not written, and why.
    pub prefixes: BTreeMap<Prefix<A>, Obstacle>,
}

/// Why an operation was not carried out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Obstacle {
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
                let result = self.claim(backends, frontends);
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
                let result = self.unless_referenced(&op.name, op.endpoint);
                let result = result.and_then(|()| self.put_backend(&op));
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

    /// A backend in a published region stays as it is.
    fn unless_referenced(
        &self,
        name: &Arc<ServicePortName>,
        endpoint: Endpoint<A>,
    ) -> Result<(), Obstacle> {
        let port = self.actual.ports.get(name);
        let backend = port.and_then(|port| port.backends.get(&endpoint));
        match backend.is_some_and(|backend| self.actual.references.contains_key(&backend.id)) {
            true => Err(Obstacle::Waits),
            false => Ok(()),
        }
    }

    fn set_port_filter(&mut self, index: u32, bits: u64) -> Result<(), Obstacle> {
        let word = self.shared.port_filter[index as usize] | bits;
        let result = self.maps.write_port_filter(index, word);
        self.note(result)?;
        self.shared.port_filter[index as usize] = word;
        Ok(())
    }

    fn claim(&self, backends: usize, frontends: usize) -> Result<(), Obstacle> {
        if self.actual.backend_ids.available() < backends {
            return Err(Obstacle::full("BACKENDS", self.actual.capacity.backends));
        }
        if self.actual.frontend_ids.available() < frontends {
            return Err(Obstacle::full("FRONTENDS", self.actual.capacity.frontends));
        }
        Ok(())
    }

    fn put_backend(&mut self, op: &BackendOp<A>) -> Result<(), Obstacle> {
        let port = self.actual.port_mut(&op.name);
        let (port_id, known) = (port.id, port.backends.get(&op.endpoint).copied());
        let (id, generation) = match known {
            Some(known) => (known.id, known.generation),
            None => {
                let id = self.actual.backend_ids.allocate();
                let id = id.ok_or(Obstacle::full("BACKENDS", self.actual.capacity.backends))?;
                (
                    id,
                    self.actual
                        .generations
                        .get(&id)
                        .copied()
                        .unwrap_or_default(),
                )
            }
        };
        let value = backend_value(op.endpoint, op.backend, generation, port_id);
        let result = FamilyMaps::<A>::write_backend(self.maps, id, &value);
        if let Err(obstacle) = self.note(result) {
            if known.is_none() {
                self.actual.backend_ids.release_unused(id);
            }
            return Err(obstacle);
        }
        self.actual.generations.remove(&id);
        let DesiredBackend { is_local, state } = op.backend;
        let written = ActualBackend {
            id,
            is_local,
            state,
            generation,
        };
        self.actual
            .port_mut(&op.name)
            .backends
            .insert(op.endpoint, written);
        Ok(())
    }

    fn free_backend(
        &mut self,
        name: &Arc<ServicePortName>,
        endpoint: Endpoint<A>,
    ) -> Result<(), Obstacle> {
        let port = self.actual.ports.get(name);
        let Some(known) = port.and_then(|port| port.backends.get(&endpoint)).copied() else {
            return Ok(());
        };
        let generation = known.generation.wrapping_add(1);
        let nowhere = Endpoint {
            addr: A::UNSPECIFIED,
            port: 0,
        };
        let free = DesiredBackend {
            is_local: false,
            state: BackendState::Free,
        };
        let value = backend_value(nowhere, free, generation, 0);
        let result = FamilyMaps::<A>::write_backend(self.maps, known.id, &value);
        self.note(result)?;
        self.actual.generations.insert(known.id, generation);
        self.actual.backend_ids.release(known.id, self.now);
        self.actual.port_mut(name).backends.remove(&endpoint);
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

    /// Where there is no room, a frontend that still belongs to somebody else is taken down: it
    /// would lead to that one's backends, and they could never be freed.
    fn publish_or_vacate(&mut self, op: &Publication<A>) -> Result<(), Obstacle> {
        let result = match self.outcome.obstacles.get(&op.name) {
            Some(obstacle) => Err(obstacle.clone()),
            None => self.publish(op),
        };
        if let Err(Obstacle::Full(_)) = result {
            let known = self.actual.frontends.get(&op.key);
            if known.is_some_and(|known| known.owner != op.name) {
                let _ = self.remove_frontend(&op.key);
            }
        }
        result
    }

    fn publish(&mut self, op: &Publication<A>) -> Result<(), Obstacle> {
        let content = op
            .content(self.actual.port_mut(&op.name))
            .ok_or(Obstacle::Waits)?;
        self.unless_filtered_out(op)?;
        let region = self.write_region(&content)?;
        let result = match self.actual.frontends.get(&op.key) {
            Some(known) => {
                let (id, generation) = (known.id, known.generation.wrapping_add(1).max(1));
                self.store_word(id, region, generation)
                    .map(|()| (id, generation))
            }
            None => self.make_frontend(&op.key, region).map(|id| (id, 1)),
        };
        let (id, generation) = match result {
            Ok(written) => written,
            Err(obstacle) => {
                self.shared.regions.release_unused(region);
                return Err(obstacle);
            }
        };
        self.actual.reference(&content);
        let written = ActualFrontend {
            id,
            generation,
            region: Some(region),
            content,
            is_reachable: false,
            owner: op.name.clone(),
        };
        self.replace_frontend(&op.key, written);
        self.reach(&op.key)
    }

    /// Every bit of PORT_FILTER that the frontend and its backends need is written.
    fn unless_filtered_out(&self, op: &Publication<A>) -> Result<(), Obstacle> {
        let protocol = op.name.protocol;
        let is_set = |side: Side, port: u16| {
            let word = index(protocol, side, port)
                .and_then(|index| self.shared.port_filter.get(index as usize));
            word.is_some_and(|word| word & bit(port) != 0)
        };
        let backends = op.cluster.iter().chain(op.local.iter());
        let is_complete = is_set(Side::Destination, op.key.port.get())
            && backends
                .into_iter()
                .all(|endpoint| is_set(Side::Source, endpoint.port));
        match is_complete {
            true => Ok(()),
            false => Err(Obstacle::Failed("writing PORT_FILTER".into())),
        }
    }

    fn write_region(&mut self, content: &[u64]) -> Result<Region, Obstacle> {
        let full = Obstacle::full("SLOTS", self.shared.slots);
        let len = u32::try_from(content.len()).map_err(|_| full.clone())?;
        let region = self.shared.regions.allocate(len).ok_or(full)?;
        let result = self.maps.write_slots(region.start, content);
        if let Err(obstacle) = self.note(result) {
            self.shared.regions.release_unused(region);
            return Err(obstacle);
        }
        Ok(region)
    }

    fn make_frontend(&mut self, key: &FrontendKey<A>, region: Region) -> Result<u32, Obstacle> {
        let id = self.actual.frontend_ids.allocate();
        let id = id.ok_or(Obstacle::full("FRONTENDS", self.actual.capacity.frontends))?;
        let element = Frontend {
            word: 0,
            key: *key,
            pad: Default::default(),
        };
        let result = FamilyMaps::<A>::write_frontend(self.maps, id, &element);
        let result = self
            .note(result)
            .and_then(|()| self.store_word(id, region, 1));
        if result.is_err() {
            self.actual.frontend_ids.release_unused(id);
        }
        result.map(|()| id)
    }

    fn store_word(&mut self, id: u32, region: Region, generation: u32) -> Result<(), Obstacle> {
        let word = Word {
            region: region.start,
            generation,
        }
        .pack();
        let result = FamilyMaps::<A>::publish(self.maps, id, word);
        self.note(result)
    }

    /// ActualState after a publication: the old region rests, the owner may have changed.
    fn replace_frontend(&mut self, key: &FrontendKey<A>, mut written: ActualFrontend) {
        self.actual.port_mut(&written.owner).frontends.insert(*key);
        let owner = written.owner.clone();
        if let Some(old) = self.actual.frontends.get(key) {
            written.is_reachable = old.is_reachable;
        }
        let Some(old) = self.actual.frontends.insert(*key, written) else {
            return;
        };
        self.actual.dereference(&old.content);
        if let Some(region) = old.region {
            self.shared.regions.release(region, self.now);
        }
        if old.owner != owner
            && let Some(port) = self.actual.ports.get_mut(&old.owner)
        {
            port.frontends.remove(key);
        }
    }

    fn reach(&mut self, key: &FrontendKey<A>) -> Result<(), Obstacle> {
        let Some(known) = self.actual.frontends.get(key) else {
            return Ok(());
        };
        if known.is_reachable {
            return Ok(());
        }
        let result = FamilyMaps::<A>::insert_frontend_id(self.maps, key, known.id);
        self.note(result)?;
        if let Some(known) = self.actual.frontends.get_mut(key) {
            known.is_reachable = true;
        }
        Ok(())
    }

    fn remove_frontend(&mut self, key: &FrontendKey<A>) -> Result<(), Obstacle> {
        let Some(known) = self.actual.frontends.get(key) else {
            return Ok(());
        };
        let id = known.id;
        if known.is_reachable {
            let result = FamilyMaps::<A>::remove_frontend_id(self.maps, key);
            self.note(result)?;
            if let Some(known) = self.actual.frontends.get_mut(key) {
                known.is_reachable = false;
            }
        }
        let result = FamilyMaps::<A>::publish(self.maps, id, 0);
        self.note(result)?;
        let Some(old) = self.actual.frontends.remove(key) else {
            return Ok(());
        };
        self.actual.dereference(&old.content);
        if let Some(region) = old.region {
            self.shared.regions.release(region, self.now);
        }
        self.actual.frontend_ids.release(id, self.now);
        if let Some(port) = self.actual.ports.get_mut(&old.owner) {
            port.frontends.remove(key);
        }
        Ok(())
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

fn backend_value<A: IpFamily>(
    endpoint: Endpoint<A>,
    backend: DesiredBackend,
    generation: u32,
    service_port: u32,
) -> Backend<A> {
    Backend {
        addr: endpoint.addr,
        port: Be16::new(endpoint.port),
        state: backend.state as u8,
        flags: if backend.is_local { flags::LOCAL } else { 0 },
        generation,
        service_port,
    }
}

/// The key of a range: its length counts the service port's 32 bits too.
fn range_key<A: IpFamily>(service_port: u32, range: Prefix<A>) -> SourceRangeKey<A> {
    SourceRangeKey {
        prefix_len: 32 + range.len,
        service_port,
        addr: range.addr,
    }
}
