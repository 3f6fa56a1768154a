//! What the loader tells programs that run while flow tables are exchanged: where values of the old
//! tables have their fields. Not a part of the ABI: loader and programs are of one build.

/// Offset of a field that old values do not have.
pub const ABSENT: u16 = u16::MAX;
/// Bytes of the largest old value that these programs can make; tables with larger ones are
/// exchanged without them.
pub const OLD_VALUE_MAX: usize = 256;

/// Fields of `Connection` whose offsets `OLD_CONNECTION4` and `OLD_CONNECTION6` hold.
pub const CONNECTION_FIELDS: [&str; 13] = [
    "to",
    "tag",
    "last_seen_secs",
    "backend",
    "generation",
    "frontend",
    "path",
    "other_path",
    "flags",
    "seen",
    "began_secs",
    "packets",
    "bytes",
];
/// Fields of `AffinityEntry` whose offsets `OLD_AFFINITY` holds.
pub const AFFINITY_FIELDS: [&str; 4] = ["backend", "generation", "last_used_secs", "tag"];
/// Fields of `SocketEntry` whose offsets `OLD_SOCKET4` and `OLD_SOCKET6` hold.
pub const SOCKET_FIELDS: [&str; 4] = ["addr", "port", "backend", "generation"];

/// Bits of `EXCHANGED`: tables of IPv4 that are exchanged.
pub mod bits4 {
    /// HANDSHAKES4.
    pub const HANDSHAKES: u8 = 1 << 0;
    /// FLOWS4.
    pub const FLOWS: u8 = 1 << 1;
    /// AFFINITY4.
    pub const AFFINITY: u8 = 1 << 2;
    /// SOCKETS4.
    pub const SOCKETS: u8 = 1 << 3;
}

/// Bits of `EXCHANGED`: tables of IPv6 that are exchanged.
pub mod bits6 {
    /// HANDSHAKES6.
    pub const HANDSHAKES: u8 = 1 << 4;
    /// FLOWS6.
    pub const FLOWS: u8 = 1 << 5;
    /// AFFINITY6.
    pub const AFFINITY: u8 = 1 << 6;
    /// SOCKETS6.
    pub const SOCKETS: u8 = 1 << 7;
}
