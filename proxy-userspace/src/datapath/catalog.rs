//! The catalogue of maps: name, type and sizes of every map of the ABI. It decides whether what
//! is pinned is ours, and how large maps are made.

use proxy_common::{
    AFFINITY_DEFAULT, Addr4, Addr6, Address, AffinityEntry, AffinityKey, BACKENDS_DEFAULT, Backend,
    BackendCounts, CLUSTER_IPS_DEFAULT, ClusterIpKey, Config, Connection, EVENTS_SIZE,
    FLOWS_DEFAULT, FRAGMENTS_MAX, FRONTENDS_DEFAULT, FlowKey, FragmentKey, FragmentPorts, Frontend,
    FrontendCounts, FrontendKey, HANDSHAKES_DEFAULT, INTERFACES_MAX, Interface, Monitor,
    NODE_ADDRESSES_MAX, SLOTS_DEFAULT, SOCKETS_DEFAULT, SOURCE_RANGES_DEFAULT, SocketEntry,
    SocketKey, SourceRangeKey, port_filter, reasons,
};

/// Sizes of the maps whose size is a matter of taste. A pinned map keeps its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSizes {
    /// FRONTENDS, FRONTEND_IDS and FRONTEND_COUNTS.
    pub frontends: u32,
    /// BACKENDS and BACKEND_COUNTS.
    pub backends: u32,
    /// SLOTS.
    pub slots: u32,
    /// FLOWS.
    pub flows: u32,
    /// HANDSHAKES.
    pub handshakes: u32,
    /// AFFINITY.
    pub affinity: u32,
    /// SOCKETS.
    pub sockets: u32,
    /// CLUSTER_IPS.
    pub cluster_ips: u32,
    /// SOURCE_RANGES.
    pub source_ranges: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            frontends: FRONTENDS_DEFAULT,
            backends: BACKENDS_DEFAULT,
            slots: SLOTS_DEFAULT,
            flows: FLOWS_DEFAULT,
            handshakes: HANDSHAKES_DEFAULT,
            affinity: AFFINITY_DEFAULT,
            sockets: SOCKETS_DEFAULT,
            cluster_ips: CLUSTER_IPS_DEFAULT,
            source_ranges: SOURCE_RANGES_DEFAULT,
        }
    }
}

/// `enum bpf_map_type` of the types in use.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    /// Hash.
    Hash = 1,
    /// Array.
    Array = 2,
    /// Array with a value per CPU.
    PerCpuArray = 6,
    /// Hash that drops what was longest unused.
    LruHash = 9,
    /// Longest prefix match.
    LpmTrie = 11,
    /// Records that one reader takes out; it has neither keys nor values.
    RingBuf = 27,
}

/// What one map must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSpec {
    /// Name in the BPF object and below the pins.
    pub name: &'static str,
    /// Type.
    pub kind: MapKind,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Elements.
    pub max_entries: u32,
    /// Names of the types of key and value, without their family.
    pub types: [&'static str; 2],
}

/// Key type, value type, name, kind and size of one map. A generic type goes by its name alone, and
/// an address by `Addr`: the map's name tells the family.
macro_rules! spec {
    ($key:ident $(<$of_key:ident>)?, $value:ident $(<$of_value:ident>)?, $name:expr, $kind:ident,
     $max_entries:expr) => {
        MapSpec {
            name: $name,
            kind: MapKind::$kind,
            key_size: size_of::<$key $(<$of_key>)?>() as u32,
            value_size: size_of::<$value $(<$of_value>)?>() as u32,
            max_entries: $max_entries,
            types: [type_name(stringify!($key)), stringify!($value)],
        }
    };
}

const fn type_name(text: &'static str) -> &'static str {
    match text.as_bytes() {
        b"A" => "Addr",
        _ => text,
    }
}

/// All maps, in the order in which they are made.
pub fn catalog(sizes: &MapSizes) -> Vec<MapSpec> {
    let mut maps = Vec::new();
    family::<Addr4>(sizes, &NAMES4, &mut maps);
    family::<Addr6>(sizes, &NAMES6, &mut maps);
    maps.extend([
        spec!(u32, u64, "SLOTS", Array, sizes.slots),
        spec!(u32, u64, "PORT_FILTER", Array, port_filter::PORT_FILTER_LEN),
        spec!(u32, u64, "COUNTERS", PerCpuArray, reasons::COUNTERS_LEN),
        spec!(u32, Config, "CONFIG", Array, 1),
        spec!(u32, Interface, "INTERFACES", Hash, INTERFACES_MAX),
        spec!(u32, Monitor, "MONITORS", Array, 1),
        MapSpec {
            name: "EVENTS",
            kind: MapKind::RingBuf,
            key_size: 0,
            value_size: 0,
            max_entries: EVENTS_SIZE,
            types: ["none"; 2],
        },
    ]);
    maps
}

/// Map names of one family.
#[derive(Debug)]
pub struct FamilyNames {
    /// FRONTEND_IDS.
    pub frontend_ids: &'static str,
    /// FRONTENDS.
    pub frontends: &'static str,
    /// BACKENDS.
    pub backends: &'static str,
    /// NODE_ADDRESSES.
    pub node_addresses: &'static str,
    /// SOURCE_RANGES.
    pub source_ranges: &'static str,
    /// CLUSTER_IPS.
    pub cluster_ips: &'static str,
    /// HANDSHAKES.
    pub handshakes: &'static str,
    /// FLOWS.
    pub flows: &'static str,
    /// AFFINITY.
    pub affinity: &'static str,
    /// FRAGMENTS.
    pub fragments: &'static str,
    /// SOCKETS.
    pub sockets: &'static str,
    /// FRONTEND_COUNTS.
    pub frontend_counts: &'static str,
    /// BACKEND_COUNTS.
    pub backend_counts: &'static str,
}

/// Names of the IPv4 maps.
pub static NAMES4: FamilyNames = FamilyNames {
    frontend_ids: "FRONTEND_IDS4",
    frontends: "FRONTENDS4",
    backends: "BACKENDS4",
    node_addresses: "NODE_ADDRESSES4",
    source_ranges: "SOURCE_RANGES4",
    cluster_ips: "CLUSTER_IPS4",
    handshakes: "HANDSHAKES4",
    flows: "FLOWS4",
    affinity: "AFFINITY4",
    fragments: "FRAGMENTS4",
    sockets: "SOCKETS4",
    frontend_counts: "FRONTEND_COUNTS4",
    backend_counts: "BACKEND_COUNTS4",
};

/// Names of the IPv6 maps.
pub static NAMES6: FamilyNames = FamilyNames {
    frontend_ids: "FRONTEND_IDS6",
    frontends: "FRONTENDS6",
    backends: "BACKENDS6",
    node_addresses: "NODE_ADDRESSES6",
    source_ranges: "SOURCE_RANGES6",
    cluster_ips: "CLUSTER_IPS6",
    handshakes: "HANDSHAKES6",
    flows: "FLOWS6",
    affinity: "AFFINITY6",
    fragments: "FRAGMENTS6",
    sockets: "SOCKETS6",
    frontend_counts: "FRONTEND_COUNTS6",
    backend_counts: "BACKEND_COUNTS6",
};

fn family<A: Address>(sizes: &MapSizes, names: &FamilyNames, maps: &mut Vec<MapSpec>) {
    maps.extend([
        spec!(
            FrontendKey<A>,
            u32,
            names.frontend_ids,
            Hash,
            sizes.frontends
        ),
        spec!(u32, Frontend<A>, names.frontends, Array, sizes.frontends),
        spec!(u32, Backend<A>, names.backends, Array, sizes.backends),
        spec!(A, u32, names.node_addresses, Hash, NODE_ADDRESSES_MAX),
        spec!(
            SourceRangeKey<A>,
            u32,
            names.source_ranges,
            LpmTrie,
            sizes.source_ranges
        ),
        spec!(
            ClusterIpKey<A>,
            u32,
            names.cluster_ips,
            LpmTrie,
            sizes.cluster_ips
        ),
        spec!(
            FlowKey<A>,
            Connection<A>,
            names.handshakes,
            LruHash,
            sizes.handshakes
        ),
        spec!(FlowKey<A>, Connection<A>, names.flows, LruHash, sizes.flows),
        spec!(
            AffinityKey<A>,
            AffinityEntry,
            names.affinity,
            LruHash,
            sizes.affinity
        ),
        spec!(
            FragmentKey<A>,
            FragmentPorts,
            names.fragments,
            LruHash,
            FRAGMENTS_MAX
        ),
        spec!(
            SocketKey<A>,
            SocketEntry<A>,
            names.sockets,
            LruHash,
            sizes.sockets
        ),
    ]);
    counts(sizes, names, maps);
}

fn counts(sizes: &MapSizes, names: &FamilyNames, maps: &mut Vec<MapSpec>) {
    let (frontends, backends) = (names.frontend_counts, names.backend_counts);
    maps.extend([
        spec!(u32, FrontendCounts, frontends, Array, sizes.frontends),
        spec!(u32, BackendCounts, backends, Array, sizes.backends),
    ]);
}
