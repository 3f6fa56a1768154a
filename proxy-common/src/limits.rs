//! Sizes of maps and bounds of loops. Each says what happens at the limit.

/// Prefixes of one family around ServiceCIDRs and ClusterIPs; more of these are put together.
pub const SERVICE_CIDRS_MAX: usize = 4;

/// Elements of FRONTENDS{4,6}, FRONTEND_COUNTS{4,6} and entries of FRONTEND_IDS{4,6} by default. A
/// further frontend is not programmed, counted and reported on its Service.
pub const FRONTENDS_DEFAULT: u32 = 1 << 16;
/// Elements of BACKENDS{4,6} and BACKEND_COUNTS{4,6} by default. A further backend: as above.
pub const BACKENDS_DEFAULT: u32 = 1 << 18;
/// Elements of SLOTS by default. A region that does not fit: as above.
pub const SLOTS_DEFAULT: u32 = 1 << 20;
/// Entries of FLOWS{4,6} by default. LRU: the longest unused entries go.
pub const FLOWS_DEFAULT: u32 = 1 << 18;
/// Entries of HANDSHAKES{4,6} by default. LRU: a flood evicts handshakes, never established flows.
pub const HANDSHAKES_DEFAULT: u32 = 1 << 16;
/// Entries of AFFINITY{4,6} by default. LRU.
pub const AFFINITY_DEFAULT: u32 = 1 << 16;
/// Entries of FRAGMENTS{4,6}. LRU: a datagram whose entry is gone loses its later fragments.
pub const FRAGMENTS_MAX: u32 = 1 << 13;
/// Entries of SOCKETS{4,6} by default. LRU.
pub const SOCKETS_DEFAULT: u32 = 1 << 16;
/// Entries of NODE_ADDRESSES{4,6}. A further address is reported and serves no NodePort.
pub const NODE_ADDRESSES_MAX: u32 = 1 << 12;
/// Entries of CLUSTER_IPS{4,6} by default.
pub const CLUSTER_IPS_DEFAULT: u32 = 1 << 17;
/// Entries of SOURCE_RANGES{4,6} by default.
pub const SOURCE_RANGES_DEFAULT: u32 = 1 << 16;
/// Entries of INTERFACES. A further interface is reported and gets no program.
pub const INTERFACES_MAX: u32 = 1 << 14;

/// IPv6 extension headers walked: beyond, `TooManyHeaders`.
pub const EXT_HEADERS_MAX: usize = 6;
/// Backends of a set that are looked at for a new flow, where some cannot take it: beyond,
/// `BackendGone`, or `HostOwnAddress` where only addresses of this node were seen.
pub const PICK_TRIES_MAX: u32 = 4;
/// Answers to refused packets that each CPU sends in a second by default: beyond, `AnswerLimited`.
pub const ANSWERS_PER_SEC_DEFAULT: u32 = 1000;
/// SNAT ports tried before a new flow is dropped: `SnatPortsExhausted`.
pub const SNAT_TRIES_MAX: usize = 8;
/// SNAT ports that one try looks at until one is in no entry of FLOWS: the last is tried anyway.
pub const SNAT_LOOKS_MAX: usize = 4;
/// Seconds that a closed TCP connection keeps its tuple from others, as netfilter keeps one that
/// was reset: beyond, a new flow may take it.
pub const CLOSED_KEEPS_TUPLE_SECS: u32 = 10;
