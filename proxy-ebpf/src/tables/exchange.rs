//! Flow tables whose place is taken by others, for larger ones or for those of another version of
//! the map ABI, while packets go on (decision 0017).
//!
//! Programs are swapped hook by hook, so for some milliseconds one packet of a connection meets an
//! old program and the next a new one. In that time programs of a transitional kind run: what they
//! write, they write to both tables, and what the new one lacks they take out of the old one. Which
//! kind a program is the loader decides by [`EXCHANGED`], a constant for the verifier: the others
//! lose all this when they are loaded.

use core::mem::offset_of;
use core::ptr;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use proxy_common::exchange::{
    ABSENT, AFFINITY_FIELDS, CONNECTION_FIELDS, OLD_VALUE_MAX, SOCKET_FIELDS,
};
use proxy_common::flow::Path;
use proxy_common::{
    Addr4, Addr6, Address, AffinityEntry, Be16, Connection, FlowKey, SocketEntry, Tuple,
};

use super::{Insert, Sighting};

/// Set by the loader in transitional programs: a bit for each table that is exchanged.
#[unsafe(no_mangle)]
static EXCHANGED: u8 = 0;

/// A value of an old table: as long as the loader's map says, with fields where the loader says.
pub type OldValue = [u64; OLD_VALUE_MAX / 8];

/// `-EEXIST`.
const EXISTS: i32 = -17;

/// Old values that are being made, one for each type: what is never written in one stays zero.
#[map]
static OLD_VALUES: PerCpuArray<OldValue> = PerCpuArray::with_max_entries(5, 0);

/// New values that are being made out of old ones.
#[map]
static NEW_VALUES: PerCpuArray<OldValue> = PerCpuArray::with_max_entries(5, 0);

/// A table, and the one whose place it takes.
#[derive(Clone, Copy)]
pub struct Table<K: 'static, V: 'static> {
    /// The table.
    pub map: &'static LruHashMap<K, V>,
    /// The old one; in programs that are not transitional an empty map that nobody uses.
    pub old: &'static LruHashMap<K, OldValue>,
    /// Its bit in [`EXCHANGED`].
    pub bit: u8,
}

/// Values whose fields the loader can tell of old tables.
pub trait Exchanged: Copy {
    /// Element of [`OLD_VALUES`] and [`NEW_VALUES`].
    const BUFFER: u32;
    /// Where old values have the field of this number, or [`ABSENT`].
    fn offset(index: usize) -> u16;
    /// Makes a value out of an old one.
    ///
    /// # Safety
    /// Both point at values, which nobody need leave alone.
    unsafe fn read(old: *const u8, to: *mut Self);
    /// Makes an old value out of one.
    ///
    /// # Safety
    /// As for [`Self::read`].
    unsafe fn write(from: *const Self, old: *mut u8);
}

impl<K, V: Exchanged> Table<K, V> {
    #[inline(always)]
    fn is_exchanged(&self) -> bool {
        // SAFETY: a plain load; volatile, since the loader replaces the value.
        unsafe { ptr::addr_of!(EXCHANGED).read_volatile() & self.bit != 0 }
    }

    /// The entry of `key`. An element may be reused while it is copied: the caller checks the tag,
    /// or lives with what another key's entry says.
    #[inline(always)]
    pub fn get(self, key: &K) -> Option<&'static V> {
        // SAFETY: elements of a table are never freed while a program runs.
        unsafe { self.get_ptr(key).map(|entry| &*entry) }
    }

    /// Where the entry of `key` is.
    #[inline(always)]
    pub fn get_ptr(self, key: &K) -> Option<*mut V> {
        if self.is_exchanged() {
            take_over(self.map, self.old, key);
        }
        self.map.get_ptr_mut(key)
    }

    /// Inserts; false if it exists (`NoExist`) or there is no room.
    #[inline(always)]
    pub fn insert(self, key: &K, value: &V, how: Insert) -> bool {
        let flags = match how {
            Insert::NoExist => BPF_NOEXIST as u64,
            Insert::Any => 0,
        };
        // Old programs know the old table alone: who is first there has won.
        if self.is_exchanged() && insert_old(self.old, key, value, flags) == EXISTS {
            return false;
        }
        self.map.insert(key, value, flags).is_ok()
    }

    /// Removes.
    #[inline(always)]
    pub fn remove(self, key: &K) {
        if self.is_exchanged() {
            // Not there: nothing to do. So below.
            let _ = self.old.remove(key);
        }
        let _ = self.map.remove(key);
    }
}

/// Puts what an old program has made into the new table, if that has nothing. It tells nothing, so
/// the verifier goes on from one state, whatever happens here.
#[inline(never)]
fn take_over<K, V: Exchanged>(
    map: &'static LruHashMap<K, V>,
    old: &'static LruHashMap<K, OldValue>,
    key: &K,
) {
    if map.get_ptr(key).is_some() {
        return;
    }
    let (Some(entry), Some(buffer)) = (old.get_ptr(key), NEW_VALUES.get_ptr_mut(V::BUFFER)) else {
        return;
    };
    let value: *mut V = buffer.cast();
    // SAFETY: the loader's offsets lie in the element, which the verifier proves; it may be reused
    // while it is copied, and tells by its tag. The buffer is this CPU's, as in `insert_old`.
    unsafe {
        V::read(entry.cast(), value);
        let value: &V = &*value;
        // There by now: another CPU has done the same.
        let _ = map.insert(key, value, BPF_NOEXIST as u64);
    }
}

/// Returns what the kernel says.
#[inline(never)]
fn insert_old<K, V: Exchanged>(
    old: &'static LruHashMap<K, OldValue>,
    key: &K,
    value: &V,
    flags: u64,
) -> i32 {
    let Some(buffer) = OLD_VALUES.get_ptr_mut(V::BUFFER) else {
        return 0;
    };
    // SAFETY: this CPU's element. A program that interrupts another between these two lines leaves
    // it another entry, whose tag tells it.
    let inserted = unsafe {
        V::write(value, buffer.cast());
        let made: &OldValue = &*buffer;
        old.insert(key, made, flags)
    };
    inserted.err().unwrap_or(0)
}

impl<A: Address> Table<FlowKey<A>, Connection<A>>
where
    Connection<A>: Exchanged,
{
    /// Tells the old table what `entry`, which is this key's, was told; and `entry` what old
    /// programs were told.
    #[inline(always)]
    pub fn touch_old(self, key: &FlowKey<A>, entry: *mut Connection<A>, sighting: Sighting) {
        if self.is_exchanged() {
            touch_old(self.old, key, entry, sighting.now);
        }
    }
}

/// Bits of `seen` that were lost come back: resets that were ignored are ignored once more.
#[inline(never)]
fn touch_old<A: Address>(
    old: &'static LruHashMap<FlowKey<A>, OldValue>,
    key: &FlowKey<A>,
    entry: *mut Connection<A>,
    now: u32,
) where
    Connection<A>: Exchanged,
{
    let Some(before) = old.get_ptr_mut(key) else {
        return;
    };
    let [tag, last_seen, seen] = [1, 2, 9].map(Connection::<A>::offset);
    if tag == ABSENT || last_seen == ABSENT || seen == ABSENT {
        return;
    }
    let before: *mut u8 = before.cast();
    // SAFETY: as in `take_over`, and as in `Tables::touch_flow`.
    unsafe {
        if before.add(tag as usize).cast::<u32>().read() != (*entry).tag {
            return;
        }
        before.add(last_seen as usize).cast::<u32>().write(now);
        let bits = before.add(seen as usize);
        (*entry).seen |= *bits;
        *bits = (*entry).seen;
    }
}

/// One field between a value and an old one, or nothing where the old one lacks it.
macro_rules! fields {
    ($value:ty, $table:ident, $names:ident, $buffer:literal:
     $($index:literal $field:ident $type:ty),*) => {
        /// Offsets of the fields in old values: set by the loader in transitional programs.
        #[unsafe(no_mangle)]
        static $table: [u16; $names.len()] = [$(offset_of!($value, $field) as u16),*];
        $(const _: () = assert!(is_same(stringify!($field), $names[$index]));)*

        impl Exchanged for $value {
            const BUFFER: u32 = $buffer;

            #[inline(always)]
            fn offset(index: usize) -> u16 {
                // SAFETY: a plain load; volatile, since the loader replaces the values.
                unsafe { ptr::addr_of!($table[index]).read_volatile() }
            }

            #[inline(always)]
            unsafe fn read(old: *const u8, to: *mut Self) {
                // SAFETY: the caller's; a field that is absent is zero, as every type here may be.
                unsafe {
                    $(
                        let field = ptr::addr_of_mut!((*to).$field);
                        match Self::offset($index) {
                            ABSENT => ptr::write_bytes(field, 0, 1),
                            at => *field = old.add(at as usize).cast::<$type>().read(),
                        }
                    )*
                }
            }

            #[inline(always)]
            unsafe fn write(from: *const Self, old: *mut u8) {
                // SAFETY: the caller's.
                unsafe {
                    $(
                        let at = Self::offset($index);
                        if at != ABSENT {
                            old.add(at as usize).cast::<$type>().write((*from).$field);
                        }
                    )*
                }
            }
        }
    };
}

const fn is_same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let mut index = 0;
    while index < left.len() && index < right.len() && left[index] == right[index] {
        index += 1;
    }
    index == left.len() && index == right.len()
}

macro_rules! connection {
    ($addr:ty, $table:ident, $buffer:literal) => {
        fields!(Connection<$addr>, $table, CONNECTION_FIELDS, $buffer:
            0 to Tuple<$addr>, 1 tag u32, 2 last_seen_secs u32, 3 backend u32, 4 generation u32,
            5 frontend u32, 6 path Path, 7 other_path Path, 8 flags u16, 9 seen u8,
            10 began_secs u32, 11 packets u64, 12 bytes u64);
    };
}
connection!(Addr4, OLD_CONNECTION4, 0);
connection!(Addr6, OLD_CONNECTION6, 1);
fields!(AffinityEntry, OLD_AFFINITY, AFFINITY_FIELDS, 2:
    0 backend u32, 1 generation u32, 2 last_used_secs u32, 3 tag u32);
fields!(SocketEntry<Addr4>, OLD_SOCKET4, SOCKET_FIELDS, 3:
    0 addr Addr4, 1 port Be16, 2 backend u32, 3 generation u32);
fields!(SocketEntry<Addr6>, OLD_SOCKET6, SOCKET_FIELDS, 4:
    0 addr Addr6, 1 port Be16, 2 backend u32, 3 generation u32);
