//! Kernel maps as bytes, and the contents of [`HostTables`] put into them and read back.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use bytemuck::Pod;
use proxy_common::reasons::COUNTERS_LEN;
use proxy_common::*;
use proxy_ebpf::tables::host::{Flows, HostTables};
use proxy_userspace::datapath::sys;

use super::world::CaseFamily;

/// The map itself, if it is of a kind that the object uses.
pub fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data) => Some(data),
        _ => None,
    }
}

/// A kernel map.
#[derive(Debug)]
struct RawMap {
    fd: OwnedFd,
    key_len: usize,
    value_len: usize,
    /// What was written, where elements cannot be deleted.
    touched: Vec<u32>,
}

impl RawMap {
    fn open(ebpf: &Ebpf, name: &str) -> Result<Self> {
        let map = ebpf.map(name).with_context(|| format!("no map {name}"))?;
        let data = data(map).with_context(|| format!("{name} is {map:?}"))?;
        let info = data.info()?;
        Ok(Self {
            fd: data.fd().as_fd().try_clone_to_owned()?,
            key_len: info.key_size() as usize,
            value_len: info.value_size() as usize,
            touched: Vec::new(),
        })
    }

    fn set<K: Pod, V: Pod>(&self, key: &K, value: &V) -> Result<()> {
        let (key, value) = (bytemuck::bytes_of(key), bytemuck::bytes_of(value));
        sys::map_update(self.fd.as_fd(), key, value).context("writing an element")
    }

    /// Writes an element of an array, to be zeroed by `clear`.
    fn put<V: Pod>(&mut self, index: u32, value: &V) -> Result<()> {
        self.touched.push(index);
        self.set(&index, value)
    }

    fn keys(&self) -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let mut next = vec![0; self.key_len];
        while let Ok(true) =
            sys::map_next_key(self.fd.as_fd(), keys.last().map(Vec::as_slice), &mut next)
        {
            keys.push(next.clone());
        }
        keys
    }

    fn entries<K: Pod, V: Pod>(&self) -> Vec<(K, V)> {
        let mut entries = Vec::new();
        for key in self.keys() {
            let mut value = V::zeroed();
            let bytes = bytemuck::bytes_of_mut(&mut value);
            if let Ok(true) = sys::map_lookup(self.fd.as_fd(), &key, bytes) {
                entries.push((bytemuck::pod_read_unaligned(&key), value));
            }
        }
        entries
    }

    /// Those elements of an array that were put and are not zero.
    fn counted<V: Pod + PartialEq>(&self) -> BTreeMap<u32, V> {
        let mut counted = BTreeMap::new();
        for &index in &self.touched {
            let mut value = V::zeroed();
            let bytes = bytemuck::bytes_of_mut(&mut value);
            let found = sys::map_lookup(self.fd.as_fd(), &index.to_ne_bytes(), bytes);
            if matches!(found, Ok(true)) && value != V::zeroed() {
                counted.insert(index, value);
            }
        }
        counted
    }

    /// Deletes all elements of a hash or trie.
    fn empty(&self) -> Result<()> {
        for key in self.keys() {
            sys::map_delete(self.fd.as_fd(), &key).context("deleting an element")?;
        }
        Ok(())
    }

    /// Zeroes what was written into an array.
    fn zero(&mut self) -> Result<()> {
        let value = vec![0; self.value_len];
        for index in std::mem::take(&mut self.touched) {
            sys::map_update(self.fd.as_fd(), &index.to_ne_bytes(), &value)?;
        }
        Ok(())
    }
}

/// The maps of one family, and those that the families share.
#[derive(Debug)]
pub struct KernelTables {
    config: RawMap,
    monitors: RawMap,
    port_filter: RawMap,
    slots: RawMap,
    counters: RawMap,
    interfaces: RawMap,
    frontend_ids: RawMap,
    frontends: RawMap,
    backends: RawMap,
    node_addresses: RawMap,
    cluster_ips: RawMap,
    source_ranges: RawMap,
    handshakes: RawMap,
    flows: RawMap,
    fragments: RawMap,
    affinity: RawMap,
    answers: RawMap,
    new_flows: RawMap,
    frontend_counts: RawMap,
    backend_counts: RawMap,
}

impl KernelTables {
    /// The maps of a family, by their names in the object.
    pub fn open<F: CaseFamily>(ebpf: &Ebpf) -> Result<Self> {
        let shared = |name: &str| RawMap::open(ebpf, name);
        let family = |name: &str| RawMap::open(ebpf, &format!("{name}{}", F::VERSION));
        Ok(Self {
            config: shared("CONFIG")?,
            monitors: shared("MONITORS")?,
            port_filter: shared("PORT_FILTER")?,
            slots: shared("SLOTS")?,
            counters: shared("COUNTERS")?,
            interfaces: shared("INTERFACES")?,
            frontend_ids: family("FRONTEND_IDS")?,
            frontends: family("FRONTENDS")?,
            backends: family("BACKENDS")?,
            node_addresses: family("NODE_ADDRESSES")?,
            cluster_ips: family("CLUSTER_IPS")?,
            source_ranges: family("SOURCE_RANGES")?,
            handshakes: family("HANDSHAKES")?,
            flows: family("FLOWS")?,
            fragments: family("FRAGMENTS")?,
            affinity: family("AFFINITY")?,
            answers: shared("ANSWERS")?,
            new_flows: shared("NEW_FLOWS")?,
            frontend_counts: family("FRONTEND_COUNTS")?,
            backend_counts: family("BACKEND_COUNTS")?,
        })
    }

    /// Makes all maps as they are after loading.
    pub fn clear(&mut self) -> Result<()> {
        for map in [
            &self.interfaces,
            &self.frontend_ids,
            &self.node_addresses,
            &self.cluster_ips,
            &self.source_ranges,
            &self.handshakes,
            &self.flows,
            &self.fragments,
            &self.affinity,
        ] {
            map.empty()?;
        }
        for map in [
            &mut self.config,
            &mut self.monitors,
            &mut self.port_filter,
            &mut self.slots,
            &mut self.frontends,
            &mut self.backends,
            &mut self.frontend_counts,
            &mut self.backend_counts,
        ] {
            map.zero()?;
        }
        self.clear_counters()
    }

    /// Sets every counter to 0, and forgets what was done in this second.
    pub fn clear_counters(&self) -> Result<()> {
        let zeros = vec![0_u8; 8 * aya::util::nr_cpus().map_err(|(_, error)| error)?];
        for done in [&self.answers, &self.new_flows] {
            sys::map_update(done.fd.as_fd(), &0_u32.to_ne_bytes(), &zeros)?;
        }
        for counter in Counter::ALL {
            let key = (*counter as u32).to_ne_bytes();
            sys::map_update(self.counters.fd.as_fd(), &key, &zeros)?;
        }
        Ok(())
    }

    /// Writes the contents of `tables`.
    pub fn fill<F: CaseFamily>(&mut self, tables: &HostTables<F>) -> Result<()> {
        if let Some(config) = &tables.config {
            self.config.put(0, config)?;
        }
        if let Some(monitor) = &tables.monitor {
            self.monitors.put(0, monitor)?;
        }
        for (index, bits) in &tables.port_filter {
            self.port_filter.put(*index, bits)?;
        }
        for (index, element) in &tables.slots {
            self.slots.put(*index, element)?;
        }
        for (id, frontend) in &tables.frontends {
            self.frontends.put(*id, frontend)?;
            self.frontend_counts.put(*id, &FrontendCounts::default())?;
        }
        for (id, backend) in &tables.backends {
            self.backends.put(*id, backend)?;
            self.backend_counts.put(*id, &BackendCounts::default())?;
        }
        // Element 0 is for connections past every frontend.
        self.frontend_counts.put(0, &FrontendCounts::default())?;
        self.backend_counts.put(0, &BackendCounts::default())?;
        for (key, id) in &tables.frontend_ids {
            self.frontend_ids.set(key, id)?;
        }
        for (ifindex, interface) in &tables.interfaces {
            self.interfaces.set(ifindex, interface)?;
        }
        for (addr, flags) in &tables.node_addresses {
            self.node_addresses.set(addr, flags)?;
        }
        for ((prefix_len, addr), value) in &tables.cluster_ips {
            let key = ClusterIpKey {
                prefix_len: *prefix_len,
                addr: *addr,
            };
            self.cluster_ips.set(&key, value)?;
        }
        for (service_port, len, addr) in &tables.source_ranges {
            let key = SourceRangeKey {
                prefix_len: 32 + len,
                service_port: *service_port,
                addr: *addr,
            };
            self.source_ranges.set(&key, &1_u32)?;
        }
        self.fill_written(tables)
    }

    fn fill_written<F: CaseFamily>(&mut self, tables: &HostTables<F>) -> Result<()> {
        let written = tables.written.borrow();
        for (key, value) in &written.handshakes {
            self.handshakes.set(key, value)?;
        }
        for (key, value) in &written.flows {
            self.flows.set(key, value)?;
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        for (done, (second, count)) in [
            (&self.answers, written.answers),
            (&self.new_flows, written.new_flows),
        ] {
            let of_all = [second, count].repeat(cpus);
            let bytes = bytemuck::cast_slice(&of_all);
            sys::map_update(done.fd.as_fd(), &0_u32.to_ne_bytes(), bytes)?;
        }
        for (key, value) in &written.affinity {
            let key: AffinityKey<F::Addr> = bytemuck::pod_read_unaligned(key);
            self.affinity.set(&key, value)?;
        }
        for (key, value) in &written.fragments {
            let key: FragmentKey<F::Addr> = bytemuck::pod_read_unaligned(key);
            self.fragments.set(&key, value)?;
        }
        Ok(())
    }

    /// The flows that the programs know.
    pub fn flows<F: CaseFamily>(&self) -> HostTables<F> {
        let mut tables = HostTables::default();
        let written = tables.written.get_mut();
        written.handshakes = self.handshakes.entries().into_iter().collect::<Flows<F>>();
        written.flows = self.flows.entries().into_iter().collect::<Flows<F>>();
        let bindings = self
            .affinity
            .entries::<AffinityKey<F::Addr>, AffinityEntry>();
        let bytes = |(key, value)| (bytemuck::bytes_of(&key).to_vec(), value);
        written.affinity = bindings.into_iter().map(bytes).collect();
        written.frontend_counts = self.frontend_counts.counted();
        written.backend_counts = self.backend_counts.counted();
        tables
    }

    /// The counters that are not 0.
    pub fn counters(&self) -> Result<BTreeMap<Counter, u64>> {
        const { assert!(Counter::ALL.len() <= COUNTERS_LEN as usize) };
        let mut counters = BTreeMap::new();
        let mut values = vec![0_u64; aya::util::nr_cpus().map_err(|(_, error)| error)?];
        for counter in Counter::ALL {
            let key = (*counter as u32).to_ne_bytes();
            let bytes = bytemuck::cast_slice_mut(&mut values);
            sys::map_lookup(self.counters.fd.as_fd(), &key, bytes)?;
            let sum: u64 = values.iter().sum();
            if sum != 0 {
                counters.insert(*counter, sum);
            }
        }
        Ok(counters)
    }
}
