//! The audit: what the maps hold is compared with what was written into them. An entry that
//! somebody else has changed gets its value back in its place, so ids and generations stay; one
//! that nobody here has written is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use proxy_common::port_filter::PORT_FILTER_LEN;
use proxy_common::{Backend, BackendState, ClusterIpKey, Frontend, Word};

use super::{Family, Reconciler};
use crate::family::IpFamily;
use crate::maps::{FamilyMaps, MapResult, Maps};
use crate::pipeline::actual::{ActualFrontend, ActualPort, SharedState};
use crate::pipeline::apply::{backend_value, range_key};
use crate::pipeline::desired::ServicePortName;

/// What was found wrong, and what could not be put right.
#[derive(Debug, Default)]
struct Findings {
    drift: u64,
}

impl Findings {
    fn repaired(&mut self, result: MapResult) {
        self.drift += 1;
        if let Err(error) = result {
            // Found again by the next audit.
            tracing::error!(%error, "not repaired");
        }
    }
}

impl Reconciler {
    /// Compares the maps with what was written into them and repairs them; returns how many
    /// entries were wrong.
    pub fn audit<M: Maps>(&mut self, maps: &mut M, now: Instant) -> u64 {
        let mut findings = Findings::default();
        audit_shared(&self.shared, maps, &mut findings);
        self.v4.audit(maps, &mut findings);
        self.v6.audit(maps, &mut findings);
        self.has_rested = false;
        self.reconcile(maps, now);
        findings.drift
    }
}

fn audit_shared<M: Maps>(shared: &SharedState, maps: &mut M, findings: &mut Findings) {
    if let Some(config) = &shared.config
        && maps.config() != Some(*config)
    {
        findings.repaired(maps.write_config(config));
    }
    for index in 0..PORT_FILTER_LEN {
        let written = shared.port_filter[index as usize];
        if maps.port_filter(index).unwrap_or_default() != written {
            findings.repaired(maps.write_port_filter(index, written));
        }
    }
}

impl<A: IpFamily> Family<A> {
    fn audit<M: Maps + FamilyMaps<A>>(&mut self, maps: &mut M, findings: &mut Findings) {
        self.audit_backends(maps, findings);
        self.audit_frontends(maps, findings);
        self.audit_frontend_ids(maps, findings);
        self.audit_ranges(maps, findings);
        self.audit_addresses(maps, findings);
    }

    fn audit_backends<M: FamilyMaps<A>>(&self, maps: &mut M, findings: &mut Findings) {
        let ports = self.actual.ports.values();
        let written: BTreeMap<u32, Backend<A>> =
            ports.flat_map(|port| port_backends(port)).collect();
        for id in 1..self.actual.capacity.backends {
            let Some(found) = maps.backend(id) else {
                continue;
            };
            match written.get(&id) {
                Some(backend) if found == *backend => {}
                Some(backend) => findings.repaired(maps.write_backend(id, backend)),
                None if found.state == BackendState::Free as u8 => {}
                None => {
                    let generation = self.actual.generations.get(&id).copied();
                    let free = Backend {
                        generation: generation.unwrap_or(found.generation),
                        ..bytemuck::Zeroable::zeroed()
                    };
                    findings.repaired(maps.write_backend(id, &free));
                }
            }
        }
    }

    fn audit_frontends<M: Maps + FamilyMaps<A>>(&mut self, maps: &mut M, findings: &mut Findings) {
        let mut known = BTreeSet::new();
        let mut damaged = Vec::new();
        for (key, written) in &self.actual.frontends {
            known.insert(written.id);
            let word = word(written);
            let Some(found) = FamilyMaps::<A>::frontend(maps, written.id) else {
                continue;
            };
            if found.key != *key {
                let element = Frontend {
                    word: 0,
                    key: *key,
                    pad: Default::default(),
                };
                let result = FamilyMaps::<A>::write_frontend(maps, written.id, &element);
                let publish = |()| FamilyMaps::<A>::publish(maps, written.id, word);
                findings.repaired(result.and_then(publish));
            } else if found.word != word {
                findings.repaired(FamilyMaps::<A>::publish(maps, written.id, word));
            }
            if let Some(content) = differing_content(written, maps) {
                damaged.push((*key, content));
            }
        }
        for id in (1..self.actual.capacity.frontends).filter(|id| !known.contains(id)) {
            if FamilyMaps::<A>::frontend(maps, id).is_some_and(|found| found.word != 0) {
                findings.repaired(FamilyMaps::<A>::publish(maps, id, 0));
            }
        }
        // Programs read a published region: it is not mended, but replaced as a whole.
        for (key, content) in damaged {
            findings.drift += 1;
            let Some(frontend) = self.actual.frontends.get_mut(&key) else {
                continue;
            };
            let written = std::mem::replace(&mut frontend.content, content.clone());
            let owner: Arc<ServicePortName> = frontend.owner.clone();
            self.actual.dereference(&written);
            self.actual.reference(&content);
            self.pending.ports.insert(owner);
        }
    }

    fn audit_frontend_ids<M: FamilyMaps<A>>(&self, maps: &mut M, findings: &mut Findings) {
        let reachable = self.actual.frontends.iter();
        let mut missing: BTreeMap<_, u32> = reachable
            .filter(|(_, written)| written.is_reachable)
            .map(|(key, written)| (*key, written.id))
            .collect();
        for (key, id) in maps.frontend_ids() {
            match missing.get(&key) {
                Some(written) if *written == id => drop(missing.remove(&key)),
                // It gets its value below.
                Some(_) => {}
                None => findings.repaired(maps.remove_frontend_id(&key)),
            }
        }
        for (key, id) in missing {
            findings.repaired(maps.insert_frontend_id(&key, id));
        }
    }

    fn audit_ranges<M: FamilyMaps<A>>(&self, maps: &mut M, findings: &mut Findings) {
        let ports = self.actual.ports.values();
        let written = ports.flat_map(|port| {
            let ranges = port.source_ranges.iter();
            ranges.map(|range| ((port.id, *range), range_key(port.id, *range)))
        });
        let mut missing: BTreeMap<_, _> = written.collect();
        for key in FamilyMaps::<A>::source_ranges(maps) {
            let range = crate::family::Prefix {
                addr: key.addr,
                len: key.prefix_len.saturating_sub(32),
            };
            if missing.remove(&(key.service_port, range)).is_none() {
                findings.repaired(FamilyMaps::<A>::remove_source_range(maps, &key));
            }
        }
        for key in missing.values() {
            findings.repaired(FamilyMaps::<A>::insert_source_range(maps, key));
        }
    }

    /// CLUSTER_IPS and NODE_ADDRESSES.
    fn audit_addresses<M: FamilyMaps<A>>(&self, maps: &mut M, findings: &mut Findings) {
        let mut missing = self.actual.prefixes.clone();
        for (key, value) in FamilyMaps::<A>::cluster_ips(maps) {
            let prefix = crate::family::Prefix {
                addr: key.addr,
                len: key.prefix_len,
            };
            match missing.get(&prefix) {
                Some(written) if *written == value => drop(missing.remove(&prefix)),
                Some(_) => {}
                None => findings.repaired(FamilyMaps::<A>::remove_cluster_ip(maps, &key)),
            }
        }
        for (prefix, value) in missing {
            let key = ClusterIpKey {
                prefix_len: prefix.len,
                addr: prefix.addr,
            };
            findings.repaired(FamilyMaps::<A>::insert_cluster_ip(maps, &key, value));
        }
        let mut missing = self.actual.node_addresses.clone();
        for (addr, flags) in FamilyMaps::<A>::node_addresses(maps) {
            match missing.get(&addr) {
                Some(written) if *written == flags => drop(missing.remove(&addr)),
                Some(_) => {}
                None => findings.repaired(FamilyMaps::<A>::remove_node_address(maps, &addr)),
            }
        }
        for (addr, flags) in missing {
            findings.repaired(FamilyMaps::<A>::insert_node_address(maps, &addr, flags));
        }
    }
}

fn port_backends<A: IpFamily>(port: &ActualPort<A>) -> impl Iterator<Item = (u32, Backend<A>)> {
    let backends = port.backends.iter();
    backends.map(|(endpoint, backend)| (backend.id, backend_value(*endpoint, backend, port.id)))
}

/// The word that was published; 0 where nothing usable is.
fn word(frontend: &ActualFrontend) -> u64 {
    frontend.region.map_or(0, |region| {
        Word {
            region: region.start,
            generation: frontend.generation,
        }
        .pack()
    })
}

/// What the region of a frontend holds instead of what was written.
fn differing_content(frontend: &ActualFrontend, maps: &impl Maps) -> Option<Box<[u64]>> {
    let region = frontend.region?;
    let slots = (region.start..).take(frontend.content.len());
    let found: Box<[u64]> = slots
        .map(|index| maps.slot(index).unwrap_or_default())
        .collect();
    (found != frontend.content).then_some(found)
}
