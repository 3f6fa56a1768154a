//! Stage 5: which backend gets a new flow.

use bytemuck::Zeroable;
use proxy_common::{
    Backend, BackendState, Config, Counter, FlowKey, PICK_TRIES_MAX, backend, config, frontend,
};

use super::affinity::{self, Client};
use super::frontend::{Found, Origin, Place};
use super::parse::Headers;
use crate::{Answer, Environment, Family, Stop, Tables};

/// The chosen backend, and what S-081 and S-091 say about the source.
#[derive(Clone, Copy, Debug)]
pub struct Choice<F: Family> {
    /// FrontendId.
    pub frontend: u32,
    /// BackendId.
    pub backend_id: u32,
    /// Its record.
    pub backend: Backend<F::Addr>,
    /// Where the flow comes from.
    pub origin: Origin,
    /// The source is to be masqueraded.
    pub masquerade: Masquerade,
}

impl<F: Family> Choice<F> {
    /// No backend: a connection past every frontend that needs another port (S-099).
    #[inline(always)]
    pub fn direct(origin: Origin) -> Self {
        Self {
            frontend: 0,
            backend_id: 0,
            backend: Backend::zeroed(),
            origin,
            masquerade: Masquerade::No,
        }
    }

    /// True for what [`Choice::direct`] makes.
    #[inline(always)]
    pub fn is_direct(&self) -> bool {
        self.backend_id == 0
    }
}

/// Whether the source address is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Masquerade {
    /// The backend sees the client.
    No,
    /// S-091 says SNAT, but the answer of a backend on this node comes back here anyway: kept
    /// under `--masquerade=needed` where the return path allows it (P-4).
    IfNotLocal,
    /// S-091 keeps the source; SNAT only where the answer of a backend on this node would leave
    /// past our programs, and so untranslated (P-4).
    IfUnseen,
    /// SNAT.
    Yes,
}

/// Which part of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The Cluster set (S-061).
    Cluster,
    /// The Local set (S-065).
    Local,
}

/// Which backends can take a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takers {
    /// All of the set.
    All,
    /// Those that are not on an address of this node: no hook of the packet path sees what this
    /// node's own processes send there (P-8).
    NotOwn,
}

impl Takers {
    /// On the packet path.
    #[inline(always)]
    pub fn of(origin: Origin) -> Self {
        match origin.place {
            Place::Node => Self::NotOwn,
            Place::PodSide | Place::Bridge | Place::Outside => Self::All,
        }
    }
}

/// The backend that the client is bound to (S-101), or one by a hash of the flow, so that two CPUs
/// that see its first packets agree.
#[inline(always)]
pub fn select<F, T, E>(
    tables: &T,
    env: &E,
    config: &Config,
    headers: &Headers<F>,
    (frontend, origin, takers): (&Found, Origin, Takers),
) -> Result<Choice<F>, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let row = row(tables, config, headers, frontend, origin);
    select_of(
        tables,
        env,
        config,
        headers,
        (frontend, origin, takers, row),
    )
}

/// [`select`] where the row is known.
#[inline(always)]
pub fn select_of<F, T, E>(
    tables: &T,
    env: &E,
    config: &Config,
    headers: &Headers<F>,
    (frontend, origin, takers, (part, masquerade)): (&Found, Origin, Takers, Row),
) -> Result<Choice<F>, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let (backend_id, backend) =
        match Client::of(headers.tuple.src, frontend, env.now_secs(config.hz)) {
            None => {
                let hash = FlowKey::new(headers.tuple, headers.protocol).tag();
                pick(tables, frontend, part, hash, takers)?
            }
            Some(client) => sticky(tables, frontend, part, &client, takers)?,
        };
    let masquerade = match masquerade {
        Masquerade::IfNotLocal if backend.flags & backend::flags::LOCAL == 0 => Masquerade::Yes,
        Masquerade::IfUnseen if backend.flags & backend::flags::LOCAL == 0 => Masquerade::No,
        other => other,
    };
    Ok(Choice {
        frontend: frontend.id,
        backend_id,
        backend,
        origin,
        masquerade,
    })
}

/// The set that applies, and whether the source is masqueraded.
pub type Row = (Part, Masquerade);

/// [`policy`] for a packet.
#[inline(always)]
pub fn row<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    headers: &Headers<F>,
    frontend: &Found,
    origin: Origin,
) -> Row {
    let is_own = matches!(origin.place, Place::Node) || is_own_source(tables, headers);
    policy(config, frontend, origin, is_own)
}

/// The backend that the client is bound to, or a binding to another one.
#[inline(always)]
pub fn sticky<F: Family, T: Tables<F>>(
    tables: &T,
    frontend: &Found,
    part: Part,
    client: &Client<F>,
    takers: Takers,
) -> Result<(u32, Backend<F::Addr>), Stop> {
    let (id, backend) = match affinity::bound(tables, client, frontend, part) {
        Some((id, backend)) if takes(tables, &backend, takers) => (id, backend),
        _ => pick(tables, frontend, part, client.hash(), takers)?,
    };
    affinity::bind(tables, client, part, id, &backend);
    Ok((id, backend))
}

#[inline(always)]
fn takes<F: Family, T: Tables<F>>(tables: &T, backend: &Backend<F::Addr>, takers: Takers) -> bool {
    matches!(takers, Takers::All) || !affinity::is_own(tables, backend)
}

#[inline(always)]
fn is_own_source<F: Family, T: Tables<F>>(tables: &T, headers: &Headers<F>) -> bool {
    tables.node_address(&headers.tuple.src) & proxy_common::node::address_flags::OWN != 0
}

/// The set that applies and the SNAT row: S-071, S-080, S-081, S-091.
#[inline(always)]
pub fn policy(
    config: &Config,
    frontend: &Found,
    origin: Origin,
    is_own: bool,
) -> (Part, Masquerade) {
    let is_local_policy = frontend.has(frontend::flags::LOCAL_POLICY);
    let masquerade_all = config.flags & config::flags::MASQUERADE_ALL != 0;
    let always = config.flags & config::flags::MASQUERADE_ALWAYS != 0;
    // "needed": only traffic from outside the node, and only where no row insists.
    let (yes, no) = if always || !matches!(origin.place, Place::Outside) {
        (Masquerade::Yes, Masquerade::No)
    } else {
        (Masquerade::IfNotLocal, Masquerade::IfUnseen)
    };
    if frontend.is_cluster_ip() {
        let part = if is_local_policy {
            Part::Local
        } else {
            Part::Cluster
        };
        let masquerade = if masquerade_all {
            Masquerade::Yes
        } else if !origin.has_detector || origin.is_pod {
            no
        } else {
            yes
        };
        return (part, masquerade);
    }
    if !is_local_policy {
        (Part::Cluster, yes)
    } else if origin.is_pod {
        (Part::Cluster, no)
    } else if is_own {
        (Part::Cluster, Masquerade::Yes)
    } else {
        (Part::Local, no)
    }
}

/// The backend in the slot that `hash` falls on. Where it cannot take the flow another one gets its
/// turn, all others with the same chance, so that the load stays spread evenly (S-069).
#[inline(always)]
pub fn pick<F: Family, T: Tables<F>>(
    tables: &T,
    frontend: &Found,
    part: Part,
    hash: u32,
    takers: Takers,
) -> Result<(u32, Backend<F::Addr>), Stop> {
    let (count, start) = bounds(frontend, part);
    if count == 0 {
        return Err(if frontend.has(frontend::flags::HAS_ENDPOINTS) {
            Stop::Drop(Counter::NoLocalEndpoint)
        } else {
            Stop::Reject(Counter::RejectNoEndpoint, Answer::Refused)
        });
    }
    let mut stop = Stop::Drop(Counter::BackendGone);
    let mut index = scaled(hash, count);
    let mut step = 1 + scaled(hash.rotate_left(16).wrapping_mul(0x9e37_79b1), count - 1);
    for _ in 0..PICK_TRIES_MAX {
        if let Some(found) = member(tables, frontend.region + start, index) {
            if takes(tables, &found.1, takers) {
                return Ok(found);
            }
            stop = Stop::Pass(Counter::HostOwnAddress);
        }
        index += step;
        if index >= count {
            index -= count;
        }
        step = 1;
    }
    Err(stop)
}

/// A number below `count`, uniform where `hash` is, without a division.
#[inline(always)]
fn scaled(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

/// Backends of one part of a region, and the part's offset from the region's start.
#[inline(always)]
pub fn bounds(frontend: &Found, part: Part) -> (u32, u32) {
    match part {
        Part::Cluster => (frontend.header.cluster_count, frontend::CLUSTER_START),
        Part::Local => (frontend.header.local_count, frontend.header.local_start()),
    }
}

/// The backend at a position of the part that begins at element `first`, if it takes new flows.
#[inline(always)]
pub fn member<F: Family, T: Tables<F>>(
    tables: &T,
    first: u32,
    index: u32,
) -> Option<(u32, Backend<F::Addr>)> {
    let element = tables.slot(first + index / 2).unwrap_or(0);
    let id = (element >> (32 * (index & 1))) as u32;
    let backend = tables.backend(id)?;
    is_usable(backend.state).then_some((id, backend))
}

/// True for a backend that takes new flows when a set contains it.
#[inline(always)]
pub fn is_usable(state: u8) -> bool {
    state == BackendState::Active as u8 || state == BackendState::Terminating as u8
}
