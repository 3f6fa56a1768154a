//! The tables that programs write: what they remember of flows, clients and sockets. Each has one
//! beside it whose place it takes while tables are exchanged.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use proxy_common::exchange::{bits4, bits6};
use proxy_common::*;

use super::FlowTable;
use super::exchange::{OldValue, Table};
use crate::{Family, V4, V6};

/// The tables of a family.
pub trait FlowTables: Family {
    /// HANDSHAKES or FLOWS.
    fn connections(table: FlowTable) -> Table<FlowKey<Self::Addr>, Connection<Self::Addr>>;
    /// AFFINITY.
    fn affinity() -> Table<AffinityKey<Self::Addr>, AffinityEntry>;
    /// SOCKETS.
    fn sockets() -> Table<SocketKey<Self::Addr>, SocketEntry<Self::Addr>>;
}

macro_rules! family {
    (
        $family:ty, $addr:ty, $handshakes:ident, $flows:ident, $affinity:ident, $sockets:ident,
        $old_handshakes:ident, $old_flows:ident, $old_affinity:ident, $old_sockets:ident,
        $bits:ident
    ) => {
        #[map]
        static $handshakes: LruHashMap<FlowKey<$addr>, Connection<$addr>> =
            LruHashMap::with_max_entries(HANDSHAKES_DEFAULT, 0);
        #[map]
        static $flows: LruHashMap<FlowKey<$addr>, Connection<$addr>> =
            LruHashMap::with_max_entries(FLOWS_DEFAULT, 0);
        #[map]
        static $affinity: LruHashMap<AffinityKey<$addr>, AffinityEntry> =
            LruHashMap::with_max_entries(AFFINITY_DEFAULT, 0);
        #[map]
        static $sockets: LruHashMap<SocketKey<$addr>, SocketEntry<$addr>> =
            LruHashMap::with_max_entries(SOCKETS_DEFAULT, 0);
        #[map]
        static $old_handshakes: LruHashMap<FlowKey<$addr>, OldValue> =
            LruHashMap::with_max_entries(1, 0);
        #[map]
        static $old_flows: LruHashMap<FlowKey<$addr>, OldValue> =
            LruHashMap::with_max_entries(1, 0);
        #[map]
        static $old_affinity: LruHashMap<AffinityKey<$addr>, OldValue> =
            LruHashMap::with_max_entries(1, 0);
        #[map]
        static $old_sockets: LruHashMap<SocketKey<$addr>, OldValue> =
            LruHashMap::with_max_entries(1, 0);

        impl FlowTables for $family {
            #[inline(always)]
            fn connections(table: FlowTable) -> Table<FlowKey<$addr>, Connection<$addr>> {
                match table {
                    FlowTable::Handshakes => Table {
                        map: &$handshakes,
                        old: &$old_handshakes,
                        bit: $bits::HANDSHAKES,
                    },
                    FlowTable::Flows => Table {
                        map: &$flows,
                        old: &$old_flows,
                        bit: $bits::FLOWS,
                    },
                }
            }

            #[inline(always)]
            fn affinity() -> Table<AffinityKey<$addr>, AffinityEntry> {
                Table {
                    map: &$affinity,
                    old: &$old_affinity,
                    bit: $bits::AFFINITY,
                }
            }

            #[inline(always)]
            fn sockets() -> Table<SocketKey<$addr>, SocketEntry<$addr>> {
                Table {
                    map: &$sockets,
                    old: &$old_sockets,
                    bit: $bits::SOCKETS,
                }
            }
        }
    };
}

family!(
    V4,
    Addr4,
    HANDSHAKES4,
    FLOWS4,
    AFFINITY4,
    SOCKETS4,
    HANDSHAKES4_OLD,
    FLOWS4_OLD,
    AFFINITY4_OLD,
    SOCKETS4_OLD,
    bits4
);
family!(
    V6,
    Addr6,
    HANDSHAKES6,
    FLOWS6,
    AFFINITY6,
    SOCKETS6,
    HANDSHAKES6_OLD,
    FLOWS6_OLD,
    AFFINITY6_OLD,
    SOCKETS6_OLD,
    bits6
);
