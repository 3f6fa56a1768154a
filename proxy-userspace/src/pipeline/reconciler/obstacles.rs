//! What is not programmed, and why: for events, status and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Family, Reconciler};
use crate::family::{IpFamily, Prefix};
use crate::objects::ObjectName;
use crate::pipeline::apply::{Obstacle, Outcome};
use crate::pipeline::desired::{ServicePortName, TouchedPorts};

/// What stands in the way of each service port and ClusterIP of a family.
#[derive(Debug)]
pub(in crate::pipeline) struct Obstacles<A: IpFamily> {
    pub(in crate::pipeline) ports: BTreeMap<Arc<ServicePortName>, Obstacle>,
    pub(in crate::pipeline) prefixes: BTreeMap<Prefix<A>, Obstacle>,
}

impl<A: IpFamily> Obstacles<A> {
    pub(super) fn new() -> Self {
        Self {
            ports: BTreeMap::new(),
            prefixes: BTreeMap::new(),
        }
    }

    /// Takes in what became of what was touched.
    pub(super) fn update(&mut self, touched: &TouchedPorts<A>, outcome: &Outcome<A>) {
        for name in &touched.ports {
            self.ports.remove(name);
        }
        for prefix in &touched.prefixes {
            self.prefixes.remove(prefix);
        }
        for (name, obstacle) in &outcome.obstacles {
            if let Obstacle::Full(text) = obstacle {
                tracing::warn!(service_port = %name, error = text, "service port does not fit");
            }
            self.ports.insert(name.clone(), obstacle.clone());
        }
        let prefixes = outcome.prefixes.iter();
        self.prefixes
            .extend(prefixes.map(|(prefix, obstacle)| (*prefix, obstacle.clone())));
    }
}

impl Reconciler {
    /// Services of which something found no room in a map: which map.
    pub fn without_room(&self) -> BTreeMap<ObjectName, String> {
        let mut all = without_room(&self.v4);
        all.extend(without_room(&self.v6));
        all
    }
}

fn without_room<A: IpFamily>(family: &Family<A>) -> BTreeMap<ObjectName, String> {
    let ports = family.obstacles.ports.iter();
    let ports = ports.map(|(name, obstacle)| (name.service.clone(), obstacle));
    let prefixes = family.obstacles.prefixes.iter();
    let prefixes = prefixes.flat_map(|(prefix, obstacle)| {
        let owners = owners(family, prefix).into_iter();
        owners.map(move |service| (service, obstacle))
    });
    let full = ports.chain(prefixes).filter_map(|(service, obstacle)| {
        let is_full = matches!(obstacle, Obstacle::Full(_));
        is_full.then(|| (ObjectName::clone(&service), obstacle.to_string()))
    });
    full.collect()
}

/// The Services that an address is the ClusterIP of.
fn owners<A: IpFamily>(family: &Family<A>, prefix: &Prefix<A>) -> BTreeSet<Arc<ObjectName>> {
    let ports = family.desired.ports().iter();
    let owners =
        ports.filter(|(_, port)| port.frontends.iter().any(|it| it.key.addr == prefix.addr));
    owners.map(|(name, _)| name.service.clone()).collect()
}
