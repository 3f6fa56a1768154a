//! The audit: what the maps hold is compared with what was written into them. An entry that
//! somebody else has changed gets its value back in its place, so ids and generations stay; one
//! that nobody here has written is removed.
//!
//! It goes part by part, each of them small and true by itself, so that changes need not wait for
//! the whole.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use proxy_common::port_filter::PORT_FILTER_LEN;
use proxy_common::{Backend, BackendState, ClusterIpKey, Frontend, Word};

use super::{Family, Reconciler};
use crate::family::IpFamily;
use crate::maps::{Capacity, FamilyMaps, MapResult, Maps};
use crate::pipeline::actual::{ActualFrontend, SharedState};
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

/// Ids that one part looks at: milliseconds.
const PART_IDS: u32 = 1 << 15;

/// What is still to be looked at.
#[derive(Debug, Default)]
pub struct Round {
    /// The next one is the last.
    parts: Vec<Part>,
}

impl Round {
    /// True when everything was looked at.
    pub fn is_over(&self) -> bool {
        self.parts.is_empty()
    }
}

#[derive(Clone, Debug)]
enum Part {
    /// CONFIG and PORT_FILTER.
    Shared,
    V4(FamilyPart),
    V6(FamilyPart),
}

#[derive(Clone, Debug)]
enum FamilyPart {
    /// BACKENDS.
    Backends(Range<u32>),
    /// FRONTENDS, and the regions of SLOTS behind them.
    Frontends(Range<u32>),
    /// FRONTEND_IDS.
    FrontendIds,
    /// SOURCE_RANGES.
    Ranges,
    /// CLUSTER_IPS and NODE_ADDRESSES.
    Addresses,
}

/// The parts of a family whose maps have so much room.
fn family_parts(capacity: Capacity) -> Vec<FamilyPart> {
    let ranges = |limit: u32| {
        let starts = (1..limit).step_by(PART_IDS as usize);
        starts.map(move |start| start..limit.min(start.saturating_add(PART_IDS)))
    };
    let backends = ranges(capacity.backends).map(FamilyPart::Backends);
    let frontends = ranges(capacity.frontends).map(FamilyPart::Frontends);
    let whole = [
        FamilyPart::FrontendIds,
        FamilyPart::Ranges,
        FamilyPart::Addresses,
    ];
    backends.chain(frontends).chain(whole).collect()
}

impl Reconciler {
    /// Begins an audit.
    pub fn begin_audit(&self) -> Round {
        let mut parts = vec![Part::Shared];
        parts.extend(
            family_parts(self.v4.actual.capacity)
                .into_iter()
                .map(Part::V4),
        );
        parts.extend(
            family_parts(self.v6.actual.capacity)
                .into_iter()
                .map(Part::V6),
        );
        parts.reverse();
        Round { parts }
    }

    /// Compares the next part of the maps with what was written into it and repairs it; returns
    /// how many entries were wrong.
    pub fn audit_part<M: Maps>(&mut self, round: &mut Round, maps: &mut M, now: Instant) -> u64 {
        let mut findings = Findings::default();
        match round.parts.pop() {
            None => {}
            Some(Part::Shared) => audit_shared(&self.shared, maps, &mut findings),
            Some(Part::V4(part)) => self.v4.audit(part, maps, &mut findings),
            Some(Part::V6(part)) => self.v6.audit(part, maps, &mut findings),
        }
        if round.is_over() {
            // What was mapped to be read may go.
            self.has_rested = false;
        }
        if findings.drift > 0 || round.is_over() {
            self.reconcile(maps, now);
        }
        findings.drift
    }

    /// Audits everything at once.
    pub fn audit<M: Maps>(&mut self, maps: &mut M, now: Instant) -> u64 {
        let mut round = self.begin_audit();
        let mut drift = 0;
        while !round.is_over() {
            drift += self.audit_part(&mut round, maps, now);
        }
        drift
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
    fn audit<M: Maps + FamilyMaps<A>>(
        &mut self,
        part: FamilyPart,
        maps: &mut M,
        findings: &mut Findings,
    ) {
        match part {
            FamilyPart::Backends(ids) => self.audit_backends(ids, maps, findings),
            FamilyPart::Frontends(ids) => self.audit_frontends(ids, maps, findings),
            FamilyPart::FrontendIds => self.audit_frontend_ids(maps, findings),
            FamilyPart::Ranges => self.audit_ranges(maps, findings),
            FamilyPart::Addresses => self.audit_addresses(maps, findings),
        }
    }

    fn audit_backends<M: FamilyMaps<A>>(
        &self,
        ids: Range<u32>,
        maps: &mut M,
        findings: &mut Findings,
    ) {
        let mut written: Vec<Option<Backend<A>>> = vec![None; ids.len()];
        for port in self.actual.ports.values() {
            let backends = port.backends.iter();
            for (endpoint, backend) in backends.filter(|(_, backend)| ids.contains(&backend.id)) {
                let value = backend_value(*endpoint, backend, port.id);
                written[(backend.id - ids.start) as usize] = Some(value);
            }
        }
        for (id, written) in ids.zip(written) {
            let Some(found) = maps.backend(id) else {
                continue;
            };
            match written {
                Some(backend) if found == backend => {}
                Some(backend) => findings.repaired(maps.write_backend(id, &backend)),
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

    fn audit_frontends<M: Maps + FamilyMaps<A>>(
        &mut self,
        ids: Range<u32>,
        maps: &mut M,
        findings: &mut Findings,
    ) {
        let mut is_known = vec![false; ids.len()];
        let mut damaged = Vec::new();
        let all = self.actual.frontends.iter();
        for (key, written) in all.filter(|(_, written)| ids.contains(&written.id)) {
            is_known[(written.id - ids.start) as usize] = true;
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
        let unknown = ids.zip(is_known).filter(|(_, is_known)| !is_known);
        for (id, _) in unknown {
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
