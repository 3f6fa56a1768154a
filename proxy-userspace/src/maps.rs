//! The maps as the object's path writes them: one trait, with the kernel's maps behind it in the
//! agent (`datapath::maps`) and plain collections in tests and in `shunt explain`.
//!
//! Every method is one write, idempotent; removing what is not there is not an error.

use proxy_common::interface::Interface;
use proxy_common::{
    Addr4, Addr6, Address, Backend, BackendCounts, ClusterIpKey, Config, Frontend, FrontendCounts,
    FrontendKey, SourceRangeKey,
};

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The map has no room: the object concerned is reported, everything else goes on.
    #[error("{map} is full ({limit} entries)")]
    Full {
        /// Map name.
        map: &'static str,
        /// Its size.
        limit: u32,
    },
    /// The kernel refused.
    #[error("writing {map}")]
    Write {
        /// Map name.
        map: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Result of one write.
pub type MapResult = Result<(), MapError>;

/// The maps of one address family.
pub trait FamilyMaps<A: Address> {
    /// FRONTEND_IDS: `key` has `id`.
    fn insert_frontend_id(&mut self, key: &FrontendKey<A>, id: u32) -> MapResult;
    /// FRONTEND_IDS: `key` is gone.
    fn remove_frontend_id(&mut self, key: &FrontendKey<A>) -> MapResult;
    /// FRONTENDS: the whole element, before it is published (its word is 0).
    fn write_frontend(&mut self, id: u32, frontend: &Frontend<A>) -> MapResult;
    /// FRONTENDS: one aligned 8-byte release store of the word (see `proxy_common::frontend`).
    fn publish(&mut self, id: u32, word: u64) -> MapResult;
    /// BACKENDS: the whole element.
    fn write_backend(&mut self, id: u32, backend: &Backend<A>) -> MapResult;
    /// NODE_ADDRESSES: an address of this node, with `address_flags`.
    fn insert_node_address(&mut self, addr: &A, flags: u32) -> MapResult;
    /// NODE_ADDRESSES: not ours any more.
    fn remove_node_address(&mut self, addr: &A) -> MapResult;
    /// CLUSTER_IPS: a `cluster_ip` value for a prefix.
    fn insert_cluster_ip(&mut self, key: &ClusterIpKey<A>, value: u32) -> MapResult;
    /// CLUSTER_IPS: the prefix is gone.
    fn remove_cluster_ip(&mut self, key: &ClusterIpKey<A>) -> MapResult;
    /// SOURCE_RANGES: a source that may reach a service port.
    fn insert_source_range(&mut self, key: &SourceRangeKey<A>) -> MapResult;
    /// SOURCE_RANGES: the range is gone.
    fn remove_source_range(&mut self, key: &SourceRangeKey<A>) -> MapResult;

    /// All of FRONTEND_IDS, in any order (restore, audit).
    fn frontend_ids(&self) -> Vec<(FrontendKey<A>, u32)>;
    /// One element of FRONTENDS.
    fn frontend(&self, id: u32) -> Option<Frontend<A>>;
    /// One element of BACKENDS.
    fn backend(&self, id: u32) -> Option<Backend<A>>;
    /// All of NODE_ADDRESSES.
    fn node_addresses(&self) -> Vec<(A, u32)>;
    /// All of CLUSTER_IPS.
    fn cluster_ips(&self) -> Vec<(ClusterIpKey<A>, u32)>;
    /// All of SOURCE_RANGES.
    fn source_ranges(&self) -> Vec<SourceRangeKey<A>>;

    /// FRONTEND_COUNTS: the id is about to be somebody else's. Not a write that anything waits for.
    fn forget_frontend_counts(&mut self, id: u32);
    /// BACKEND_COUNTS: as above.
    fn forget_backend_counts(&mut self, id: u32);
    /// One element of FRONTEND_COUNTS.
    fn frontend_counts(&self, id: u32) -> FrontendCounts;
    /// One element of BACKEND_COUNTS.
    fn backend_counts(&self, id: u32) -> BackendCounts;
}

/// Sizes of the arrays that ids and regions are allocated in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Elements of FRONTENDS{4,6}.
    pub frontends: u32,
    /// Elements of BACKENDS{4,6}.
    pub backends: u32,
    /// Elements of SLOTS.
    pub slots: u32,
}

/// All maps that userspace writes.
pub trait Maps: FamilyMaps<Addr4> + FamilyMaps<Addr6> {
    /// Sizes.
    fn capacity(&self) -> Capacity;
    /// SLOTS: consecutive elements from `first` on. Never inside a published region.
    fn write_slots(&mut self, first: u32, elements: &[u64]) -> MapResult;
    /// SLOTS: one element.
    fn slot(&self, index: u32) -> Option<u64>;
    /// PORT_FILTER: one element.
    fn write_port_filter(&mut self, index: u32, bits: u64) -> MapResult;
    /// PORT_FILTER: one element.
    fn port_filter(&self, index: u32) -> Option<u64>;
    /// CONFIG.
    fn write_config(&mut self, config: &Config) -> MapResult;
    /// CONFIG.
    fn config(&self) -> Option<Config>;
    /// INTERFACES: what is known of one interface.
    fn insert_interface(&mut self, ifindex: u32, interface: &Interface) -> MapResult;
    /// INTERFACES: the interface is gone.
    fn remove_interface(&mut self, ifindex: u32) -> MapResult;
    /// Everything was read: memory that only this needed may be given back.
    fn rest(&mut self) {}
}
