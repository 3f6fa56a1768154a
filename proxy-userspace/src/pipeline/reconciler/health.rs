//! What the health servers need to know of a reconcile (S-140 to S-144).

use std::collections::BTreeSet;
use std::net::IpAddr;

use proxy_common::{Addr4, Addr6, BackendState};

use super::Reconciler;
use crate::family::IpFamily;
use crate::health::metrics::LocalPolicy;
use crate::health::service::{Check, Checks, Wanted};
use crate::objects::{Kind, Node, ObjectName, Service};
use crate::pipeline::apply::Outcome;
use crate::pipeline::desired::node::NodeFacts;
use crate::pipeline::desired::service::health_check_port;
use crate::pipeline::desired::{DesiredService, DesiredState, TrafficPolicy};
use crate::settings::Ipv6;

/// How far one family is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FamilySync {
    /// Something is known that the maps do not hold.
    pub is_pending: bool,
    /// The same, and all that is in the way is that maps are full.
    pub is_short_of_room: bool,
    /// Reconciles behind the barrier of S-007 after which the maps held everything.
    pub updates: u64,
}

impl FamilySync {
    pub(super) fn note<A: IpFamily>(&mut self, is_touched: bool, outcome: &Outcome<A>) {
        let is_complete = outcome.is_complete();
        let is_news = is_touched || self.is_pending || self.updates == 0;
        self.updates += u64::from(is_complete && is_news);
        self.is_pending = !is_complete;
        self.is_short_of_room = outcome.is_short_of_room();
    }
}

/// The health checks of Services, and how often they changed.
#[derive(Debug, Default)]
pub(super) struct HealthChecks {
    wanted: Wanted,
    revision: u64,
}

impl HealthChecks {
    /// Takes in what a Service has become in both families.
    pub(super) fn update(
        &mut self,
        name: &ObjectName,
        service: Option<&Service>,
        v4: Option<&DesiredService<Addr4>>,
        v6: Option<&DesiredService<Addr6>>,
    ) {
        let port = service.and_then(health_check_port);
        self.set(0, name, port.and_then(|port| check(port, v4?)));
        self.set(1, name, port.and_then(|port| check(port, v6?)));
    }

    /// Takes in the addresses of each family to listen on.
    pub(super) fn listen(&mut self, addresses: [Vec<IpAddr>; 2]) {
        for (checks, addresses) in self.wanted.iter_mut().zip(addresses) {
            if checks.addresses != addresses {
                checks.addresses = addresses;
                self.revision += 1;
            }
        }
    }

    fn set(&mut self, family: usize, name: &ObjectName, check: Option<Check>) {
        let Checks { services, .. } = &mut self.wanted[family];
        if services.get(name) == check.as_ref() {
            return;
        }
        self.revision += 1;
        match check {
            Some(check) => services.insert(name.clone(), check),
            None => services.remove(name),
        };
    }
}

/// S-141: different addresses of local ready endpoints, over all ports.
fn check<A: IpFamily>(port: u16, service: &DesiredService<A>) -> Option<Check> {
    let backends = service.ports.values().flat_map(|port| port.backends.iter());
    let ready = backends
        .filter(|(_, backend)| backend.is_local && backend.state == BackendState::Active)
        .map(|(endpoint, _)| endpoint.addr);
    let addresses: BTreeSet<A> = ready.collect();
    Some(Check {
        port,
        local_endpoints: addresses.len(),
    })
}

impl Reconciler {
    /// How far the families that are served are, IPv4 first, by the name that metrics have for
    /// them.
    pub fn syncs(&self) -> Vec<(&'static str, FamilySync)> {
        let mut syncs = vec![(Addr4::NAME, self.v4.sync)];
        if self.settings.ipv6 == Ipv6::Served {
            syncs.push((Addr6::NAME, self.v6.sync));
        }
        syncs
    }

    /// The own Node as the next reconcile will see it, and whether Nodes are listed.
    pub fn upcoming_node(&self) -> (NodeFacts, bool) {
        let node = NodeFacts::of(&self.settings, self.store.node());
        (node, self.store.is_listed(Kind::Node))
    }

    /// The health checks of Services, with a number that moves when they change.
    pub fn health_checks(&self) -> (u64, &Wanted) {
        (self.health_checks.revision, &self.health_checks.wanted)
    }

    /// The own Node as last seen, unless it is deleted: a watch that fails changes nothing (S-147).
    pub fn existing_node(&self) -> Option<&Node> {
        self.store.existing_node()
    }

    /// S-110: service ports that drop traffic for want of a local endpoint.
    pub fn no_local_endpoints(&self) -> Vec<(&'static str, LocalPolicy, i64)> {
        let mut counts = count_no_local(&self.v4.desired);
        counts.extend(count_no_local(&self.v6.desired));
        counts
    }
}

fn count_no_local<A: IpFamily>(desired: &DesiredState<A>) -> Vec<(&'static str, LocalPolicy, i64)> {
    let (mut internal, mut external) = (0, 0);
    let ports = desired.ports().values();
    for port in ports.filter(|port| port.has_endpoints && port.local.is_empty()) {
        internal += i64::from(port.internal_policy == TrafficPolicy::Local);
        let is_external = port
            .frontends
            .iter()
            .any(|frontend| frontend.kind != proxy_common::FrontendKind::ClusterIp);
        external += i64::from(is_external && port.external_policy == TrafficPolicy::Local);
    }
    vec![
        (A::NAME, LocalPolicy::Internal, internal),
        (A::NAME, LocalPolicy::External, external),
    ]
}
