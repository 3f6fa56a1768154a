//! The BPF maps.

mod carried;
mod counts;
mod events;

use core::ptr;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use proxy_common::port_filter::{PORT_FILTER_LEN, address, bit, index};
use proxy_common::*;

pub use carried::FlowEntry;
pub use counts::count;
use counts::{may_answer, may_begin};

use super::flows::FlowTables as _;
use super::{FlowTable, FrontendRead, Insert, Sighting, Tables};
use crate::pipeline::Scratch;
use crate::{Family, Hook, V4, V6};

const MMAPABLE: u32 = BPF_F_MMAPABLE;
const NO_PREALLOC: u32 = BPF_F_NO_PREALLOC;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, MMAPABLE);
#[map]
static PORT_FILTER: Array<u64> = Array::with_max_entries(PORT_FILTER_LEN, MMAPABLE);
#[map]
static SLOTS: Array<u64> = Array::with_max_entries(SLOTS_DEFAULT, MMAPABLE);
#[map]
static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(INTERFACES_MAX, NO_PREALLOC);

/// Data of a SOURCE_RANGES key behind the prefix length.
#[repr(C)]
#[derive(Clone, Copy)]
struct SourceRangeData<A> {
    service_port: u32,
    addr: A,
}

/// The maps of this object.
#[derive(Clone, Copy)]
pub struct Maps;

/// Hooks that see packets.
const HOOKS: u32 = Hook::Xdp as u32 + 1;

/// What the steps of one packet share: an element per hook, so that a packet sent from within
/// another's processing on this CPU has its own.
#[map]
static SCRATCH4: PerCpuArray<Scratch<V4>> = PerCpuArray::with_max_entries(HOOKS, 0);
#[map]
static SCRATCH6: PerCpuArray<Scratch<V6>> = PerCpuArray::with_max_entries(HOOKS, 0);

/// Access to the scratch element of a family.
pub trait ScratchMap: Family {
    /// The element of `hook` on this CPU.
    fn scratch(hook: u32) -> Option<*mut Scratch<Self>>;
}

impl ScratchMap for V4 {
    #[inline(always)]
    fn scratch(hook: u32) -> Option<*mut Scratch<V4>> {
        SCRATCH4.get_ptr_mut(hook)
    }
}

impl ScratchMap for V6 {
    #[inline(always)]
    fn scratch(hook: u32) -> Option<*mut Scratch<V6>> {
        SCRATCH6.get_ptr_mut(hook)
    }
}

/// Where a field of an element is.
macro_rules! field {
    ($name:ident) => {
        // SAFETY: nothing is read.
        |element| unsafe { ptr::addr_of_mut!((*element).$name) }
    };
}

macro_rules! family {
    (
        $family:ty, $addr:ty, $frontend_ids:ident, $frontends:ident, $backends:ident,
        $node_addresses:ident, $cluster_ips:ident, $source_ranges:ident, $fragments:ident,
        $frontend_counts:ident, $backend_counts:ident
    ) => {
        #[map]
        static $frontend_ids: HashMap<FrontendKey<$addr>, u32> =
            HashMap::with_max_entries(FRONTENDS_DEFAULT, NO_PREALLOC);
        #[map]
        static $frontends: Array<Frontend<$addr>> =
            Array::with_max_entries(FRONTENDS_DEFAULT, MMAPABLE);
        #[map]
        static $backends: Array<Backend<$addr>> =
            Array::with_max_entries(BACKENDS_DEFAULT, MMAPABLE);
        #[map]
        static $node_addresses: HashMap<$addr, u32> =
            HashMap::with_max_entries(NODE_ADDRESSES_MAX, NO_PREALLOC);
        #[map]
        static $cluster_ips: LpmTrie<$addr, u32> =
            LpmTrie::with_max_entries(CLUSTER_IPS_DEFAULT, NO_PREALLOC);
        #[map]
        static $source_ranges: LpmTrie<SourceRangeData<$addr>, u32> =
            LpmTrie::with_max_entries(SOURCE_RANGES_DEFAULT, NO_PREALLOC);
        #[map]
        static $fragments: LruHashMap<FragmentKey<$addr>, FragmentPorts> =
            LruHashMap::with_max_entries(FRAGMENTS_MAX, 0);
        #[map]
        static $frontend_counts: Array<FrontendCounts> =
            Array::with_max_entries(FRONTENDS_DEFAULT, MMAPABLE);
        #[map]
        static $backend_counts: Array<BackendCounts> =
            Array::with_max_entries(BACKENDS_DEFAULT, MMAPABLE);

        impl Tables<$family> for Maps {
            type Entry = FlowEntry<$addr>;

            #[inline(always)]
            fn config(&self) -> Option<&Config> {
                CONFIG
                    .get(0)
                    .filter(|config| config.abi_version == ABI_VERSION)
            }

            #[inline(always)]
            fn port_known(&self, protocol: u8, side: Side, port: u16) -> bool {
                let Some(index) = index(protocol, side, port) else {
                    return false;
                };
                PORT_FILTER
                    .get(index)
                    .is_some_and(|bits| *bits & bit(port) != 0)
            }

            #[inline(always)]
            fn address_known(&self, addr: &$addr) -> bool {
                let (index, bit) = address(addr);
                PORT_FILTER.get(index).is_some_and(|bits| *bits & bit != 0)
            }

            #[inline(always)]
            fn entry(
                &self,
                table: FlowTable,
                key: &FlowKey<$addr>,
                found: &mut Connection<$addr>,
            ) -> Option<Self::Entry> {
                let entry = <$family>::connections(table).get_ptr(key)?;
                Some(FlowEntry::read(entry, found))
            }

            #[inline(always)]
            fn carry(&self, entry: Self::Entry, bytes: u32) {
                entry.carry(bytes);
            }

            #[inline(always)]
            fn see(&self, entry: Self::Entry, now: u32, bytes: u32) {
                entry.see(now, bytes, &$backends, &$backend_counts);
            }

            #[inline(always)]
            fn insert_flow(
                &self,
                table: FlowTable,
                key: &FlowKey<$addr>,
                value: &Connection<$addr>,
                how: Insert,
            ) -> bool {
                <$family>::connections(table).insert(key, value, how)
            }

            #[inline(always)]
            fn remove_flow(&self, table: FlowTable, key: &FlowKey<$addr>) {
                <$family>::connections(table).remove(key);
            }

            #[inline(always)]
            fn touch_flow(
                &self,
                table: FlowTable,
                key: &FlowKey<$addr>,
                sighting: Sighting,
            ) -> bool {
                let table = <$family>::connections(table);
                let Some(entry) = table.map.get_ptr_mut(key) else {
                    return false;
                };
                // SAFETY: the pointer is valid for the program run; several CPUs may store the same
                // facts at once. A FIN bit lost to another CPU's costs a longer lifetime: kernel
                // 5.10 has no atomic or.
                unsafe {
                    if (*entry).tag != key.tag() {
                        return false;
                    }
                    (*entry).seen = sighting.on((*entry).seen);
                }
                FlowEntry(entry).see(sighting.now, sighting.bytes, &$backends, &$backend_counts);
                table.touch_old(key, entry, sighting);
                true
            }

            #[inline(always)]
            fn frontend_id(&self, key: &FrontendKey<$addr>) -> Option<u32> {
                // SAFETY: the element may be reused: the caller compares the frontend's key.
                unsafe { $frontend_ids.get(key).copied() }
            }

            #[inline(always)]
            fn frontend(&self, id: u32) -> Option<FrontendRead<$family>> {
                let element = $frontends.get_ptr(id)?;
                // SAFETY: array elements are never freed. The word is one aligned 8-byte load that
                // pairs with userspace's release store; what is indexed by it depends on it.
                unsafe {
                    Some(FrontendRead {
                        word: ptr::addr_of!((*element).word).read_volatile(),
                        key: (*element).key,
                    })
                }
            }

            #[inline(always)]
            fn slot(&self, index: u32) -> Option<u64> {
                SLOTS.get(index).copied()
            }

            #[inline(always)]
            fn backend(&self, id: u32) -> Option<Backend<$addr>> {
                $backends.get(id).copied()
            }

            #[inline(always)]
            fn node_address(&self, addr: &$addr) -> u32 {
                // SAFETY: a reused element gives wrong flags for one new flow at worst.
                unsafe { $node_addresses.get(addr).copied().unwrap_or(0) }
            }

            #[inline(always)]
            fn cluster_ip(&self, addr: &$addr) -> u32 {
                $cluster_ips
                    .get(Key::new(<$addr as Address>::BITS, *addr))
                    .copied()
                    .unwrap_or(0)
            }

            #[inline(always)]
            fn source_range(&self, service_port: u32, addr: &$addr) -> bool {
                let data = SourceRangeData {
                    service_port,
                    addr: *addr,
                };
                $source_ranges
                    .get(Key::new(<$addr as Address>::BITS + 32, data))
                    .is_some()
            }

            #[inline(always)]
            fn interface(&self, ifindex: u32) -> Option<Interface> {
                // SAFETY: as for node addresses.
                unsafe { INTERFACES.get(ifindex).copied() }
            }

            #[inline(always)]
            fn affinity(&self, key: &AffinityKey<$addr>) -> Option<AffinityEntry> {
                <$family>::affinity().get(key).copied()
            }

            #[inline(always)]
            fn insert_affinity(&self, key: &AffinityKey<$addr>, value: &AffinityEntry) {
                // No room: the next flow of this client is decided for itself.
                let _ = <$family>::affinity().insert(key, value, Insert::Any);
            }

            #[inline(always)]
            fn may_answer(&self, now: u32, limit: u32) -> bool {
                may_answer(now, limit)
            }

            #[inline(always)]
            fn may_begin(&self, now: u32, limit: u32) -> bool {
                may_begin(now, limit)
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$addr>) -> Option<FragmentPorts> {
                // SAFETY: a reused element gives wrong ports, and so no flow.
                unsafe { $fragments.get(key).copied() }
            }

            #[inline(always)]
            fn insert_fragment(&self, key: &FragmentKey<$addr>, ports: &FragmentPorts) {
                // No room: the later fragments are counted as unknown.
                let _ = $fragments.insert(key, ports, 0);
            }

            #[inline(always)]
            fn socket(&self, key: &SocketKey<$addr>) -> Option<SocketEntry<$addr>> {
                <$family>::sockets().get(key).copied()
            }

            #[inline(always)]
            fn insert_socket(&self, key: &SocketKey<$addr>, value: &SocketEntry<$addr>) {
                // No room: the socket sees the backend's address.
                let _ = <$family>::sockets().insert(key, value, Insert::Any);
            }

            #[inline(always)]
            fn monitor(&self) -> Option<Monitor> {
                events::monitor()
            }

            #[inline(always)]
            fn tell(&self, event: &Event) {
                events::tell(event);
            }

            #[inline(always)]
            fn count(&self, counter: Counter) {
                count(counter);
            }

            #[inline(always)]
            fn count_connection(&self, frontend: u32, backend: u32, bytes: u32) {
                counts::add(&$frontend_counts, frontend, field!(connections));
                let Some(counts) = $backend_counts.get_ptr_mut(backend) else {
                    return;
                };
                // SAFETY: fields of an array's element, which is never freed.
                unsafe {
                    counts::add_to(ptr::addr_of_mut!((*counts).connections), 1);
                    if bytes != 0 {
                        counts::add_to(ptr::addr_of_mut!((*counts).packets_to), 1);
                        counts::add_to(ptr::addr_of_mut!((*counts).bytes_to), bytes.into());
                    }
                }
            }

            #[inline(always)]
            fn count_refused(&self, frontend: u32) {
                counts::add(&$frontend_counts, frontend, field!(refused));
            }

            #[inline(always)]
            fn count_dropped(&self, frontend: u32) {
                counts::add(&$frontend_counts, frontend, field!(dropped));
            }
        }
    };
}

family!(
    V4,
    Addr4,
    FRONTEND_IDS4,
    FRONTENDS4,
    BACKENDS4,
    NODE_ADDRESSES4,
    CLUSTER_IPS4,
    SOURCE_RANGES4,
    FRAGMENTS4,
    FRONTEND_COUNTS4,
    BACKEND_COUNTS4
);
family!(
    V6,
    Addr6,
    FRONTEND_IDS6,
    FRONTENDS6,
    BACKENDS6,
    NODE_ADDRESSES6,
    CLUSTER_IPS6,
    SOURCE_RANGES6,
    FRAGMENTS6,
    FRONTEND_COUNTS6,
    BACKEND_COUNTS6
);

/// The agent's configuration, or `None` before it is written.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG
        .get(0)
        .filter(|config| config.abi_version == ABI_VERSION)
}
