//! The kernel's maps behind the trait [`Maps`].

use std::os::fd::{AsFd as _, OwnedFd};

use proxy_common::interface::Interface;
use proxy_common::{
    Addr4, Addr6, Address, Backend, BackendCounts, ClusterIpKey, Config, Frontend, FrontendCounts,
    FrontendKey, SourceRangeKey,
};

use super::catalog::{FamilyNames, NAMES4, NAMES6};
use super::containers::{KernelArray, KernelHash};
use super::pin::{PinError, Pins};
use super::sys;
use super::writes::WriteCounter;
use crate::maps::{Capacity, FamilyMaps, MapResult, Maps};

/// The maps of one family.
#[derive(Debug)]
struct KernelFamily<A: Address> {
    frontend_ids: KernelHash<FrontendKey<A>, u32>,
    frontends: KernelArray<Frontend<A>>,
    backends: KernelArray<Backend<A>>,
    node_addresses: KernelHash<A, u32>,
    cluster_ips: KernelHash<ClusterIpKey<A>, u32>,
    source_ranges: KernelHash<SourceRangeKey<A>, u32>,
    frontend_counts: KernelArray<FrontendCounts>,
    backend_counts: KernelArray<BackendCounts>,
}

impl<A: Address> KernelFamily<A> {
    fn open(pins: &Pins, names: &FamilyNames) -> Result<Self, PinError> {
        Ok(Self {
            frontend_ids: KernelHash::open(pins, names.frontend_ids)?,
            frontends: KernelArray::open(pins, names.frontends)?,
            backends: KernelArray::open(pins, names.backends)?,
            node_addresses: KernelHash::open(pins, names.node_addresses)?,
            cluster_ips: KernelHash::open(pins, names.cluster_ips)?,
            source_ranges: KernelHash::open(pins, names.source_ranges)?,
            frontend_counts: KernelArray::open(pins, names.frontend_counts)?,
            backend_counts: KernelArray::open(pins, names.backend_counts)?,
        })
    }

    fn rest(&mut self) {
        self.frontends.elements.unmap();
        self.backends.elements.unmap();
        self.frontend_counts.elements.unmap();
        self.backend_counts.elements.unmap();
    }
}

/// All pinned maps that userspace reads and writes.
#[derive(Debug)]
pub struct KernelMaps {
    v4: KernelFamily<Addr4>,
    v6: KernelFamily<Addr6>,
    slots: KernelArray<u64>,
    port_filter: KernelArray<u64>,
    config: KernelArray<Config>,
    interfaces: KernelHash<u32, Interface>,
    counters: OwnedFd,
    writes: WriteCounter,
}

impl KernelMaps {
    /// Opens all maps by their pins, and checks that they have the sizes of this ABI.
    pub fn open(pins: &Pins) -> Result<Self, PinError> {
        Ok(Self {
            v4: KernelFamily::open(pins, &NAMES4)?,
            v6: KernelFamily::open(pins, &NAMES6)?,
            slots: KernelArray::open(pins, "SLOTS")?,
            port_filter: KernelArray::open(pins, "PORT_FILTER")?,
            config: KernelArray::open(pins, "CONFIG")?,
            interfaces: KernelHash::open(pins, "INTERFACES")?,
            counters: pins.map("COUNTERS")?.0,
            writes: WriteCounter::default(),
        })
    }

    /// Counts every write through this value, one element of an array or one entry of a hash each.
    pub fn writes(&mut self) -> &mut WriteCounter {
        &mut self.writes
    }

    /// Writes so far.
    pub fn writes_done(&self) -> u64 {
        self.writes.done()
    }

    fn wrote(&mut self, result: MapResult) -> MapResult {
        if result.is_ok() {
            self.writes.count();
        }
        result
    }

    /// One entry of INTERFACES.
    pub fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.interfaces.get(&ifindex)
    }

    /// All of INTERFACES, in any order.
    pub fn interfaces(&self) -> Vec<(u32, Interface)> {
        self.interfaces.entries()
    }

    /// One counter, summed over the CPUs.
    pub fn counter(&self, index: u32) -> u64 {
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        let mut values = vec![0_u64; cpus];
        let key = index.to_ne_bytes();
        let bytes = bytemuck::cast_slice_mut(&mut values);
        match sys::map_lookup(self.counters.as_fd(), &key, bytes) {
            Ok(true) => values.iter().sum(),
            _ => 0,
        }
    }
}

/// Selects the maps of a family by type.
trait Select<A: Address> {
    fn family(&self) -> &KernelFamily<A>;
    fn family_mut(&mut self) -> &mut KernelFamily<A>;
}

impl Select<Addr4> for KernelMaps {
    fn family(&self) -> &KernelFamily<Addr4> {
        &self.v4
    }
    fn family_mut(&mut self) -> &mut KernelFamily<Addr4> {
        &mut self.v4
    }
}

impl Select<Addr6> for KernelMaps {
    fn family(&self) -> &KernelFamily<Addr6> {
        &self.v6
    }
    fn family_mut(&mut self) -> &mut KernelFamily<Addr6> {
        &mut self.v6
    }
}

impl<A: Address> FamilyMaps<A> for KernelMaps
where
    Self: Select<A>,
{
    fn insert_frontend_id(&mut self, key: &FrontendKey<A>, id: u32) -> MapResult {
        let result = self.family_mut().frontend_ids.insert(key, &id);
        self.wrote(result)
    }
    fn remove_frontend_id(&mut self, key: &FrontendKey<A>) -> MapResult {
        let result = self.family_mut().frontend_ids.remove(key);
        self.wrote(result)
    }
    fn write_frontend(&mut self, id: u32, frontend: &Frontend<A>) -> MapResult {
        let result = self.family_mut().frontends.write(id, frontend);
        self.wrote(result)
    }
    fn publish(&mut self, id: u32, word: u64) -> MapResult {
        let result = self.family_mut().frontends.publish(id, word);
        self.wrote(result)
    }
    fn write_backend(&mut self, id: u32, backend: &Backend<A>) -> MapResult {
        let result = self.family_mut().backends.write(id, backend);
        self.wrote(result)
    }
    fn insert_node_address(&mut self, addr: &A, flags: u32) -> MapResult {
        let result = self.family_mut().node_addresses.insert(addr, &flags);
        self.wrote(result)
    }
    fn remove_node_address(&mut self, addr: &A) -> MapResult {
        let result = self.family_mut().node_addresses.remove(addr);
        self.wrote(result)
    }
    fn insert_cluster_ip(&mut self, key: &ClusterIpKey<A>, value: u32) -> MapResult {
        let result = self.family_mut().cluster_ips.insert(key, &value);
        self.wrote(result)
    }
    fn remove_cluster_ip(&mut self, key: &ClusterIpKey<A>) -> MapResult {
        let result = self.family_mut().cluster_ips.remove(key);
        self.wrote(result)
    }
    fn insert_source_range(&mut self, key: &SourceRangeKey<A>) -> MapResult {
        let result = self.family_mut().source_ranges.insert(key, &1);
        self.wrote(result)
    }
    fn remove_source_range(&mut self, key: &SourceRangeKey<A>) -> MapResult {
        let result = self.family_mut().source_ranges.remove(key);
        self.wrote(result)
    }
    fn frontend_ids(&self) -> Vec<(FrontendKey<A>, u32)> {
        self.family().frontend_ids.entries()
    }
    fn frontend(&self, id: u32) -> Option<Frontend<A>> {
        self.family().frontends.elements.read(id)
    }
    fn backend(&self, id: u32) -> Option<Backend<A>> {
        self.family().backends.elements.read(id)
    }
    fn node_addresses(&self) -> Vec<(A, u32)> {
        self.family().node_addresses.entries()
    }
    fn cluster_ips(&self) -> Vec<(ClusterIpKey<A>, u32)> {
        self.family().cluster_ips.entries()
    }
    fn source_ranges(&self) -> Vec<SourceRangeKey<A>> {
        self.family().source_ranges.keys()
    }
    fn forget_frontend_counts(&mut self, id: u32) {
        self.family_mut().frontend_counts.zero(id);
    }
    fn forget_backend_counts(&mut self, id: u32) {
        self.family_mut().backend_counts.zero(id);
    }
    fn frontend_counts(&self, id: u32) -> FrontendCounts {
        let counts = self.family().frontend_counts.read(id);
        counts.unwrap_or_default()
    }
    fn backend_counts(&self, id: u32) -> BackendCounts {
        let counts = self.family().backend_counts.read(id);
        counts.unwrap_or_default()
    }
}

impl Maps for KernelMaps {
    fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.v4.frontends.elements.len(),
            backends: self.v4.backends.elements.len(),
            slots: self.slots.elements.len(),
        }
    }
    fn write_slots(&mut self, first: u32, elements: &[u64]) -> MapResult {
        for (index, element) in (first..).zip(elements) {
            let result = self.slots.write(index, element);
            self.wrote(result)?;
        }
        Ok(())
    }
    fn slot(&self, index: u32) -> Option<u64> {
        self.slots.elements.read(index)
    }
    fn write_port_filter(&mut self, index: u32, bits: u64) -> MapResult {
        let result = self.port_filter.publish(index, bits);
        self.wrote(result)
    }
    fn port_filter(&self, index: u32) -> Option<u64> {
        self.port_filter.elements.read(index)
    }
    fn write_config(&mut self, config: &Config) -> MapResult {
        let result = self.config.write(0, config);
        self.wrote(result)
    }
    fn config(&self) -> Option<Config> {
        self.config.elements.read(0)
    }
    fn insert_interface(&mut self, ifindex: u32, interface: &Interface) -> MapResult {
        let result = self.interfaces.insert(&ifindex, interface);
        self.wrote(result)
    }
    fn remove_interface(&mut self, ifindex: u32) -> MapResult {
        let result = self.interfaces.remove(&ifindex);
        self.wrote(result)
    }
    fn rest(&mut self) {
        self.v4.rest();
        self.v6.rest();
        self.slots.elements.unmap();
    }
}
