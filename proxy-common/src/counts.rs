//! FRONTEND_COUNTS{4,6} and BACKEND_COUNTS{4,6}: what became of new connections, by frontend and by
//! backend.
//!
//! Mmapable arrays by FrontendId and BackendId; element 0 is for connections past every frontend,
//! and means nothing. BPF adds (atomically: an element is shared by all CPUs), userspace reads, and
//! zeroes an element before its id is given to somebody else. Nothing is counted on the path of a
//! packet whose flow is known.

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
}
