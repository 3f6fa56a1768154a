//! Stage 4: the difference between DesiredState and ActualState, as an ordered list of operations.
//! Pure. Make before break: what is pointed to is made first, then published, and what nothing
//! points to is removed last, so every prefix of a Plan is safe.

mod publication;

pub use publication::Publication;

use std::collections::BTreeMap;
use std::sync::Arc;

use proxy_common::node::cluster_ip;
use proxy_common::port_filter::{address, bit, index};
use proxy_common::{BackendState, FrontendKey, Side};

use crate::family::{Endpoint, IpFamily, Prefix};
use crate::pipeline::actual::{ActualBackend, ActualPort, ActualState};
use crate::pipeline::desired::{
    DesiredBackend, DesiredFrontend, DesiredPort, DesiredState, ServicePortName, TouchedPorts,
};

/// One operation. Ids and regions are allocated when it is performed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op<A: IpFamily> {
    /// Sets bits in one element of PORT_FILTER.
    SetPortFilter {
        /// Element.
        index: u32,
        /// Bits.
        bits: u64,
    },
    /// Checks that what a service port needs in addition fits, before any of it is written.
    Claim {
        /// The service port.
        name: Arc<ServicePortName>,
        /// Backends to come.
        backends: usize,
        /// Frontends to come.
        frontends: usize,
    },
    /// Makes a backend, or changes it in place.
    PutBackend(BackendOp<A>),
    /// Lets a source reach a service port.
    PutSourceRange(RangeOp<A>),
    /// Writes a region and points a frontend at it; a frontend that is not there is made.
    Publish(Publication<A>),
    /// Puts a published frontend into FRONTEND_IDS.
    Reach {
        /// The service port.
        name: Arc<ServicePortName>,
        /// The frontend.
        key: FrontendKey<A>,
    },
    /// Takes a frontend out of FRONTEND_IDS and unpublishes it.
    RemoveFrontend {
        /// The service port.
        name: Arc<ServicePortName>,
        /// The frontend.
        key: FrontendKey<A>,
    },
    /// Takes a backend out of sets; quarantines one that no published region holds.
    DemoteBackend(BackendOp<A>),
    /// Moves the generation of a backend that no published region holds, and frees it (S-124).
    FreeBackend {
        /// The service port.
        name: Arc<ServicePortName>,
        /// Its endpoint.
        endpoint: Endpoint<A>,
    },
    /// A source has no access any more.
    RemoveSourceRange(RangeOp<A>),
    /// Forgets a service port that has nothing in any map.
    Forget(Arc<ServicePortName>),
    /// Writes a prefix into CLUSTER_IPS.
    PutPrefix(Prefix<A>, u32),
    /// Takes a prefix out of CLUSTER_IPS.
    RemovePrefix(Prefix<A>),
}

/// A backend as it should be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendOp<A: IpFamily> {
    /// The service port.
    pub name: Arc<ServicePortName>,
    /// Its endpoint.
    pub endpoint: Endpoint<A>,
    /// What to write.
    pub backend: DesiredBackend,
}

/// An entry of SOURCE_RANGES.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeOp<A: IpFamily> {
    /// The service port.
    pub name: Arc<ServicePortName>,
    /// The sources.
    pub range: Prefix<A>,
}

/// Operations in order.
#[derive(Debug)]
pub struct Plan<A: IpFamily> {
    /// To be performed first to last.
    pub ops: Vec<Op<A>>,
}

/// Compares what was touched.
pub fn diff<A: IpFamily>(
    touched: &TouchedPorts<A>,
    desired: &DesiredState<A>,
    actual: &ActualState<A>,
    port_filter: &[u64],
) -> Plan<A> {
    let mut ops = Vec::new();
    let mut bits = Bits {
        written: port_filter,
        missing: BTreeMap::new(),
    };
    for prefix in &touched.prefixes {
        put_prefix(*prefix, cluster_ip::ACTIVE, desired, actual, &mut ops);
    }
    for name in &touched.ports {
        if let Some(port) = desired.ports().get(name) {
            Making {
                name,
                port,
                desired,
                actual,
            }
            .make(&mut ops, &mut bits);
        }
    }
    for name in &touched.ports {
        if let Some(port) = actual.ports.get(name) {
            remove(name, port, desired, &mut ops);
        }
    }
    for prefix in &touched.prefixes {
        put_prefix(*prefix, cluster_ip::UNALLOCATED, desired, actual, &mut ops);
        put_prefix(*prefix, cluster_ip::FRONTEND, desired, actual, &mut ops);
        if desired.prefix(prefix).is_none() && actual.prefixes.contains_key(prefix) {
            ops.push(Op::RemovePrefix(*prefix));
        }
    }
    let filter = bits
        .missing
        .into_iter()
        .map(|(index, bits)| Op::SetPortFilter { index, bits });
    Plan {
        ops: filter.chain(ops).collect(),
    }
}

/// Bits of PORT_FILTER that are needed and not written.
struct Bits<'a> {
    written: &'a [u64],
    missing: BTreeMap<u32, u64>,
}

impl Bits<'_> {
    fn need(&mut self, protocol: u8, side: Side, port: u16) {
        if let Some(index) = index(protocol, side, port) {
            self.need_bit((index, bit(port)));
        }
    }

    fn need_address<A: IpFamily>(&mut self, addr: &A) {
        self.need_bit(address(addr));
    }

    fn need_bit(&mut self, (index, bit): (u32, u64)) {
        let written = self.written.get(index as usize);
        if written.is_some_and(|word| word & bit == 0) {
            *self.missing.entry(index).or_default() |= bit;
        }
    }
}

/// What is made for one service port.
struct Making<'a, A: IpFamily> {
    name: &'a Arc<ServicePortName>,
    port: &'a DesiredPort<A>,
    desired: &'a DesiredState<A>,
    actual: &'a ActualState<A>,
}

impl<A: IpFamily> Making<'_, A> {
    fn make(&self, ops: &mut Vec<Op<A>>, bits: &mut Bits<'_>) {
        let known = self.actual.ports.get(self.name).map(|port| &**port);
        let owned: Vec<_> = self
            .port
            .frontends
            .iter()
            .filter(|frontend| self.desired.owner(&frontend.key) == Some(self.name))
            .collect();
        self.claim(known, &owned, ops);
        for (endpoint, backend) in self.port.backends.iter() {
            bits.need(self.name.protocol, Side::Source, endpoint.port);
            bits.need_address(&endpoint.addr);
            let written = known.and_then(|known| known.backends.get(endpoint));
            let backend = before_publication(written, backend);
            if written.map(ActualBackend::desired) != Some(backend) {
                let (name, endpoint) = (self.name.clone(), *endpoint);
                ops.push(Op::PutBackend(BackendOp {
                    name,
                    endpoint,
                    backend,
                }));
            }
        }
        for range in &self.port.source_ranges {
            if known.is_none_or(|known| !known.source_ranges.contains(range)) {
                let (name, range) = (self.name.clone(), *range);
                ops.push(Op::PutSourceRange(RangeOp { name, range }));
            }
        }
        for frontend in owned {
            bits.need(
                self.name.protocol,
                Side::Destination,
                frontend.key.port.get(),
            );
            bits.need_address(&frontend.key.addr);
            ops.extend(self.publish(known, frontend));
        }
    }

    fn claim(
        &self,
        known: Option<&ActualPort<A>>,
        owned: &[&DesiredFrontend<A>],
        ops: &mut Vec<Op<A>>,
    ) {
        let is_new = |endpoint: &&Endpoint<A>| {
            known.is_none_or(|known| !known.backends.contains_key(endpoint))
        };
        let backends = self.port.backends.keys().filter(is_new).count();
        let frontends = owned
            .iter()
            .filter(|frontend| !self.actual.frontends.contains_key(&frontend.key))
            .count();
        if backends + frontends > 0 {
            ops.push(Op::Claim {
                name: self.name.clone(),
                backends,
                frontends,
            });
        }
    }

    fn publish(
        &self,
        known: Option<&ActualPort<A>>,
        frontend: &DesiredFrontend<A>,
    ) -> Option<Op<A>> {
        let publication = Publication::of(self.name, self.port, frontend);
        let written = self.actual.frontends.get(&frontend.key);
        let same = written.filter(|written| {
            written.owner == *self.name
                && known.and_then(|known| publication.content(known)).as_ref()
                    == Some(&written.content)
        });
        match same {
            Some(written) if written.is_reachable => None,
            Some(_) => Some(Op::Reach {
                name: self.name.clone(),
                key: frontend.key,
            }),
            None => Some(Op::Publish(publication)),
        }
    }
}

/// A backend as it is while regions that hold it may be published: not yet quarantined, and in the
/// sets that it leaves.
fn before_publication(written: Option<&ActualBackend>, desired: &DesiredBackend) -> DesiredBackend {
    let Some(written) = written else {
        return *desired;
    };
    let state = match desired.state {
        BackendState::Quarantined => written.state,
        state => state,
    };
    DesiredBackend {
        state,
        sets: desired.sets | written.sets,
        ..*desired
    }
}

/// What goes away of one service port.
fn remove<A: IpFamily>(
    name: &Arc<ServicePortName>,
    known: &ActualPort<A>,
    desired: &DesiredState<A>,
    ops: &mut Vec<Op<A>>,
) {
    for key in known.frontends.keys() {
        // A frontend that somebody else gets is taken over by its publication.
        if desired.owner(key).is_none() {
            ops.push(Op::RemoveFrontend {
                name: name.clone(),
                key: *key,
            });
        }
    }
    let port = desired.ports().get(name);
    for (endpoint, written) in known.backends.iter() {
        let (name, endpoint) = (name.clone(), *endpoint);
        match port.and_then(|port| port.backends.get(&endpoint)) {
            None => ops.push(Op::FreeBackend { name, endpoint }),
            Some(backend) if before_publication(Some(written), backend) != *backend => {
                ops.push(Op::DemoteBackend(BackendOp {
                    name,
                    endpoint,
                    backend: *backend,
                }));
            }
            Some(_) => {}
        }
    }
    for range in &known.source_ranges {
        if port.is_none_or(|port| !port.source_ranges.contains(range)) {
            ops.push(Op::RemoveSourceRange(RangeOp {
                name: name.clone(),
                range: *range,
            }));
        }
    }
    if port.is_none() {
        ops.push(Op::Forget(name.clone()));
    }
}

/// Writes a prefix if `value` is what it should have and does not.
fn put_prefix<A: IpFamily>(
    prefix: Prefix<A>,
    value: u32,
    desired: &DesiredState<A>,
    actual: &ActualState<A>,
    ops: &mut Vec<Op<A>>,
) {
    if desired.prefix(&prefix) == Some(value) && actual.prefixes.get(&prefix) != Some(&value) {
        ops.push(Op::PutPrefix(prefix, value));
    }
}
