//! INTERFACES: what the datapath needs to know of the node's interfaces.

use bytemuck::{Pod, Zeroable};

use crate::{Addr4, Addr6};

/// Value of INTERFACES, a hash by ifindex (`u32`). Userspace is the only writer; read when a flow
/// is created, never for an established packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Interface {
    /// [`flags`].
    pub flags: u32,
    /// MTU in bytes (L3).
    pub mtu: u32,
    /// ifindex of the bridge that this interface is a port of, or 0.
    pub bridge: u32,
    /// MAC address; zero where there is none.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
    /// Source address that masquerading would use on this interface (S-095), or unspecified.
    pub addr4: Addr4,
    /// Source address that masquerading would use on this interface (S-095), or unspecified.
    pub addr6: Addr6,
}
const _: () = assert!(size_of::<Interface>() == 40);

/// Bits of [`Interface::flags`].
pub mod flags {
    /// Our programs are attached to it.
    pub const ATTACHED: u32 = 1 << 0;
    /// A pod's interface, or a bridge with pods behind it.
    pub const POD_SIDE: u32 = 1 << 1;
    /// Packets that enter by it are pod-detected in the interface modes (S-083).
    pub const DETECTED: u32 = 1 << 2;
    /// A port of a bridge whose traffic netfilter does not see (br_netfilter 0): both directions
    /// between two ports are redirected (P-6).
    pub const BRIDGE_REDIRECT: u32 = 1 << 3;
    /// It has no MAC header (P-9).
    pub const NO_MAC: u32 = 1 << 4;
    /// It is a bridge.
    pub const BRIDGE: u32 = 1 << 5;
    /// A tunnel that fragments its own packets where a larger one is sent through it: vxlan,
    /// geneve.
    pub const TAKES_LARGER: u32 = 1 << 6;
    /// Our XDP program is attached to it natively, so XDP may send frames out by it.
    pub const XDP: u32 = 1 << 7;
}
