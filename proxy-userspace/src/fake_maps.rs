//! Maps in memory: for tests, and for `shunt explain`. Writes can be made to fail.

mod check;

use std::collections::BTreeMap;

use proxy_common::interface::Interface;
use proxy_common::{
    Addr4, Addr6, Backend, BackendCounts, BackendState, Be16, ClusterIpKey, Config, Frontend,
    FrontendCounts, FrontendKey, RegionHeader, SourceRangeKey, Word,
};

use crate::family::{IpFamily, Prefix};
use crate::maps::{Capacity, FamilyMaps, MapError, MapResult, Maps};

/// Which writes fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failures {
    /// None.
    Never,
    /// So many of a hundred, chosen by a sequence that the seed determines.
    Percent {
        /// Of a hundred.
        percent: u64,
        /// Any number.
        seed: u64,
    },
    /// All after so many writes: as if the agent were killed there.
    After(u64),
}

/// Maps in memory.
#[derive(Clone, Debug)]
pub struct FakeMaps {
    capacity: Capacity,
    failures: Failures,
    writes: u64,
    v4: FakeFamily<Addr4>,
    v6: FakeFamily<Addr6>,
    slots: BTreeMap<u32, u64>,
    /// Published regions: start and length.
    regions: BTreeMap<u32, u32>,
    port_filter: BTreeMap<u32, u64>,
    config: Option<Config>,
    interfaces: BTreeMap<u32, Interface>,
}

#[derive(Clone, Debug)]
struct FakeFamily<A: IpFamily> {
    frontend_ids: BTreeMap<FrontendKey<A>, u32>,
    frontends: BTreeMap<u32, Frontend<A>>,
    backends: BTreeMap<u32, Backend<A>>,
    node_addresses: BTreeMap<A, u32>,
    cluster_ips: BTreeMap<Prefix<A>, u32>,
    source_ranges: BTreeMap<(u32, Prefix<A>), ()>,
    /// Whose counts an element has, as if there was a connection as soon as it could be.
    frontend_counts: BTreeMap<u32, FrontendKey<A>>,
    backend_counts: BTreeMap<u32, (A, Be16)>,
}

impl<A: IpFamily> Default for FakeFamily<A> {
    fn default() -> Self {
        Self {
            frontend_ids: BTreeMap::new(),
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            node_addresses: BTreeMap::new(),
            cluster_ips: BTreeMap::new(),
            source_ranges: BTreeMap::new(),
            frontend_counts: BTreeMap::new(),
            backend_counts: BTreeMap::new(),
        }
    }
}

impl FakeMaps {
    /// Empty maps that take every write.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            failures: Failures::Never,
            writes: 0,
            v4: FakeFamily::default(),
            v6: FakeFamily::default(),
            slots: BTreeMap::new(),
            regions: BTreeMap::new(),
            port_filter: BTreeMap::new(),
            config: None,
            interfaces: BTreeMap::new(),
        }
    }

    /// From here on, writes fail like this.
    pub fn set_failures(&mut self, failures: Failures) {
        self.failures = failures;
    }

    /// Successful writes so far.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// INTERFACES.
    pub fn interfaces(&self) -> &BTreeMap<u32, Interface> {
        &self.interfaces
    }

    /// One write, or its failure.
    fn write(&mut self, map: &'static str) -> MapResult {
        let fails = match &mut self.failures {
            Failures::Never => false,
            Failures::Percent { percent, seed } => next(seed) % 100 < *percent,
            Failures::After(writes) => self.writes >= *writes,
        };
        if fails {
            let source = std::io::Error::other("fake failure");
            return Err(MapError::Write { map, source });
        }
        self.writes += 1;
        Ok(())
    }

    fn region_len(&self, start: u32) -> u32 {
        RegionHeader::unpack(self.slot(start).unwrap_or_default()).region_len()
    }

    /// True if a published region has any of these elements.
    fn is_published(&self, first: u32, len: u32) -> bool {
        let before = self.regions.range(..first + len).next_back();
        before.is_some_and(|(start, len)| start + len > first)
    }

    /// Keeps track of the published regions.
    fn note_word(&mut self, old: u64, word: u64) {
        self.regions.remove(&Word::unpack(old).region);
        if word != 0 {
            let start = Word::unpack(word).region;
            self.regions.insert(start, self.region_len(start));
        }
    }
}

/// The next number of a sequence (xorshift).
fn next(seed: &mut u64) -> u64 {
    let mut value = *seed | 1;
    value ^= value << 13;
    value ^= value >> 7;
    value ^= value << 17;
    *seed = value;
    value >> 11
}

/// Inserts where there is room.
fn insert<K: Ord, V>(
    map: &mut BTreeMap<K, V>,
    (key, value): (K, V),
    name: &'static str,
    limit: u32,
) -> MapResult {
    if map.len() >= limit as usize && !map.contains_key(&key) {
        return Err(MapError::Full { map: name, limit });
    }
    map.insert(key, value);
    Ok(())
}

macro_rules! family {
    ($addr:ident, $field:ident) => {
        impl FamilyMaps<$addr> for FakeMaps {
            fn insert_frontend_id(&mut self, key: &FrontendKey<$addr>, id: u32) -> MapResult {
                self.write("FRONTEND_IDS")?;
                let limit = self.capacity.frontends;
                insert(
                    &mut self.$field.frontend_ids,
                    (*key, id),
                    "FRONTEND_IDS",
                    limit,
                )
            }

            fn remove_frontend_id(&mut self, key: &FrontendKey<$addr>) -> MapResult {
                self.write("FRONTEND_IDS")?;
                self.$field.frontend_ids.remove(key);
                Ok(())
            }

            fn write_frontend(&mut self, id: u32, frontend: &Frontend<$addr>) -> MapResult {
                self.write("FRONTENDS")?;
                assert!(id > 0 && id < self.capacity.frontends, "frontend id {id}");
                assert_eq!(frontend.word, 0, "published by a plain store");
                self.$field.frontends.insert(id, *frontend);
                Ok(())
            }

            fn publish(&mut self, id: u32, word: u64) -> MapResult {
                self.write("FRONTENDS")?;
                let frontend = self.$field.frontends.get_mut(&id);
                let frontend = frontend.expect("written before");
                let (key, old) = (frontend.key, std::mem::replace(&mut frontend.word, word));
                if word != 0 {
                    self.$field.frontend_counts.entry(id).or_insert(key);
                }
                self.note_word(old, word);
                Ok(())
            }

            fn write_backend(&mut self, id: u32, backend: &Backend<$addr>) -> MapResult {
                self.write("BACKENDS")?;
                assert!(id > 0 && id < self.capacity.backends, "backend id {id}");
                if backend.state != BackendState::Free as u8 {
                    let endpoint = (backend.addr, backend.port);
                    self.$field.backend_counts.entry(id).or_insert(endpoint);
                }
                self.$field.backends.insert(id, *backend);
                Ok(())
            }

            fn insert_node_address(&mut self, addr: &$addr, flags: u32) -> MapResult {
                self.write("NODE_ADDRESSES")?;
                self.$field.node_addresses.insert(*addr, flags);
                Ok(())
            }

            fn remove_node_address(&mut self, addr: &$addr) -> MapResult {
                self.write("NODE_ADDRESSES")?;
                self.$field.node_addresses.remove(addr);
                Ok(())
            }

            fn insert_cluster_ip(&mut self, key: &ClusterIpKey<$addr>, value: u32) -> MapResult {
                self.write("CLUSTER_IPS")?;
                let prefix = Prefix {
                    addr: key.addr,
                    len: key.prefix_len,
                };
                self.$field.cluster_ips.insert(prefix, value);
                Ok(())
            }

            fn remove_cluster_ip(&mut self, key: &ClusterIpKey<$addr>) -> MapResult {
                self.write("CLUSTER_IPS")?;
                let prefix = Prefix {
                    addr: key.addr,
                    len: key.prefix_len,
                };
                self.$field.cluster_ips.remove(&prefix);
                Ok(())
            }

            fn insert_source_range(&mut self, key: &SourceRangeKey<$addr>) -> MapResult {
                self.write("SOURCE_RANGES")?;
                let range = Prefix {
                    addr: key.addr,
                    len: key.prefix_len - 32,
                };
                self.$field
                    .source_ranges
                    .insert((key.service_port, range), ());
                Ok(())
            }

            fn remove_source_range(&mut self, key: &SourceRangeKey<$addr>) -> MapResult {
                self.write("SOURCE_RANGES")?;
                let range = Prefix {
                    addr: key.addr,
                    len: key.prefix_len - 32,
                };
                self.$field.source_ranges.remove(&(key.service_port, range));
                Ok(())
            }

            fn frontend_ids(&self) -> Vec<(FrontendKey<$addr>, u32)> {
                self.$field
                    .frontend_ids
                    .iter()
                    .map(|(key, id)| (*key, *id))
                    .collect()
            }

            fn frontend(&self, id: u32) -> Option<Frontend<$addr>> {
                self.$field.frontends.get(&id).copied()
            }

            fn backend(&self, id: u32) -> Option<Backend<$addr>> {
                self.$field.backends.get(&id).copied()
            }

            fn node_addresses(&self) -> Vec<($addr, u32)> {
                self.$field
                    .node_addresses
                    .iter()
                    .map(|(addr, flags)| (*addr, *flags))
                    .collect()
            }

            fn cluster_ips(&self) -> Vec<(ClusterIpKey<$addr>, u32)> {
                let all = self.$field.cluster_ips.iter();
                all.map(|(prefix, value)| {
                    (
                        ClusterIpKey {
                            prefix_len: prefix.len,
                            addr: prefix.addr,
                        },
                        *value,
                    )
                })
                .collect()
            }

            fn source_ranges(&self) -> Vec<SourceRangeKey<$addr>> {
                let all = self.$field.source_ranges.keys();
                all.map(|(service_port, range)| SourceRangeKey {
                    prefix_len: 32 + range.len,
                    service_port: *service_port,
                    addr: range.addr,
                })
                .collect()
            }

            fn forget_frontend_counts(&mut self, id: u32) {
                self.$field.frontend_counts.remove(&id);
            }

            fn forget_backend_counts(&mut self, id: u32) {
                self.$field.backend_counts.remove(&id);
            }

            fn frontend_counts(&self, _id: u32) -> FrontendCounts {
                FrontendCounts::default()
            }

            fn backend_counts(&self, _id: u32) -> BackendCounts {
                BackendCounts::default()
            }
        }
    };
}

family!(Addr4, v4);
family!(Addr6, v6);

impl Maps for FakeMaps {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn write_slots(&mut self, first: u32, elements: &[u64]) -> MapResult {
        self.write("SLOTS")?;
        let len = u32::try_from(elements.len()).unwrap_or(u32::MAX);
        assert!(
            first > 0 && first + len <= self.capacity.slots,
            "slots {first} + {len}"
        );
        assert!(
            !self.is_published(first, len),
            "slots {first} + {len} are published"
        );
        self.slots.extend((first..).zip(elements.iter().copied()));
        Ok(())
    }

    fn slot(&self, index: u32) -> Option<u64> {
        (index < self.capacity.slots).then(|| self.slots.get(&index).copied().unwrap_or_default())
    }

    fn write_port_filter(&mut self, index: u32, bits: u64) -> MapResult {
        self.write("PORT_FILTER")?;
        self.port_filter.insert(index, bits);
        Ok(())
    }

    fn port_filter(&self, index: u32) -> Option<u64> {
        self.port_filter.get(&index).copied()
    }

    fn write_config(&mut self, config: &Config) -> MapResult {
        self.write("CONFIG")?;
        self.config = Some(*config);
        Ok(())
    }

    fn config(&self) -> Option<Config> {
        self.config
    }

    fn insert_interface(&mut self, ifindex: u32, interface: &Interface) -> MapResult {
        self.write("INTERFACES")?;
        self.interfaces.insert(ifindex, *interface);
        Ok(())
    }

    fn remove_interface(&mut self, ifindex: u32) -> MapResult {
        self.write("INTERFACES")?;
        self.interfaces.remove(&ifindex);
        Ok(())
    }
}
