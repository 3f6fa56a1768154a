//! BACKENDS{4,6}: where a connection is sent.

use crate::{Address, Be16, pod};

/// Value of BACKENDS, an mmapable array by BackendId. One per service port and endpoint, never
/// shared between Services. Id 0 is never used. Userspace is the only writer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend<A: Address> {
    /// Endpoint address.
    pub addr: A,
    /// Endpoint port.
    pub port: Be16,
    /// A [`BackendState`] as number.
    pub state: u8,
    /// [`backend_flags`](self::flags).
    pub flags: u8,
    /// Moves when the endpoint is neither serving nor ready any more in this service port, and
    /// before the id is reused: UDP flows compare it (S-124, S-126).
    pub generation: u32,
    /// The service port that it belongs to (also the affinity key).
    pub service_port: u32,
}
pod!(Backend<A>, 16, 28);

impl<A: Address> Backend<A> {
    /// How often it has left both sets of its service port, modulo 32.
    #[inline(always)]
    pub const fn departures(&self) -> u8 {
        self.flags >> flags::DEPARTURES_SHIFT
    }
}

/// Bits of [`Backend::flags`].
pub mod flags {
    /// The endpoint's node is this node (S-048).
    pub const LOCAL: u8 = 1 << 0;
    /// In the Cluster set of a service port with affinity (S-103). Without affinity it is not set.
    pub const IN_CLUSTER: u8 = 1 << 1;
    /// In the Local set of a service port with affinity.
    pub const IN_LOCAL: u8 = 1 << 2;
    /// The bits above count how often the backend has left both sets, or affinity was switched off:
    /// a binding made before counts for nothing when the backend comes back.
    pub const DEPARTURES_SHIFT: u32 = 3;
}

/// State of a backend.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendState {
    /// The array element is unused.
    Free = 0,
    /// Takes new flows.
    Active = 1,
    /// Serving and terminating: keeps its flows, takes new ones only in fallback (S-062, S-065).
    Terminating = 2,
    /// Takes no new flow; kept while flows need it.
    Quarantined = 3,
}
