//! Operations on BACKENDS.

use std::sync::Arc;

use proxy_common::backend::flags;
use proxy_common::{Backend, BackendState, Be16};

use super::{Obstacle, Run};
use crate::family::{Endpoint, IpFamily};
use crate::maps::{FamilyMaps, Maps};
use crate::pipeline::actual::ActualBackend;
use crate::pipeline::desired::{DesiredBackend, ServicePortName};
use crate::pipeline::diff::BackendOp;

impl<A: IpFamily, M: Maps + FamilyMaps<A>> Run<'_, A, M> {
    /// Makes a backend, or changes it in place: id and generation stay.
    pub(super) fn put_backend(&mut self, op: &BackendOp<A>) -> Result<(), Obstacle> {
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
