//! Every layout of the ABI as data, for the golden dump `docs/map-abi.txt`.

use crate::flow::{NextHop, Path};
use crate::*;

/// Size, alignment and field offsets of one type of the ABI.
#[derive(Debug)]
pub struct Layout {
    /// Type name; generic types once for each family.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// Field names and offsets.
    pub fields: &'static [(&'static str, usize)],
}

macro_rules! layout {
    ($name:literal, $type:ty: $($field:ident)*) => {
        Layout {
            name: $name,
            size: size_of::<$type>(),
            align: align_of::<$type>(),
            fields: &[$((stringify!($field), core::mem::offset_of!($type, $field)),)*],
        }
    };
}

/// All layouts.
pub const LAYOUTS: &[Layout] = &[
    layout!("AffinityKey4", AffinityKey<Addr4>: client service_port),
    layout!("AffinityKey6", AffinityKey<Addr6>: client service_port),
    layout!("Backend4", Backend<Addr4>: addr port state flags generation service_port),
    layout!("Backend6", Backend<Addr6>: addr port state flags generation service_port),
    layout!("Cidr4", Cidr<Addr4>: network mask used),
    layout!("Cidr6", Cidr<Addr6>: network mask used),
    layout!("ClusterIpKey4", ClusterIpKey<Addr4>: prefix_len addr),
    layout!("ClusterIpKey6", ClusterIpKey<Addr6>: prefix_len addr),
    #[cfg(feature = "other-abi")]
    layout!("Connection4", Connection<Addr4>: to tag last_seen_secs flags seen next_hops path next_hop made_up backend generation frontend began_secs other_path carried packets bytes),
    #[cfg(feature = "other-abi")]
    layout!("Connection6", Connection<Addr6>: to tag last_seen_secs flags seen next_hops path next_hop made_up backend generation frontend began_secs other_path carried packets bytes),
    #[cfg(not(feature = "other-abi"))]
    layout!("Connection4", Connection<Addr4>: to tag carried last_seen_secs flags seen next_hops path next_hop backend generation frontend began_secs other_path pad_end packets bytes),
    #[cfg(not(feature = "other-abi"))]
    layout!("Connection6", Connection<Addr6>: to tag carried last_seen_secs flags seen next_hops path next_hop backend generation frontend began_secs other_path pad_end packets bytes),
    layout!("FamilyConfig4", FamilyConfig<Addr4>: pods service_cidrs primary),
    layout!("FamilyConfig6", FamilyConfig<Addr6>: pods service_cidrs primary),
    layout!("FlowKey4", FlowKey<Addr4>: tuple protocol pad),
    layout!("FlowKey6", FlowKey<Addr6>: tuple protocol pad),
    layout!("FragmentKey4", FragmentKey<Addr4>: src dst id protocol pad),
    layout!("FragmentKey6", FragmentKey<Addr6>: src dst id protocol pad),
    layout!("Frontend4", Frontend<Addr4>: word key pad),
    layout!("Frontend6", Frontend<Addr6>: word key pad),
    layout!("FrontendKey4", FrontendKey<Addr4>: addr port protocol pad),
    layout!("FrontendKey6", FrontendKey<Addr6>: addr port protocol pad),
    layout!("SocketEntry4", SocketEntry<Addr4>: addr port pad backend generation),
    layout!("SocketEntry6", SocketEntry<Addr6>: addr port pad backend generation),
    layout!("SocketKey4", SocketKey<Addr4>: cookie addr port protocol peer),
    layout!("SocketKey6", SocketKey<Addr6>: cookie addr port protocol peer),
    layout!("SourceRangeKey4", SourceRangeKey<Addr4>: prefix_len service_port addr),
    layout!("SourceRangeKey6", SourceRangeKey<Addr6>: prefix_len service_port addr),
    layout!("Tuple4", Tuple<Addr4>: src dst sport dport),
    layout!("Tuple6", Tuple<Addr6>: src dst sport dport),
    #[cfg(feature = "other-abi")]
    layout!("AffinityEntry", AffinityEntry: generation last_used_secs tag backend),
    #[cfg(not(feature = "other-abi"))]
    layout!("AffinityEntry", AffinityEntry: backend generation last_used_secs tag),
    layout!("BackendCounts", BackendCounts: connections packets_to bytes_to packets_from bytes_from),
    layout!("Config", Config: host_netns_cookie abi_version hz flags redirect_mark snat_ports detect_local timeouts answers_per_sec new_flows_per_sec v4 v6 next_hops),
    layout!("Event", Event: time_ns src dst to ifindex frontend backend reason sport dport to_port kind hook family protocol tcp_flags pad),
    layout!("FragmentPorts", FragmentPorts: sport dport),
    layout!("FrontendCounts", FrontendCounts: connections refused dropped),
    layout!("Interface", Interface: flags mtu bridge mac pad addr4 addr6),
    layout!("Monitor", Monitor: until_secs one_in kinds pad),
    layout!("NextHop", NextHop: dst src),
    layout!("Path", Path: kind flags mtu ifindex),
];
