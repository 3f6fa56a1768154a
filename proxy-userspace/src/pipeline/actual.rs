//! ActualState: what the maps do hold, as far as writes succeeded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use proxy_common::frontend::CLUSTER_START;
use proxy_common::port_filter::PORT_FILTER_LEN;
use proxy_common::{BackendState, Config, FrontendKey, RegionHeader, port_filter};

use crate::family::{Endpoint, IpFamily, Prefix};
use crate::ids::{Ids, Region, Regions};
use crate::maps::{Capacity, MapResult, Maps};
use crate::pipeline::desired::{DesiredBackend, ServicePortName};
use crate::sorted::SortedMap;

/// How many published regions hold each backend, by its id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct References(Vec<u32>);

impl References {
    fn add(&mut self, id: u32) {
        let index = id as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        self.0[index] += 1;
    }

    fn remove(&mut self, id: u32) {
        if let Some(count) = self.0.get_mut(id as usize) {
            *count = count.saturating_sub(1);
        }
    }

    /// True if a published region holds the backend.
    pub fn contains(&self, id: u32) -> bool {
        self.0.get(id as usize).is_some_and(|count| *count > 0)
    }
}

/// What both families share.
#[derive(Debug)]
pub struct SharedState {
    /// SLOTS.
    pub regions: Regions,
    /// Elements of SLOTS.
    pub slots: u32,
    /// PORT_FILTER, as written.
    pub port_filter: Vec<u64>,
    /// CONFIG, as written.
    pub config: Option<Config>,
}

impl SharedState {
    /// Empty maps.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            regions: Regions::new(capacity.slots),
            slots: capacity.slots,
            port_filter: vec![0; PORT_FILTER_LEN as usize],
            config: None,
        }
    }

    /// True if the address's bit of PORT_FILTER is written.
    pub fn is_address_known<A: IpFamily>(&self, addr: &A) -> bool {
        let (index, bit) = port_filter::address(addr);
        self.port_filter[index as usize] & bit != 0
    }

    /// Sets bits in one element of PORT_FILTER.
    pub fn set_filter(&mut self, maps: &mut impl Maps, index: u32, bits: u64) -> MapResult {
        let word = self.port_filter[index as usize] | bits;
        maps.write_port_filter(index, word)?;
        self.port_filter[index as usize] = word;
        Ok(())
    }
}

/// One element of BACKENDS in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ActualBackend {
    /// Its id.
    pub id: u32,
    /// As written.
    pub is_local: bool,
    /// As written; never `Free`.
    pub state: BackendState,
    /// As written.
    pub sets: u8,
    /// As written.
    pub departures: u8,
    /// As written.
    pub generation: u32,
}

impl ActualBackend {
    /// What was asked for.
    pub fn desired(&self) -> DesiredBackend {
        DesiredBackend {
            is_local: self.is_local,
            state: self.state,
            sets: self.sets,
        }
    }
}

/// What the maps hold of one service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ActualPort<A: IpFamily> {
    /// Its id.
    pub id: u32,
    /// Its backends.
    pub backends: SortedMap<Endpoint<A>, ActualBackend>,
    /// The frontends that it holds.
    pub frontends: SortedMap<FrontendKey<A>, ()>,
    /// Its entries in SOURCE_RANGES.
    pub source_ranges: BTreeSet<Prefix<A>>,
}

/// What the maps hold of one frontend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ActualFrontend {
    /// Its id.
    pub id: u32,
    /// Generation of its word.
    pub generation: u32,
    /// Its region; `None`: nothing usable is published.
    pub region: Option<Region>,
    /// The content of the region.
    pub content: Box<[u64]>,
    /// It is in FRONTEND_IDS.
    pub is_reachable: bool,
    /// The service port that holds it.
    pub owner: Arc<ServicePortName>,
}

/// Service ports, in any order.
pub type ActualPorts<A> = HashMap<Arc<ServicePortName>, Box<ActualPort<A>>, RandomState>;

/// What the maps of one family hold.
#[derive(Debug)]
pub struct ActualState<A: IpFamily> {
    /// Service ports.
    pub ports: ActualPorts<A>,
    /// Frontends.
    pub frontends: HashMap<FrontendKey<A>, ActualFrontend, RandomState>,
    /// Elements of FRONTENDS.
    pub frontend_ids: Ids,
    /// Elements of BACKENDS.
    pub backend_ids: Ids,
    /// Elements of both.
    pub capacity: Capacity,
    /// Generation of backends that were used and are free: the id starts there again.
    pub generations: HashMap<u32, u32, RandomState>,
    /// Service port ids are handed out once: affinity entries may outlive a service port.
    pub next_port_id: u32,
    /// How many published regions hold a backend, by id.
    pub references: References,
    /// CLUSTER_IPS.
    pub prefixes: BTreeMap<Prefix<A>, u32>,
    /// NODE_ADDRESSES.
    pub node_addresses: BTreeMap<A, u32>,
}

impl<A: IpFamily> ActualState<A> {
    /// Takes over what the maps do not tell of themselves: what rests, and which ids of service
    /// ports were handed out.
    pub fn rest_like(&mut self, known: Self) {
        self.frontend_ids.rest_like(known.frontend_ids);
        self.backend_ids.rest_like(known.backend_ids);
        self.next_port_id = self.next_port_id.max(known.next_port_id);
    }

    /// Empty maps.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            ports: HashMap::default(),
            frontends: HashMap::default(),
            frontend_ids: Ids::new(capacity.frontends),
            backend_ids: Ids::new(capacity.backends),
            capacity,
            generations: HashMap::default(),
            next_port_id: 1,
            references: References::default(),
            prefixes: BTreeMap::new(),
            node_addresses: BTreeMap::new(),
        }
    }

    /// The record of a service port, made where there is none.
    pub fn port_mut(&mut self, name: &Arc<ServicePortName>) -> &mut ActualPort<A> {
        self.ports.entry(name.clone()).or_insert_with(|| {
            let id = self.next_port_id;
            self.next_port_id += 1;
            Box::new(ActualPort::new(id))
        })
    }

    /// Counts the backends of a region that is published.
    pub fn reference(&mut self, content: &[u64]) {
        members(content).for_each(|id| self.references.add(id));
    }

    /// Takes back what [`ActualState::reference`] counted.
    pub fn dereference(&mut self, content: &[u64]) {
        members(content).for_each(|id| self.references.remove(id));
    }

    /// Moves what rested long enough back to the free.
    pub fn wake(&mut self, now: std::time::Instant) {
        self.frontend_ids.wake(now);
        self.backend_ids.wake(now);
    }
}

impl<A: IpFamily> ActualPort<A> {
    /// Nothing but an id.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            backends: SortedMap::new(),
            frontends: SortedMap::new(),
            source_ranges: BTreeSet::new(),
        }
    }

    /// True if nothing in any map belongs to it.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty() && self.frontends.is_empty() && self.source_ranges.is_empty()
    }
}

/// The backend ids of a region's content, those of both parts.
pub fn members(content: &[u64]) -> impl Iterator<Item = u32> {
    let header = content
        .first()
        .map_or(RegionHeader::default(), |word| RegionHeader::unpack(*word));
    let id = |start: u32, index: u32| {
        let word = content
            .get((start + index / 2) as usize)
            .copied()
            .unwrap_or_default();
        (word >> (32 * (index & 1))) as u32
    };
    let cluster = (0..header.cluster_count).map(move |index| id(CLUSTER_START, index));
    let local = (0..header.local_count).map(move |index| id(header.local_start(), index));
    cluster.chain(local)
}

/// The content of a region. `None` if a member has no backend.
pub fn render<A: IpFamily>(
    port: &ActualPort<A>,
    parts: [&[Endpoint<A>]; 2],
    head: [u64; CLUSTER_START as usize],
) -> Option<Box<[u64]>> {
    let words = parts.iter().map(|part| part.len().div_ceil(2));
    let mut content = Vec::with_capacity(head.len() + words.sum::<usize>());
    content.extend(head);
    for part in parts {
        for pair in part.chunks(2) {
            let mut word = 0;
            for (index, endpoint) in pair.iter().enumerate() {
                word |= u64::from(port.backends.get(endpoint)?.id) << (32 * index);
            }
            content.push(word);
        }
    }
    Some(content.into_boxed_slice())
}
