//! Session affinity (section 8 of the rules): a client stays with its backend. Part of stage 5, and
//! of the socket hooks, which share the table.

use proxy_common::{AffinityEntry, AffinityKey, Backend, backend, node};

use super::frontend::Found;
use super::select::{Part, is_usable};
use crate::{Family, Tables};

/// Who is bound, and when it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Client<F: Family> {
    /// The client's address before any SNAT, and the service port (S-101).
    pub key: AffinityKey<F::Addr>,
    /// Seconds of the jiffies clock.
    pub now: u32,
}

impl<F: Family> Client<F> {
    /// The client `addr` of a frontend; `None` without affinity.
    #[inline(always)]
    pub fn of(addr: F::Addr, frontend: &Found, now: u32) -> Option<Self> {
        if frontend.tail.affinity_timeout_secs == 0 {
            return None;
        }
        let key = AffinityKey {
            client: addr,
            service_port: frontend.tail.service_port,
        };
        Some(Self { key, now })
    }

    /// Where a client without a binding goes: another place each second, so that a binding that
    /// has timed out is not found again, and the same on two CPUs that see its first flows at once.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        self.key.hash(self.now)
    }
}

/// The backend that a client is bound to, if it may still have it: within the timeout (S-102), and
/// in the set that applies to this flow without a break (S-103).
#[inline(always)]
pub fn bound<F: Family, T: Tables<F>>(
    tables: &T,
    client: &Client<F>,
    frontend: &Found,
    part: Part,
) -> Option<(u32, Backend<F::Addr>)> {
    let entry = tables.affinity(&client.key)?;
    if client.now.wrapping_sub(entry.last_used_secs) > frontend.tail.affinity_timeout_secs {
        return None;
    }
    let backend = tables.backend(entry.backend)?;
    let is_same = backend.generation == entry.generation
        && backend.service_port == client.key.service_port
        && client.key.hash(backend.departures() as u32) == entry.tag;
    (is_same && is_member(&backend, part)).then_some((entry.backend, backend))
}

/// Binds a client for a flow that starts: the sliding window begins again. A backend that has left
/// the set meanwhile is not bound to: it would be found again when it comes back.
#[inline(always)]
pub fn bind<F: Family, T: Tables<F>>(
    tables: &T,
    client: &Client<F>,
    part: Part,
    id: u32,
    backend: &Backend<F::Addr>,
) {
    if !is_member(backend, part) {
        return;
    }
    let entry = AffinityEntry {
        backend: id,
        generation: backend.generation,
        last_used_secs: client.now,
        tag: client.key.hash(backend.departures() as u32),
    };
    tables.insert_affinity(&client.key, &entry);
}

#[inline(always)]
fn is_member<A: proxy_common::Address>(backend: &Backend<A>, part: Part) -> bool {
    let flag = match part {
        Part::Cluster => backend::flags::IN_CLUSTER,
        Part::Local => backend::flags::IN_LOCAL,
    };
    backend.flags & flag != 0 && is_usable(backend.state)
}

/// True for a backend on an address of this node.
#[inline(always)]
pub fn is_own<F: Family, T: Tables<F>>(tables: &T, backend: &Backend<F::Addr>) -> bool {
    tables.node_address(&backend.addr) & node::address_flags::OWN != 0
}
