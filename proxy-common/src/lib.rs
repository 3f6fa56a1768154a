//! The map ABI: every key and value that the BPF programs and the agent share, and nothing else.
//!
//! Rules: fields hold network byte order where the type says so ([`Be16`], [`Be32`]) and host
//! order otherwise; padding is a named field; no `enum`, `bool` or `usize` inside a value; every
//! layout is proven where it is defined and dumped by [`layout`].
#![no_std]

pub mod address;
pub mod backend;
pub mod config;
pub mod counts;
pub mod event;
pub mod exchange;
pub mod flow;
pub mod frontend;
pub mod interface;
pub mod layout;
pub mod limits;
pub mod node;
pub mod port_filter;
pub mod reasons;
pub mod socket;

pub use address::{Addr4, Addr6, Address, Be16, Be32};
pub use backend::{Backend, BackendState};
pub use config::{Cidr, Config, DetectLocal, FamilyConfig};
pub use counts::{BackendCounts, FrontendCounts};
pub use event::{EVENTS_SIZE, Event, EventKind, Monitor};
pub use flow::{
    AffinityEntry, AffinityKey, Connection, FlowKey, FragmentKey, FragmentPorts, NextHop, Tuple,
};
pub use frontend::{Frontend, FrontendKey, FrontendKind, RegionHeader, RegionTail, Word};
pub use interface::Interface;
pub use limits::*;
pub use node::{ClusterIpKey, SourceRangeKey};
pub use port_filter::Side;
pub use reasons::Counter;
pub use socket::{SocketEntry, SocketKey};

/// Version of this ABI. An agent that finds pins of another version converts or refuses them.
pub const ABI_VERSION: u32 = 4 + cfg!(feature = "other-abi") as u32;
/// The oldest version that can be converted to this one and back: since then fields came and went,
/// but none has changed its meaning.
pub const ABI_OLDEST: u32 = 1;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// Proves size and alignment of a map type, and that bytemuck may treat it as bytes.
///
/// bytemuck's derive refuses generic `repr(C)` structs; this macro does by assertion what the
/// derive does by construction: the sum of the field sizes is the size, so there is no padding.
macro_rules! pod {
    ($name:ident<$a:ident>, $size4:literal, $size6:literal) => {
        // SAFETY: `repr(C)`, all fields are Pod, and the assertions below (with the size of each
        // field written at the definition) leave no room for padding.
        unsafe impl<$a: $crate::Address> bytemuck::Zeroable for $name<$a> {}
        // SAFETY: as above.
        unsafe impl<$a: $crate::Address> bytemuck::Pod for $name<$a> {}
        const _: () = assert!(size_of::<$name<$crate::Addr4>>() == $size4);
        const _: () = assert!(size_of::<$name<$crate::Addr6>>() == $size6);
    };
}
pub(crate) use pod;
