//! NODE_ADDRESSES{4,6}, CLUSTER_IPS{4,6}, SOURCE_RANGES{4,6}.

use crate::{Address, pod};

/// Bits of the value (`u32`) of NODE_ADDRESSES{4,6}, a hash by address.
pub mod address_flags {
    /// An address of this node (S-081 rule 2).
    pub const OWN: u32 = 1 << 0;
    /// NodePorts are served on it (S-119b).
    pub const NODE_PORT: u32 = 1 << 1;
}

/// Key of CLUSTER_IPS{4,6}, an LPM trie: active ClusterIPs and ServiceCIDRs (S-077, S-078), and the
/// other addresses of frontends but those of nodes (S-133).
/// The value is a [`cluster_ip`] constant (`u32`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterIpKey<A: Address> {
    /// Prefix length in bits.
    pub prefix_len: u32,
    /// Network address.
    pub addr: A,
}
pod!(ClusterIpKey<A>, 8, 20);

/// Values of CLUSTER_IPS.
pub mod cluster_ip {
    /// An active ClusterIP: what is not a frontend there is rejected (S-077).
    pub const ACTIVE: u32 = 1;
    /// Inside a ServiceCIDR and not allocated: dropped (S-078).
    pub const UNALLOCATED: u32 = 2;
    /// An address of a load balancer or an external IP outside of every ServiceCIDR: only what
    /// cannot be read is dropped there (S-133).
    pub const FRONTEND: u32 = 3;
}

/// Key of SOURCE_RANGES{4,6}, an LPM trie: who may reach a frontend (S-112). The value is 1.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceRangeKey<A: Address> {
    /// Prefix length in bits, counted from `service_port`: 32 more than the CIDR's.
    pub prefix_len: u32,
    /// Service port.
    pub service_port: u32,
    /// Network address.
    pub addr: A,
}
pod!(SourceRangeKey<A>, 12, 24);
