//! Operations on BACKENDS.

use std::sync::Arc;

use proxy_common::backend::flags;
use proxy_common::{Backend, BackendState, Be16, protocol};

use super::{Obstacle, Run};
use crate::family::{Endpoint, IpFamily};
use crate::maps::{FamilyMaps, Maps};
use crate::pipeline::actual::ActualBackend;
use crate::pipeline::desired::ServicePortName;
use crate::pipeline::diff::BackendOp;

impl<A: IpFamily, M: Maps + FamilyMaps<A>> Run<'_, A, M> {
    /// Makes a backend, or changes it in place: id and generation stay.
    pub(super) fn put_backend(&mut self, op: &BackendOp<A>) -> Result<(), Obstacle> {
        let port = self.actual.port_mut(&op.name);
        let (port_id, known) = (port.id, port.backends.get(&op.endpoint).copied());
        let departures = known.map_or(0, |known| departures(&known, op.backend.sets));
        let (id, generation) = match known {
            Some(known) => (known.id, known.generation),
            None => {
                let id = self.actual.backend_ids.allocate();
                let id = id.ok_or(Obstacle::full("BACKENDS", self.actual.capacity.backends))?;
                FamilyMaps::<A>::forget_backend_counts(self.maps, id);
                let generation = self.actual.generations.get(&id);
                (id, generation.copied().unwrap_or_default())
            }
        };
        let written = ActualBackend {
            id,
            is_local: op.backend.is_local,
            state: op.backend.state,
            sets: op.backend.sets,
            departures,
            generation,
        };
        let value = backend_value(op.endpoint, &written, port_id);
        let result = FamilyMaps::<A>::write_backend(self.maps, id, &value);
        if let Err(obstacle) = self.note(result) {
            if known.is_none() {
                self.actual.backend_ids.release_unused(id);
            }
            return Err(obstacle);
        }
        self.actual.generations.remove(&id);
        self.actual
            .port_mut(&op.name)
            .backends
            .insert(op.endpoint, written);
        Ok(())
    }

    /// Moves the generation, so that no flow takes the id's next use for this one, and frees it.
    pub(super) fn free_backend(
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
        let free = ActualBackend {
            is_local: false,
            state: BackendState::Free,
            sets: 0,
            departures: 0,
            generation,
            ..known
        };
        let value = backend_value(nowhere, &free, 0);
        let result = FamilyMaps::<A>::write_backend(self.maps, known.id, &value);
        self.note(result)?;
        self.actual.generations.insert(known.id, generation);
        self.actual.backend_ids.release(known.id, self.now);
        self.actual.port_mut(name).backends.remove(&endpoint);
        self.outcome.lost_udp += u64::from(name.protocol == protocol::UDP);
        Ok(())
    }
}

/// Counts a departure where the backend is in no set any more: who was bound to it is not.
fn departures(known: &ActualBackend, sets: u8) -> u8 {
    let has_left = known.sets != 0 && sets == 0;
    (known.departures + u8::from(has_left)) & (u8::MAX >> flags::DEPARTURES_SHIFT)
}

/// The element of a backend.
pub(in crate::pipeline) fn backend_value<A: IpFamily>(
    endpoint: Endpoint<A>,
    backend: &ActualBackend,
    service_port: u32,
) -> Backend<A> {
    let local = if backend.is_local { flags::LOCAL } else { 0 };
    Backend {
        addr: endpoint.addr,
        port: Be16::new(endpoint.port),
        state: backend.state as u8,
        flags: local | backend.sets | backend.departures << flags::DEPARTURES_SHIFT,
        generation: backend.generation,
        service_port,
    }
}
