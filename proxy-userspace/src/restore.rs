//! ActualState from what the maps hold at start (S-178): ids, regions and generations stay.
//!
//! The maps know no names. A service port is known by its id, which its regions, its backends and
//! its source ranges carry; until the objects are there it goes by a made-up name. A desired
//! service port adopts the id behind its ClusterIP, else behind another of its frontends, and with
//! it the backends; what nobody adopts is pruned by the first reconcile after both lists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proxy_common::backend::flags;
use proxy_common::frontend::CLUSTER_START;
use proxy_common::port_filter::PORT_FILTER_LEN;
use proxy_common::{
    Backend, BackendState, FrontendKey, FrontendKind, RegionHeader, RegionTail, Word,
};

use crate::family::{Endpoint, IpFamily, Prefix};
use crate::ids::{Ids, Region};
use crate::maps::{FamilyMaps, Maps};
use crate::objects::ObjectName;
use crate::pipeline::actual::{
    ActualBackend, ActualFrontend, ActualPort, ActualState, SharedState, members,
};
use crate::pipeline::desired::service::kind_rank;
use crate::pipeline::desired::{DesiredState, ServicePortName};
use crate::sorted::SortedMap;

/// Reads what both families share; regions are claimed by [`family`].
pub fn shared(maps: &impl Maps) -> SharedState {
    let mut shared = SharedState::new(maps.capacity());
    shared.config = maps.config().filter(|config| config.abi_version != 0);
    for index in 0..PORT_FILTER_LEN {
        shared.port_filter[index as usize] = maps.port_filter(index).unwrap_or_default();
    }
    shared
}

/// Reads one family.
pub fn family<A: IpFamily, M: Maps + FamilyMaps<A>>(
    maps: &M,
    shared: &mut SharedState,
) -> ActualState<A> {
    let mut actual = ActualState::new(maps.capacity());
    restore_backends(maps, &mut actual);
    restore_frontends(maps, shared, &mut actual);
    for key in FamilyMaps::<A>::source_ranges(maps) {
        let range = Prefix {
            addr: key.addr,
            len: key.prefix_len.saturating_sub(32),
        };
        port_by_id(&mut actual, key.service_port)
            .source_ranges
            .insert(range);
    }
    let prefixes = FamilyMaps::<A>::cluster_ips(maps).into_iter();
    actual.prefixes = prefixes
        .map(|(key, value)| {
            (
                Prefix {
                    addr: key.addr,
                    len: key.prefix_len,
                },
                value,
            )
        })
        .collect();
    actual.node_addresses = FamilyMaps::<A>::node_addresses(maps).into_iter().collect();
    actual.next_port_id = actual
        .ports
        .values()
        .map(|port| port.id)
        .max()
        .map_or(1, |id| id + 1);
    actual
}

/// The frontends that tell whose a restored service port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// By ClusterIP, which Services hardly ever take from each other.
    ByClusterIp,
    /// By any frontend: asked when all that are told by ClusterIP have their names.
    ByAny,
}

/// Gives a restored service port its name back. Returns the name that it went by.
pub fn adopt<A: IpFamily>(
    desired: &DesiredState<A>,
    actual: &mut ActualState<A>,
    name: &Arc<ServicePortName>,
    told: Told,
) -> Option<Arc<ServicePortName>> {
    let port = desired.ports().get(name)?;
    if actual.ports.contains_key(name) {
        return None;
    }
    let mut frontends: Vec<_> = port.frontends.iter().collect();
    frontends.sort_by_key(|frontend| kind_rank(frontend.kind));
    let found = frontends
        .iter()
        .filter(|frontend| told == Told::ByAny || frontend.kind == FrontendKind::ClusterIp)
        .filter(|frontend| desired.owner(&frontend.key) == Some(name))
        .filter_map(|frontend| actual.frontends.get(&frontend.key))
        .map(|frontend| frontend.owner.clone())
        .find(|owner| is_adoptable(owner))?;
    rename(actual, &found, name);
    Some(found)
}

fn rename<A: IpFamily>(
    actual: &mut ActualState<A>,
    from: &Arc<ServicePortName>,
    to: &Arc<ServicePortName>,
) {
    let Some(port) = actual.ports.remove(from) else {
        return;
    };
    for key in port.frontends.keys() {
        if let Some(frontend) = actual.frontends.get_mut(key) {
            frontend.owner = to.clone();
        }
    }
    actual.ports.insert(to.clone(), port);
}

/// The name of a service port that is known by its id only.
fn made_up_name(id: u32) -> Arc<ServicePortName> {
    let service = ObjectName {
        namespace: String::new(),
        name: String::new(),
    };
    Arc::new(ServicePortName {
        service: Arc::new(service),
        port: format!("#{id}"),
        protocol: 0,
    })
}

/// Id 0 gathers the frontends whose region said nothing.
fn is_adoptable(name: &ServicePortName) -> bool {
    name.service.name.is_empty() && name.protocol == 0 && name.port != "#0"
}

fn port_by_id<A: IpFamily>(actual: &mut ActualState<A>, id: u32) -> &mut ActualPort<A> {
    actual
        .ports
        .entry(made_up_name(id))
        .or_insert_with(|| Box::new(ActualPort::new(id)))
}

fn restore_backends<A: IpFamily, M: Maps + FamilyMaps<A>>(maps: &M, actual: &mut ActualState<A>) {
    let mut used = BTreeSet::new();
    let mut ports: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for id in 1..actual.capacity.backends {
        let Some(value) = FamilyMaps::<A>::backend(maps, id) else {
            continue;
        };
        let Some(state) = state(&value) else {
            if value.generation != 0 {
                actual.generations.insert(id, value.generation);
            }
            continue;
        };
        let endpoint = Endpoint {
            addr: value.addr,
            port: value.port.get(),
        };
        let is_local = value.flags & flags::LOCAL != 0;
        let backend = ActualBackend {
            id,
            is_local,
            state,
            sets: value.flags & (flags::IN_CLUSTER | flags::IN_LOCAL),
            departures: value.departures(),
            generation: value.generation,
        };
        let backends = ports.entry(value.service_port).or_default();
        backends.push((endpoint, backend));
        used.insert(id);
    }
    for (id, backends) in ports {
        // Two elements for one endpoint cannot come from a Plan: the second is left unused.
        port_by_id(actual, id).backends = SortedMap::merged(backends, |_, _| ());
    }
    actual.backend_ids = Ids::restored(actual.capacity.backends, &used);
}

/// The state of an element in use.
fn state<A: IpFamily>(value: &Backend<A>) -> Option<BackendState> {
    [
        BackendState::Active,
        BackendState::Terminating,
        BackendState::Quarantined,
    ]
    .into_iter()
    .find(|state| *state as u8 == value.state)
}

fn restore_frontends<A: IpFamily, M: Maps + FamilyMaps<A>>(
    maps: &M,
    shared: &mut SharedState,
    actual: &mut ActualState<A>,
) {
    let reachable: BTreeMap<u32, FrontendKey<A>> = FamilyMaps::<A>::frontend_ids(maps)
        .into_iter()
        .map(|(key, id)| (id, key))
        .collect();
    let mut used = BTreeSet::new();
    for id in 1..actual.capacity.frontends {
        let element = FamilyMaps::<A>::frontend(maps, id);
        let word = element.map_or(0, |element| element.word);
        let key = match (reachable.get(&id), element) {
            (Some(key), _) => *key,
            // Published, but its removal or its making was interrupted.
            (None, Some(element)) if word != 0 => element.key,
            _ => continue,
        };
        used.insert(id);
        let is_known = element.is_some_and(|element| element.key == key);
        let published = is_known
            .then(|| region(maps, shared, actual, Word::unpack(word)))
            .flatten();
        let (region, content) = published.unzip();
        let content = content.unwrap_or_default();
        let port_id = content
            .get(1)
            .map_or(0, |tail| RegionTail::unpack(*tail).service_port);
        actual.reference(&content);
        port_by_id(actual, port_id).frontends.insert(key, ());
        let frontend = ActualFrontend {
            id,
            generation: Word::unpack(word).generation,
            region,
            content: content.into_boxed_slice(),
            is_reachable: reachable.contains_key(&id),
            owner: made_up_name(port_id),
        };
        actual.frontends.entry(key).or_insert(frontend);
    }
    actual.frontend_ids = Ids::restored(actual.capacity.frontends, &used);
}

/// A published region and its content, or `None` if it cannot be one of ours.
fn region<A: IpFamily>(
    maps: &impl Maps,
    shared: &mut SharedState,
    actual: &ActualState<A>,
    word: Word,
) -> Option<(Region, Vec<u64>)> {
    let header = RegionHeader::unpack(maps.slot(word.region)?);
    let len = header.region_len();
    let end = word.region.checked_add(len)?;
    if word.region == 0 || len < CLUSTER_START || end > shared.slots {
        return None;
    }
    let content: Vec<u64> = (word.region..end)
        .map(|index| maps.slot(index))
        .collect::<Option<_>>()?;
    let port = actual
        .ports
        .get(&made_up_name(RegionTail::unpack(content[1]).service_port));
    let ids: BTreeSet<u32> = port
        .map(|port| port.backends.values().map(|backend| backend.id).collect())
        .unwrap_or_default();
    if members(&content).any(|id| !ids.contains(&id)) {
        return None;
    }
    let region = Region {
        start: word.region,
        len,
    };
    shared.regions.claim(region).then_some((region, content))
}
