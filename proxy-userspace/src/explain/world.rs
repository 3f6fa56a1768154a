//! The node as a query meets it: tables, names, routes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use proxy_common::interface::flags;
use proxy_common::{Addr4, Addr6, Interface};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{V4, V6};

use super::tables;
use crate::agent::view::{self, Dialed};
use crate::datapath::catalog::MapSizes;
use crate::datapath::interfaces::Detect;
use crate::fake_maps::FakeMaps;
use crate::family::IpFamily;
use crate::ip_text::parse_ip;
use crate::maps::{Capacity, Maps};
use crate::objects::{Node, Object, ObjectEvent};
use crate::pipeline::desired::ServicePortName;
use crate::pipeline::desired::node::NodeFacts;
use crate::pipeline::watch::KINDS;
use crate::pipeline::{LocalAddress, Reconciler};
use crate::settings::Settings;

/// The only interface of a node that is known from objects: every route leads over it.
pub(super) const UPLINK: u32 = 1;
/// Its MTU.
const MTU: u32 = 1500;

/// Which interface leads to an address.
pub type Routes = Box<dyn Fn(IpAddr) -> Option<u32>>;

/// The node as a query meets it.
pub struct World {
    /// The maps' contents for IPv4.
    pub v4: HostTables<V4>,
    /// The maps' contents for IPv6.
    pub v6: HostTables<V6>,
    /// Service ports by what clients dial, as text.
    pub(super) services: BTreeMap<Dialed, String>,
    pub(super) entries: Entries,
    pub(super) routes: Routes,
    /// Objects that were rejected, entries that were left out, and what found no room.
    pub complaints: Vec<String>,
}

/// What is known of the interfaces that packets enter by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entries {
    /// Nothing but what the detector says of their names.
    Named(Detect),
    /// The node's own.
    Live(BTreeMap<String, u32>),
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("services", &self.services)
            .field("entries", &self.entries)
            .field("complaints", &self.complaints)
            .finish_non_exhaustive()
    }
}

/// `ns/name:port`.
pub fn service_text(name: &ServicePortName) -> String {
    let service = &name.service;
    format!("{}/{}:{}", service.namespace, service.name, name.port)
}

impl World {
    /// What an agent with these settings makes of the objects, on a node whose addresses are those
    /// of its Node object, `more` and loopback. `events` are as a source tells them.
    pub fn of_objects(settings: &Settings, events: Vec<ObjectEvent>, more: &[IpAddr]) -> Self {
        let sizes = MapSizes::default();
        let capacity = Capacity {
            frontends: sizes.frontends,
            backends: sizes.backends,
            slots: sizes.slots,
        };
        let mut maps = FakeMaps::new(capacity);
        let mut agent = Reconciler::new(settings.clone(), capacity);
        let mut node = None;
        for event in events {
            if let ObjectEvent::Applied(Object::Node(found)) = &event {
                node = Some(found.clone());
            }
            agent.handle(event);
        }
        for kind in KINDS {
            agent.handle(ObjectEvent::Listed(kind));
        }
        agent.set_local_addresses(local_addresses(node.as_ref(), more));
        agent.reconcile(&mut maps, Instant::now());
        let facts = NodeFacts::of(settings, node.as_ref());
        let detect = Detect::from(&settings.detect_local);
        let uplink = uplink(&facts, more);
        Self {
            services: names(&agent),
            complaints: complaints(&agent),
            ..Self::of_maps(
                &maps,
                [(UPLINK, uplink)],
                Entries::Named(detect),
                Box::new(|_| Some(UPLINK)),
            )
        }
    }

    /// What the maps hold; the names of Services are not known.
    pub fn of_maps<M: Maps>(
        maps: &M,
        interfaces: impl IntoIterator<Item = (u32, Interface)> + Clone,
        entries: Entries,
        routes: Routes,
    ) -> Self {
        Self {
            v4: tables::read(maps, interfaces.clone()),
            v6: tables::read(maps, interfaces),
            services: BTreeMap::new(),
            entries,
            routes,
            complaints: Vec::new(),
        }
    }

    /// Gives names to the service ports behind frontends.
    pub fn name_services(&mut self, services: BTreeMap<Dialed, String>) {
        self.services = services;
    }
}

/// The addresses of the Node object, what was given besides, and loopback.
fn local_addresses(node: Option<&Node>, more: &[IpAddr]) -> Vec<LocalAddress> {
    let of_node = node.into_iter().flat_map(|node| &node.status.addresses);
    let of_node = of_node
        .filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"))
        .filter_map(|address| parse_ip(&address.address));
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let all = of_node.chain(more.iter().copied()).chain(loopback);
    all.map(|addr| LocalAddress {
        addr,
        ifindex: UPLINK,
        is_on_loopback: addr.is_loopback(),
    })
    .collect()
}

/// Masquerading uses the node's primary addresses, else the first that was given.
fn uplink(facts: &NodeFacts, more: &[IpAddr]) -> Interface {
    Interface {
        flags: flags::ATTACHED,
        mtu: MTU,
        bridge: 0,
        mac: [0; 6],
        pad: [0; 2],
        addr4: source::<Addr4>(facts, more),
        addr6: source::<Addr6>(facts, more),
    }
}

fn source<A: IpFamily>(facts: &NodeFacts, more: &[IpAddr]) -> A {
    let mut others = more.iter().filter(|addr| !addr.is_loopback());
    facts
        .primary()
        .or_else(|| others.find_map(|addr| A::from_ip(*addr)))
        .unwrap_or(A::UNSPECIFIED)
}

fn names(agent: &Reconciler) -> BTreeMap<Dialed, String> {
    let owners = view::owners(&agent.service_ports()).into_iter();
    owners
        .map(|(dialed, name)| (dialed, service_text(&name)))
        .collect()
}

fn complaints(agent: &Reconciler) -> Vec<String> {
    let rejected = agent
        .rejections()
        .map(|found| format!("{}: rejected: {}", found.place, found.error));
    let problems = agent.problems().iter().flat_map(|(service, problems)| {
        let (namespace, name) = (&service.namespace, &service.name);
        problems
            .iter()
            .map(move |problem| format!("Service {namespace}/{name}: left out: {problem}"))
    });
    let ports = agent.service_ports();
    let obstacles = ports.iter().filter_map(|port| {
        let obstacle = port.obstacle.as_ref()?;
        Some(format!("{}: {obstacle}", service_text(&port.name)))
    });
    rejected.chain(problems).chain(obstacles).collect()
}
