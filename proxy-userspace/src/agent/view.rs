//! What the maps hold, for people: the frontends with their backends, and the counters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proxy_common::frontend::{CLUSTER_START, flags};
use proxy_common::{
    Address, BackendState, Counter, FrontendKey, FrontendKind, RegionHeader, Word, backend,
};
use serde::{Deserialize, Serialize};

use crate::datapath::maps::KernelMaps;
use crate::family::protocol_name;
use crate::flows::Traffic;
use crate::maps::{FamilyMaps, Maps};
use crate::pipeline::desired::ServicePortName;
use crate::pipeline::status::ServicePortStatus;

/// One frontend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendView {
    /// Namespace of its Service; empty when no agent runs, who alone knows names.
    pub namespace: String,
    /// Name of its Service.
    pub name: String,
    /// Name of the port; may be empty.
    pub port_name: String,
    /// ClusterIP, NodePort, ExternalIP or LoadBalancer.
    #[serde(rename = "type")]
    pub kind: String,
    /// What clients dial; absent for a NodePort: every accepted address of the node.
    pub address: Option<IpAddr>,
    /// Port.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// Cluster or Local.
    pub policy: String,
    /// The Cluster set.
    pub backends: Vec<BackendView>,
    /// The Local set.
    pub local_backends: Vec<BackendView>,
    /// New connections since the frontend was made, those of socket hooks too.
    pub connections: u64,
    /// First packets and calls that were refused.
    pub refused: u64,
    /// First packets and calls that were dropped.
    pub dropped: u64,
}

/// One backend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    /// Where connections go.
    pub address: SocketAddr,
    /// Active, Terminating, Quarantined or Free.
    pub state: String,
    /// True if it runs on this node.
    pub local: bool,
    /// New connections to it by this service port, over all its frontends.
    pub connections: u64,
    /// What they carried on the packet path: connections that were translated at a socket hook are
    /// not in it.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What clients dial: address (unspecified for a NodePort), port, protocol number.
pub type Dialed = (IpAddr, u16, u8);

/// The service port of every frontend.
pub type Owners = BTreeMap<Dialed, Arc<ServicePortName>>;

/// Which service port serves which frontend.
pub fn owners(ports: &[ServicePortStatus]) -> Owners {
    let frontends = ports
        .iter()
        .flat_map(|port| port.frontends.iter().map(move |found| (found, &port.name)));
    let served = frontends.filter(|(frontend, _)| frontend.lost_to.is_none());
    served
        .map(|(found, name)| ((found.addr, found.port, found.protocol), name.clone()))
        .collect()
}

/// All frontends of one family whose word is published, in no order.
pub fn frontends<A>(maps: &KernelMaps, owners: &Owners) -> Vec<FrontendView>
where
    A: Address + Into<IpAddr>,
    KernelMaps: FamilyMaps<A>,
{
    let ids = FamilyMaps::<A>::frontend_ids(maps).into_iter();
    ids.filter_map(|(key, id)| {
        let owner = owners.get(&(key.addr.into(), key.port.get(), key.protocol));
        frontend(maps, &key, id, owner)
    })
    .collect()
}

/// One frontend with its backends; `None` where its word is not published.
pub fn frontend<A>(
    maps: &KernelMaps,
    key: &FrontendKey<A>,
    id: u32,
    owner: Option<&Arc<ServicePortName>>,
) -> Option<FrontendView>
where
    A: Address + Into<IpAddr>,
    KernelMaps: FamilyMaps<A>,
{
    let word = FamilyMaps::<A>::frontend(maps, id)?.word;
    if word == 0 {
        return None;
    }
    let region = Word::unpack(word).region;
    let header = RegionHeader::unpack(maps.slot(region)?);
    let part = |start, count| {
        let ids = part(maps, region + start, count).into_iter();
        // A lookup table has a backend many times.
        let ids: BTreeSet<u32> = ids.collect();
        let views = ids.into_iter();
        let views = views.filter_map(|id| backend_view::<A>(maps, id));
        let mut views: Vec<BackendView> = views.collect();
        views.sort();
        views
    };
    let counts = FamilyMaps::<A>::frontend_counts(maps, id);
    Some(FrontendView {
        namespace: text(owner.map(|owner| &owner.service.namespace)),
        name: text(owner.map(|owner| &owner.service.name)),
        port_name: text(owner.map(|owner| &owner.port)),
        kind: kind_text(header.kind).to_owned(),
        address: (key.addr != A::UNSPECIFIED).then(|| key.addr.into()),
        port: key.port.get(),
        protocol: protocol_name(key.protocol).to_owned(),
        policy: match header.flags & flags::LOCAL_POLICY {
            0 => "Cluster".to_owned(),
            _ => "Local".to_owned(),
        },
        backends: part(CLUSTER_START, header.cluster_count),
        local_backends: part(header.local_start(), header.local_count),
        connections: counts.connections,
        refused: counts.refused,
        dropped: counts.dropped,
    })
}

fn text(known: Option<&String>) -> String {
    known.cloned().unwrap_or_default()
}

/// The backend ids of one part of a region: two an element, low half first.
fn part(maps: &KernelMaps, start: u32, count: u32) -> Vec<u32> {
    let slots = (start..start + count.div_ceil(2)).filter_map(|index| maps.slot(index));
    let ids = slots.flat_map(|pair| [pair as u32, (pair >> 32) as u32]);
    ids.take(count as usize).collect()
}

fn backend_view<A>(maps: &KernelMaps, id: u32) -> Option<BackendView>
where
    A: Address + Into<IpAddr>,
    KernelMaps: FamilyMaps<A>,
{
    let found = FamilyMaps::<A>::backend(maps, id)?;
    let counts = FamilyMaps::<A>::backend_counts(maps, id);
    Some(BackendView {
        address: SocketAddr::new(found.addr.into(), found.port.get()),
        state: state_text(found.state).to_owned(),
        local: found.flags & backend::flags::LOCAL != 0,
        connections: counts.connections,
        traffic: Traffic {
            packets_to: counts.packets_to,
            bytes_to: counts.bytes_to,
            packets_from: counts.packets_from,
            bytes_from: counts.bytes_from,
        },
    })
}

fn state_text(state: u8) -> &'static str {
    const ACTIVE: u8 = BackendState::Active as u8;
    const TERMINATING: u8 = BackendState::Terminating as u8;
    const QUARANTINED: u8 = BackendState::Quarantined as u8;
    match state {
        ACTIVE => "Active",
        TERMINATING => "Terminating",
        QUARANTINED => "Quarantined",
        _ => "Free",
    }
}

fn kind_text(kind: u8) -> &'static str {
    match FrontendKind::from_number(kind) {
        Some(FrontendKind::ClusterIp) => "ClusterIP",
        Some(FrontendKind::NodePort) => "NodePort",
        Some(FrontendKind::ExternalIp) => "ExternalIP",
        Some(FrontendKind::LoadBalancer) => "LoadBalancer",
        None => "unknown",
    }
}

/// Counters that are not zero, by name.
pub fn counters(maps: &KernelMaps) -> BTreeMap<String, u64> {
    let all = Counter::ALL.iter();
    let values = all.map(|&counter| (counter.name().to_owned(), maps.counter(counter as u32)));
    values.filter(|(_, value)| *value > 0).collect()
}
