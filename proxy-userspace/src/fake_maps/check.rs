//! What must hold of the maps after every single write.

use proxy_common::backend::flags;
use proxy_common::{BackendState, Frontend, RegionHeader, RegionTail, Side, Word, port_filter};

use super::{FakeFamily, FakeMaps};
use crate::family::{IpFamily, frontend_text};
use crate::maps::Maps;
use crate::pipeline::actual::members;

impl FakeMaps {
    /// Says what is wrong with what programs would read: a published frontend with a region that
    /// leads nowhere, or to backends that take no flow or are another service port's; what
    /// PORT_FILTER keeps packets of from; counts that are somebody else's.
    pub fn check(&self) -> Result<(), String> {
        self.check_family(&self.v4)?;
        self.check_family(&self.v6)
    }

    fn check_family<A: IpFamily>(&self, family: &FakeFamily<A>) -> Result<(), String> {
        for (frontend, start) in published(family) {
            let key = frontend_text(&frontend.key);
            let end = start + self.region_len(start);
            let content: Vec<u64> = (start..end)
                .map(|index| self.slot(index).unwrap_or_default())
                .collect();
            if start == 0 || end > self.capacity.slots {
                return Err(format!("{key}: region {start}..{end}"));
            }
            let (protocol, port) = (frontend.key.protocol, frontend.key.port.get());
            if !self.is_let_in(protocol, (Side::Destination, port), &frontend.key.addr) {
                return Err(format!("{key}: PORT_FILTER does not know it"));
            }
            let header = RegionHeader::unpack(content[0]);
            let tail = RegionTail::unpack(content[1]);
            for (index, id) in members(&content).enumerate() {
                let Some(backend) = family.backends.get(&id) else {
                    return Err(format!("{key}: backend {id} does not exist"));
                };
                let side = (Side::Source, backend.port.get());
                if !self.is_let_in(protocol, side, &backend.addr) {
                    return Err(format!("{key}: PORT_FILTER does not know backend {id}"));
                }
                let counted = family.backend_counts.get(&id);
                if counted.is_some_and(|counted| *counted != (backend.addr, backend.port)) {
                    return Err(format!("{key}: backend {id} has the counts of another one"));
                }
                let takes_flows =
                    [BackendState::Active, BackendState::Terminating].map(|state| state as u8);
                if !takes_flows.contains(&backend.state) {
                    return Err(format!("{key}: backend {id} in state {}", backend.state));
                }
                if tail.service_port != backend.service_port {
                    return Err(format!("{key}: backend {id} of another service port"));
                }
                let set = match index < header.cluster_count as usize {
                    true => flags::IN_CLUSTER,
                    false => flags::IN_LOCAL,
                };
                if tail.affinity_timeout_secs != 0 && backend.flags & set == 0 {
                    return Err(format!("{key}: backend {id} does not know its set"));
                }
            }
        }
        for (id, key) in &family.frontend_counts {
            let frontend = family.frontends.get(id).filter(|found| found.word != 0);
            if frontend.is_some_and(|frontend| frontend.key != *key) {
                let key = frontend_text(key);
                return Err(format!("frontend {id} has the counts of {key}"));
            }
        }
        for (key, id) in &family.frontend_ids {
            let frontend = family.frontends.get(id);
            if frontend.is_none_or(|frontend| frontend.key != *key || frontend.word == 0) {
                return Err(format!(
                    "{}: reachable, but not published",
                    frontend_text(key)
                ));
            }
        }
        let unknown = |addr: &&A| !self.has_bit(Some(port_filter::address(*addr)));
        match family.node_addresses.keys().find(unknown) {
            Some(addr) => Err(format!("PORT_FILTER does not know {}", addr.to_ip())),
            None => Ok(()),
        }
    }

    fn is_let_in<A: IpFamily>(&self, protocol: u8, (side, port): (Side, u16), addr: &A) -> bool {
        let index = port_filter::index(protocol, side, port);
        self.has_bit(index.map(|index| (index, port_filter::bit(port))))
            && self.has_bit(Some(port_filter::address(addr)))
    }

    fn has_bit(&self, place: Option<(u32, u64)>) -> bool {
        place.is_some_and(|(index, bit)| self.port_filter(index).unwrap_or_default() & bit != 0)
    }
}

/// Published frontends, and where their regions start.
fn published<A: IpFamily>(family: &FakeFamily<A>) -> impl Iterator<Item = (&Frontend<A>, u32)> {
    let published = family
        .frontends
        .values()
        .filter(|frontend| frontend.word != 0);
    published.map(|frontend| (frontend, Word::unpack(frontend.word).region))
}
