//! SOCKETS{4,6}: what the socket hooks remember of translated sockets.

use crate::{Address, Be16, pod};

/// Key of SOCKETS (LRU hash): a socket and an address it talks to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketKey<A: Address> {
    /// Socket cookie, low half first.
    pub cookie: [u32; 2],
    /// Address.
    pub addr: A,
    /// Port.
    pub port: Be16,
    /// IP protocol.
    pub protocol: u8,
    /// [`PEER_IS_BACKEND`] or [`PEER_IS_FRONTEND`]: what `addr` is.
    pub peer: u8,
}
pod!(SocketKey<A>, 16, 28);

/// The key is a backend, the value the frontend that was dialed (getpeername, recvmsg).
pub const PEER_IS_BACKEND: u8 = 0;
/// The key is a frontend, the value the backend chosen (stickiness of unconnected UDP, S-205).
pub const PEER_IS_FRONTEND: u8 = 1;

/// Value of SOCKETS.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketEntry<A: Address> {
    /// Address.
    pub addr: A,
    /// Port.
    pub port: Be16,
    /// Zero.
    pub pad: u16,
    /// BackendId.
    pub backend: u32,
    /// The backend's generation at the decision.
    pub generation: u32,
}
pod!(SocketEntry<A>, 16, 28);
