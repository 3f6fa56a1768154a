//! FRONTEND_COUNTS{4,6} and BACKEND_COUNTS{4,6}: what became of new connections, by frontend and by
//! backend.
//!
//! Mmapable arrays by FrontendId and BackendId; element 0 is for connections past every frontend,
//! and means nothing. BPF adds (atomically: an element is shared by all CPUs), userspace reads, and
//! zeroes an element before its id is given to somebody else. What a connection carries is counted
//! in its own entry, and added here when that is written anyway: once a second, and when it ends.
//! So a connection that ends without saying so (UDP) may leave out its last second. What sockets
//! send past the packet path, translated at connect, is in no packet that programs see.

use bytemuck::{Pod, Zeroable};

/// Value of FRONTEND_COUNTS. What the socket hooks did counts too.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct FrontendCounts {
    /// New connections that a backend was found for.
    pub connections: u64,
    /// First packets that were refused, whether or not their sender was told (S-104).
    pub refused: u64,
    /// First packets that were dropped.
    pub dropped: u64,
}

/// Value of BACKEND_COUNTS.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct BackendCounts {
    /// New connections to it.
    pub connections: u64,
    /// Packets to it.
    pub packets_to: u64,
    /// Bytes to it, from the IP header on.
    pub bytes_to: u64,
    /// Packets from it.
    pub packets_from: u64,
    /// Bytes from it, from the IP header on.
    pub bytes_from: u64,
}
