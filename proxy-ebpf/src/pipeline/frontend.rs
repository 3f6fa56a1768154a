//! Stage 4: is the destination a frontend, and may this source use it?

use proxy_common::{
    Address, Config, Counter, DetectLocal, FrontendKey, FrontendKind, RegionHeader, RegionTail,
    Tuple, Word, config, frontend, interface, node, protocol,
};

use super::parse::{Fragment, Headers, Transport};
use crate::wire::tcp;
use crate::{Answer, Environment, Family, Hook, Stop, Tables};

/// A frontend as published at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// FrontendId.
    pub id: u32,
    /// Index of the region's first element.
    pub region: u32,
    /// Counts, flags and kind.
    pub header: RegionHeader,
    /// Service port and affinity.
    pub tail: RegionTail,
}

impl Found {
    /// Its kind.
    #[inline(always)]
    pub fn is_cluster_ip(&self) -> bool {
        self.header.kind == FrontendKind::ClusterIp as u8
    }

    /// True if `flag` is set.
    #[inline(always)]
    pub fn has(&self, flag: u16) -> bool {
        self.header.flags & flag != 0
    }
}

/// Where a new flow comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The place.
    pub place: Place,
    /// The local-traffic detector's answer (S-083).
    pub is_pod: bool,
    /// A detector exists for the family.
    pub has_detector: bool,
    /// The bridge of the packet's port where both directions must be redirected (P-6); else 0.
    pub bridge: u32,
}

/// Where a new flow enters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A process of this node.
    Node,
    /// An interface that leads to a pod.
    PodSide,
    /// A bridge with pods behind it: the packet has passed the program at its port.
    Bridge,
    /// Any other interface.
    Outside,
}

/// Stops a packet that starts no flow, whatever it dials. At egress only packets of this node's own
/// processes start flows: all others have passed ingress.
#[inline(always)]
pub fn may_start<F, T, E>(tables: &T, env: &E, headers: &Headers<F>) -> Result<(), Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    if !matches!(headers.transport, Transport::Ports | Transport::Other) {
        return Err(Stop::Pass(Counter::IcmpOther));
    }
    if matches!(env.hook(), Hook::Egress)
        && tables.node_address(&headers.tuple.src) & node::address_flags::OWN == 0
    {
        return Err(Stop::Pass(Counter::NotFrontend));
    }
    Ok(())
}

/// Tells where a packet without a flow comes from, after [`may_start`].
#[inline(always)]
pub fn origin<F, T, E>(tables: &T, env: &E, config: &Config, headers: &Headers<F>) -> Origin
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let (flags, bridge) = match env.hook() {
        Hook::Ingress | Hook::Xdp => tables
            .interface(env.ifindex())
            .map_or((0, 0), |found| (found.flags, found.bridge)),
        Hook::Egress => (0, 0),
    };
    let place = match env.hook() {
        Hook::Egress => Place::Node,
        _ if flags & interface::flags::BRIDGE != 0 => Place::Bridge,
        _ if flags & interface::flags::POD_SIDE != 0 => Place::PodSide,
        _ => Place::Outside,
    };
    let is_redirecting = flags & interface::flags::BRIDGE_REDIRECT != 0;
    Origin {
        bridge: if is_redirecting { bridge } else { 0 },
        ..detect::<F>(config, &headers.tuple.src, place, flags)
    }
}

/// The detector (S-083).
#[inline(always)]
pub fn detect<F: Family>(
    config: &Config,
    src: &F::Addr,
    place: Place,
    interface_flags: u32,
) -> Origin {
    let pods = &F::config(config).pods;
    let (has_detector, is_pod) = if config.detect_local == DetectLocal::Cidr as u32 {
        (pods.used != 0, pods.contains(src))
    } else if config.detect_local == DetectLocal::Interface as u32 {
        (true, interface_flags & interface::flags::DETECTED != 0)
    } else {
        (false, false)
    };
    Origin {
        place,
        is_pod,
        has_detector,
        bridge: 0,
    }
}

/// Finds the frontend that the packet dials (S-075 b and c), or stops as (d), (e) and (f) say.
#[inline(always)]
pub fn find<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    headers: &Headers<F>,
) -> Result<Found, Stop> {
    let tuple = &headers.tuple;
    if let Transport::Ports = headers.transport {
        if let Some(found) = lookup(tables, tuple.dst, tuple, headers.protocol) {
            return Ok(found);
        }
        if tables.node_address(&tuple.dst) & node::address_flags::NODE_PORT != 0
            && let Some(found) = lookup(tables, F::Addr::UNSPECIFIED, tuple, headers.protocol)
        {
            return Ok(found);
        }
    }
    Err(not_found(tables, config, headers))
}

/// One frontend by key. The element's key is compared with the one looked up: the hash element of
/// an id may be reused while it is read. On a mismatch or a miss it is looked up once more.
#[inline(always)]
fn lookup<F: Family, T: Tables<F>>(
    tables: &T,
    addr: F::Addr,
    tuple: &Tuple<F::Addr>,
    protocol: u8,
) -> Option<Found> {
    by_key(
        tables,
        &FrontendKey {
            addr,
            port: tuple.dport,
            protocol,
            pad: 0,
        },
    )
}

/// The frontend that `key` names, if one is published.
#[inline(always)]
pub fn by_key<F: Family, T: Tables<F>>(tables: &T, key: &FrontendKey<F::Addr>) -> Option<Found> {
    match once(tables, key) {
        Some(found) => Some(found),
        None => once(tables, key),
    }
}

#[inline(always)]
fn once<F: Family, T: Tables<F>>(tables: &T, key: &FrontendKey<F::Addr>) -> Option<Found> {
    let id = tables.frontend_id(key)?;
    let read = tables.frontend(id)?;
    if read.key != *key || read.word == 0 {
        return None;
    }
    let region = Word::unpack(read.word).region;
    Some(Found {
        id,
        region,
        header: RegionHeader::unpack(tables.slot(region)?),
        tail: RegionTail::unpack(tables.slot(region + 1)?),
    })
}

/// What happens to a packet without a frontend (S-075 d to f, S-077, S-078).
#[inline(always)]
fn not_found<F: Family, T: Tables<F>>(tables: &T, config: &Config, headers: &Headers<F>) -> Stop {
    match of_service(tables, config, &headers.tuple.dst) {
        OfService::Active => Stop::Reject(Counter::RejectClusterIp, Answer::Refused),
        OfService::Unallocated => Stop::Drop(Counter::Unallocated),
        OfService::No => Stop::Pass(Counter::NotFrontend),
    }
}

/// What an address is to the Services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OfService {
    /// An active ClusterIP (S-077).
    Active,
    /// Inside a ServiceCIDR, and nobody's (S-078).
    Unallocated,
    /// Nothing, or exempt.
    No,
}

/// True if `addr` has frontends, or is of the Services for another reason.
#[inline(always)]
pub fn is_served<F: Family, T: Tables<F>>(tables: &T, config: &Config, addr: &F::Addr) -> bool {
    tables.cluster_ip(addr) == node::cluster_ip::FRONTEND
        || !matches!(of_service(tables, config, addr), OfService::No)
}

/// What an address is to the Services.
#[inline(always)]
pub fn of_service<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    addr: &F::Addr,
) -> OfService {
    // The prefixes cover them all: what lies outside needs no look-up.
    if !F::config(config).is_service_address(addr) {
        return OfService::No;
    }
    match tables.cluster_ip(addr) {
        node::cluster_ip::ACTIVE => OfService::Active,
        node::cluster_ip::UNALLOCATED if config.flags & config::flags::KEEP_UNALLOCATED == 0 => {
            OfService::Unallocated
        }
        _ => OfService::No,
    }
}

/// May this packet start a flow to the frontend: source ranges (S-113), and on a NodePort only
/// what cannot be an answer to a socket of this node (S-119e).
#[inline(always)]
pub fn admit<F, T, E>(
    tables: &T,
    env: &E,
    headers: &Headers<F>,
    frontend: &Found,
) -> Result<(), Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    if let Fragment::Later = headers.fragment {
        return Err(Stop::Drop(Counter::FrontendFragment));
    }
    let is_node_port = frontend.header.kind == FrontendKind::NodePort as u8;
    if headers.protocol == protocol::TCP
        && headers.tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN
        && !is_adopted(headers, frontend)
    {
        if is_node_port {
            return Err(Stop::Pass(Counter::NotFlowStart));
        }
        return Err(if headers.tcp_flags & tcp::RST != 0 {
            Stop::Drop(Counter::RejectMidStream)
        } else {
            Stop::Reject(Counter::RejectMidStream, Answer::Refused)
        });
    }
    if is_node_port && env.socket_owns(&headers.tuple, headers.protocol) {
        return Err(Stop::Pass(Counter::SocketOwner));
    }
    let asker = FrontendKey {
        addr: headers.tuple.src,
        port: headers.tuple.dport,
        protocol: headers.protocol,
        pad: 0,
    };
    if is_source_allowed(tables, frontend, &asker) {
        Ok(())
    } else {
        Err(Stop::Drop(Counter::SourceRange))
    }
}

/// True in the middle of a connection that another node, or this one, has forgotten, where the
/// frontend's lookup table leads to the backend that it had.
#[inline(always)]
fn is_adopted<F: Family>(headers: &Headers<F>, frontend: &Found) -> bool {
    frontend.has(frontend::flags::ADOPTS)
        && headers.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::ACK
}

/// Source ranges (S-113, S-114): `asker` is the source address with the port that is dialed, which
/// is the key of one of the Service's frontends where this node has chosen it as the source.
#[inline(always)]
pub fn is_source_allowed<F: Family, T: Tables<F>>(
    tables: &T,
    frontend: &Found,
    asker: &FrontendKey<F::Addr>,
) -> bool {
    if !frontend.has(frontend::flags::SOURCE_RANGES)
        || tables.source_range(frontend.tail.service_port, &asker.addr)
    {
        return true;
    }
    frontend.has(frontend::flags::SOURCE_RANGES_NODE)
        && once(tables, asker).is_some_and(|vip| {
            vip.tail.service_port == frontend.tail.service_port
                && vip.header.kind == FrontendKind::LoadBalancer as u8
        })
}
