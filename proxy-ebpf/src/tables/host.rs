//! The maps as plain collections: for tests, fuzzing and `shunt explain`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proxy_common::flow::Carried;
use proxy_common::port_filter::{address, bit, index};
use proxy_common::*;

use super::{FlowTable, FrontendRead, Insert, Sighting, Tables};
use crate::Family;

/// Entries of FLOWS and HANDSHAKES.
pub type Flows<F> = BTreeMap<FlowKey<<F as Family>::Addr>, Connection<<F as Family>::Addr>>;

/// The maps of one family, and those that the families share.
#[derive(Debug)]
pub struct HostTables<F: Family> {
    /// CONFIG.
    pub config: Option<Config>,
    /// PORT_FILTER.
    pub port_filter: BTreeMap<u32, u64>,
    /// FRONTEND_IDS.
    pub frontend_ids: BTreeMap<FrontendKey<F::Addr>, u32>,
    /// FRONTENDS.
    pub frontends: BTreeMap<u32, Frontend<F::Addr>>,
    /// SLOTS.
    pub slots: BTreeMap<u32, u64>,
    /// BACKENDS.
    pub backends: BTreeMap<u32, Backend<F::Addr>>,
    /// NODE_ADDRESSES.
    pub node_addresses: BTreeMap<F::Addr, u32>,
    /// CLUSTER_IPS by prefix length and address.
    pub cluster_ips: BTreeMap<(u32, F::Addr), u32>,
    /// SOURCE_RANGES: service port, prefix length, address.
    pub source_ranges: Vec<(u32, u32, F::Addr)>,
    /// INTERFACES.
    pub interfaces: BTreeMap<u32, Interface>,
    /// MONITORS.
    pub monitor: Option<Monitor>,
    /// What BPF writes.
    pub written: RefCell<Written<F>>,
}

/// What the pipeline itself writes.
#[derive(Debug)]
pub struct Written<F: Family> {
    /// HANDSHAKES.
    pub handshakes: Flows<F>,
    /// FLOWS.
    pub flows: Flows<F>,
    /// FRAGMENTS, as bytes of the key.
    pub fragments: BTreeMap<Vec<u8>, FragmentPorts>,
    /// AFFINITY, as bytes of the key.
    pub affinity: BTreeMap<Vec<u8>, AffinityEntry>,
    /// ANSWERS: the second of the last answer, and how many it saw.
    pub answers: (u32, u32),
    /// NEW_FLOWS: the same of the last new flow.
    pub new_flows: (u32, u32),
    /// SOCKETS, as bytes of the key.
    pub sockets: BTreeMap<Vec<u8>, SocketEntry<F::Addr>>,
    /// EVENTS, without their time.
    pub events: Vec<Event>,
    /// COUNTERS.
    pub counters: BTreeMap<Counter, u64>,
    /// FRONTEND_COUNTS.
    pub frontend_counts: BTreeMap<u32, FrontendCounts>,
    /// BACKEND_COUNTS.
    pub backend_counts: BTreeMap<u32, BackendCounts>,
}

impl<F: Family> Default for Written<F> {
    fn default() -> Self {
        Self {
            handshakes: BTreeMap::new(),
            flows: BTreeMap::new(),
            fragments: BTreeMap::new(),
            affinity: BTreeMap::new(),
            answers: (0, 0),
            new_flows: (0, 0),
            sockets: BTreeMap::new(),
            events: Vec::new(),
            counters: BTreeMap::new(),
            frontend_counts: BTreeMap::new(),
            backend_counts: BTreeMap::new(),
        }
    }
}

impl<F: Family> Default for HostTables<F> {
    fn default() -> Self {
        Self {
            config: None,
            port_filter: BTreeMap::new(),
            frontend_ids: BTreeMap::new(),
            frontends: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: BTreeMap::new(),
            node_addresses: BTreeMap::new(),
            cluster_ips: BTreeMap::new(),
            source_ranges: Vec::new(),
            interfaces: BTreeMap::new(),
            monitor: None,
            written: RefCell::default(),
        }
    }
}

impl<F: Family> Written<F> {
    fn table(&mut self, table: FlowTable) -> &mut Flows<F> {
        match table {
            FlowTable::Handshakes => &mut self.handshakes,
            FlowTable::Flows => &mut self.flows,
        }
    }
}

/// One more in the second `now`: true for the first `limit`.
fn is_within((second, count): &mut (u32, u32), now: u32, limit: u32) -> bool {
    if *second != now {
        (*second, *count) = (now, 0);
    }
    *count += 1;
    *count <= limit
}

/// True if the first `len` bits of both are equal.
fn is_in_prefix<A: Address>(addr: &A, network: &A, len: u32) -> bool {
    let (addr, network) = (addr.words(), network.words());
    (0..4).all(|word| {
        let bits = len.saturating_sub(32 * word).min(32);
        let mask = if bits == 0 {
            0
        } else {
            u32::MAX << (32 - bits)
        };
        let word = word as usize;
        addr[word].get() & mask == network[word].get() & mask
    })
}

impl<F: Family> Tables<F> for HostTables<F> {
    type Entry = (FlowTable, FlowKey<F::Addr>);

    fn config(&self) -> Option<&Config> {
        self.config
            .as_ref()
            .filter(|config| config.abi_version == ABI_VERSION)
    }

    fn port_known(&self, protocol: u8, side: Side, port: u16) -> bool {
        index(protocol, side, port)
            .and_then(|index| self.port_filter.get(&index))
            .is_some_and(|bits| bits & bit(port) != 0)
    }

    fn address_known(&self, addr: &F::Addr) -> bool {
        let (index, bit) = address(addr);
        let bits = self.port_filter.get(&index);
        bits.is_some_and(|bits| bits & bit != 0)
    }

    fn entry(
        &self,
        table: FlowTable,
        key: &FlowKey<F::Addr>,
        found: &mut Connection<F::Addr>,
    ) -> Option<Self::Entry> {
        let mut written = self.written.borrow_mut();
        *found = *written.table(table).get(key)?;
        Some((table, *key))
    }

    fn carry(&self, (table, key): Self::Entry, bytes: u32) {
        let mut written = self.written.borrow_mut();
        if let Some(entry) = written.table(table).get_mut(&key) {
            entry.carried += Carried::one(bytes).pack();
        }
    }

    fn see(&self, (table, key): Self::Entry, now: u32, bytes: u32) {
        let mut written = self.written.borrow_mut();
        let Some(entry) = written.table(table).get_mut(&key) else {
            return;
        };
        entry.last_seen_secs = now;
        let mut new = Carried::unpack(entry.carried);
        if bytes != 0 {
            new.packets += 1;
            new.bytes += u64::from(bytes);
        }
        entry.carried = 0;
        entry.packets += new.packets;
        entry.bytes += new.bytes;
        let entry = *entry;
        let backend = self.backends.get(&entry.backend);
        let is_its = backend.is_some_and(|backend| backend.generation == entry.generation);
        if new.packets == 0 || !is_its {
            return;
        }
        let counts = written.backend_counts.entry(entry.backend).or_default();
        let (packets, bytes) = if entry.flags & flow::flags::REPLY != 0 {
            (&mut counts.packets_from, &mut counts.bytes_from)
        } else {
            (&mut counts.packets_to, &mut counts.bytes_to)
        };
        *packets += new.packets;
        *bytes += new.bytes;
    }

    fn insert_flow(
        &self,
        table: FlowTable,
        key: &FlowKey<F::Addr>,
        value: &Connection<F::Addr>,
        how: Insert,
    ) -> bool {
        let mut written = self.written.borrow_mut();
        let flows = written.table(table);
        if how == Insert::NoExist && flows.contains_key(key) {
            return false;
        }
        flows.insert(*key, *value);
        true
    }

    fn remove_flow(&self, table: FlowTable, key: &FlowKey<F::Addr>) {
        self.written.borrow_mut().table(table).remove(key);
    }

    fn touch_flow(&self, table: FlowTable, key: &FlowKey<F::Addr>, sighting: Sighting) -> bool {
        let mut written = self.written.borrow_mut();
        let entry = written.table(table).get_mut(key);
        let Some(entry) = entry.filter(|entry| entry.tag == key.tag()) else {
            return false;
        };
        entry.seen = sighting.on(entry.seen);
        drop(written);
        self.see((table, *key), sighting.now, sighting.bytes);
        true
    }

    fn frontend_id(&self, key: &FrontendKey<F::Addr>) -> Option<u32> {
        self.frontend_ids.get(key).copied()
    }

    fn frontend(&self, id: u32) -> Option<FrontendRead<F>> {
        let frontend = self.frontends.get(&id)?;
        Some(FrontendRead {
            word: frontend.word,
            key: frontend.key,
        })
    }

    fn slot(&self, index: u32) -> Option<u64> {
        self.slots.get(&index).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend<F::Addr>> {
        self.backends.get(&id).copied()
    }

    fn node_address(&self, addr: &F::Addr) -> u32 {
        self.node_addresses.get(addr).copied().unwrap_or(0)
    }

    fn cluster_ip(&self, addr: &F::Addr) -> u32 {
        let matching = self
            .cluster_ips
            .iter()
            .filter(|((len, network), _)| is_in_prefix(addr, network, *len));
        matching
            .max_by_key(|((len, _), _)| *len)
            .map_or(0, |(_, value)| *value)
    }

    fn source_range(&self, service_port: u32, addr: &F::Addr) -> bool {
        self.source_ranges.iter().any(|(owner, len, network)| {
            *owner == service_port && is_in_prefix(addr, network, *len)
        })
    }

    fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.interfaces.get(&ifindex).copied()
    }

    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<AffinityEntry> {
        self.written
            .borrow()
            .affinity
            .get(bytemuck::bytes_of(key))
            .copied()
    }

    fn insert_affinity(&self, key: &AffinityKey<F::Addr>, value: &AffinityEntry) {
        let key = bytemuck::bytes_of(key).to_vec();
        self.written.borrow_mut().affinity.insert(key, *value);
    }

    fn may_answer(&self, now: u32, limit: u32) -> bool {
        is_within(&mut self.written.borrow_mut().answers, now, limit)
    }

    fn may_begin(&self, now: u32, limit: u32) -> bool {
        is_within(&mut self.written.borrow_mut().new_flows, now, limit)
    }

    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<FragmentPorts> {
        self.written
            .borrow()
            .fragments
            .get(bytemuck::bytes_of(key))
            .copied()
    }

    fn insert_fragment(&self, key: &FragmentKey<F::Addr>, ports: &FragmentPorts) {
        let key = bytemuck::bytes_of(key).to_vec();
        self.written.borrow_mut().fragments.insert(key, *ports);
    }

    fn socket(&self, key: &SocketKey<F::Addr>) -> Option<SocketEntry<F::Addr>> {
        self.written
            .borrow()
            .sockets
            .get(bytemuck::bytes_of(key))
            .copied()
    }

    fn insert_socket(&self, key: &SocketKey<F::Addr>, value: &SocketEntry<F::Addr>) {
        let key = bytemuck::bytes_of(key).to_vec();
        self.written.borrow_mut().sockets.insert(key, *value);
    }

    fn monitor(&self) -> Option<Monitor> {
        self.monitor
    }

    fn tell(&self, event: &Event) {
        self.written.borrow_mut().events.push(*event);
    }

    fn count(&self, counter: Counter) {
        *self
            .written
            .borrow_mut()
            .counters
            .entry(counter)
            .or_default() += 1;
    }

    fn count_connection(&self, frontend: u32, backend: u32, bytes: u32) {
        let mut written = self.written.borrow_mut();
        let counts = written.frontend_counts.entry(frontend).or_default();
        counts.connections += 1;
        let counts = written.backend_counts.entry(backend).or_default();
        counts.connections += 1;
        counts.packets_to += u64::from(bytes != 0);
        counts.bytes_to += u64::from(bytes);
    }

    fn count_refused(&self, frontend: u32) {
        let counts = &mut self.written.borrow_mut().frontend_counts;
        counts.entry(frontend).or_default().refused += 1;
    }

    fn count_dropped(&self, frontend: u32) {
        let counts = &mut self.written.borrow_mut().frontend_counts;
        counts.entry(frontend).or_default().dropped += 1;
    }
}
