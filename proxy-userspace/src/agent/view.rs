//! What the maps hold, for people: the frontends with their backends, and the counters.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proxy_common::frontend::{CLUSTER_START, flags};
use proxy_common::{
    Address, Backend, BackendState, Counter, FrontendKey, FrontendKind, RegionHeader, Word, backend,
};
use serde::{Deserialize, Serialize};

use crate::datapath::maps::KernelMaps;
use crate::maps::{FamilyMaps, Maps};

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
}

/// The service port that a frontend belongs to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owner {
    /// Namespace.
    pub namespace: String,
    /// Service.
    pub name: String,
    /// Port name.
    pub port_name: String,
}

/// All frontends of one family whose word is published, in no order.
pub fn frontends<A>(
    maps: &KernelMaps,
    owner: impl Fn(&FrontendKey<A>) -> Option<Owner>,
) -> Vec<FrontendView>
where
    A: Address + Into<IpAddr>,
    KernelMaps: FamilyMaps<A>,
{
    let ids = FamilyMaps::<A>::frontend_ids(maps).into_iter();
    ids.filter_map(|(key, id)| frontend(maps, &key, id, owner(&key).unwrap_or_default()))
        .collect()
}

fn frontend<A>(
    maps: &KernelMaps,
    key: &FrontendKey<A>,
    id: u32,
    owner: Owner,
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
        ids.filter_map(|id| Some(backend_view(&FamilyMaps::<A>::backend(maps, id)?)))
            .collect()
    };
    Some(FrontendView {
        namespace: owner.namespace,
        name: owner.name,
        port_name: owner.port_name,
        kind: kind_text(header.kind).to_owned(),
        address: (key.addr != A::UNSPECIFIED).then(|| key.addr.into()),
        port: key.port.get(),
        protocol: protocol_text(key.protocol).to_owned(),
        policy: match header.flags & flags::LOCAL_POLICY {
            0 => "Cluster".to_owned(),
            _ => "Local".to_owned(),
        },
        backends: part(CLUSTER_START, header.cluster_count),
        local_backends: part(header.local_start(), header.local_count),
    })
}

/// The backend ids of one part of a region: two an element, low half first.
fn part(maps: &KernelMaps, start: u32, count: u32) -> Vec<u32> {
    let slots = (start..start + count.div_ceil(2)).filter_map(|index| maps.slot(index));
    let ids = slots.flat_map(|pair| [pair as u32, (pair >> 32) as u32]);
    ids.take(count as usize).collect()
}

fn backend_view<A: Address + Into<IpAddr>>(found: &Backend<A>) -> BackendView {
    BackendView {
        address: SocketAddr::new(found.addr.into(), found.port.get()),
        state: state_text(found.state).to_owned(),
        local: found.flags & backend::flags::LOCAL != 0,
    }
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

fn protocol_text(protocol: u8) -> &'static str {
    use proxy_common::protocol::{SCTP, TCP, UDP};
    match protocol {
        TCP => "TCP",
        UDP => "UDP",
        SCTP => "SCTP",
        _ => "unknown",
    }
}

/// Counters that are not zero, by name.
pub fn counters(maps: &KernelMaps) -> BTreeMap<String, u64> {
    let all = Counter::ALL.iter();
    let values = all.map(|&counter| (counter.name().to_owned(), maps.counter(counter as u32)));
    values.filter(|(_, value)| *value > 0).collect()
}
