//! What connections carry: counted in their entries, and told to their backends now and then
//! (decision 0023).

use core::ptr;

use aya_ebpf::maps::Array;
use proxy_common::flow::{Carried, flags};
use proxy_common::{Address, Backend, BackendCounts, Connection};

use super::counts::add_to;

/// Where an entry of a flow table is. It stays there while the program runs; one that is reused
/// meanwhile tells by its tag.
#[derive(Clone, Copy)]
pub struct FlowEntry<A: Address>(pub(super) *mut Connection<A>);

impl<A: Address> FlowEntry<A> {
    /// Copies the element at `entry`, which is of a flow table, to `found`.
    #[inline(always)]
    pub(super) fn read(entry: *mut Connection<A>, found: &mut Connection<A>) -> Self {
        // SAFETY: an element of a map (caller).
        *found = unsafe { *entry };
        Self(entry)
    }

    /// Writes when it was seen, and reports what it has carried, and a packet of `bytes` unless
    /// they are 0. An element that was reused was seen now, or nearly.
    #[inline(always)]
    pub(super) fn see(
        self,
        now: u32,
        bytes: u32,
        backends: &'static Array<Backend<A>>,
        backend_counts: &'static Array<BackendCounts>,
    ) {
        // SAFETY: a field of an element of a map; several CPUs may store the same.
        unsafe { ptr::addr_of_mut!((*self.0).last_seen_secs).write_volatile(now) };
        report(self.0, bytes, backends, backend_counts);
    }

    /// Adds a packet of this length. An element that was reused gets a packet too many.
    #[inline(always)]
    pub(super) fn carry(self, bytes: u32) {
        // SAFETY: a field of an element of a map.
        unsafe {
            add_to(
                ptr::addr_of_mut!((*self.0).carried),
                Carried::one(bytes).pack(),
            )
        };
    }
}

/// Moves what the direction of `entry`, an element of a flow table, has carried, and a packet of
/// `bytes` unless they are 0, to its totals and to BACKEND_COUNTS, if the id is still its
/// backend's.
#[inline(always)]
fn report<A: Address>(
    entry: *mut Connection<A>,
    bytes: u32,
    backends: &'static Array<Backend<A>>,
    backend_counts: &'static Array<BackendCounts>,
) {
    // SAFETY: an element of a flow table, which stays while the program runs; what another CPU adds
    // meanwhile stays in it.
    let (new, id, generation, is_reply) = unsafe {
        let field = ptr::addr_of_mut!((*entry).carried);
        let carried = field.read_volatile();
        add_to(field, carried.wrapping_neg());
        let mut new = Carried::unpack(carried);
        if bytes != 0 {
            new.packets += 1;
            new.bytes += bytes as u64;
        }
        (*entry).packets += new.packets;
        (*entry).bytes += new.bytes;
        let is_reply = (*entry).flags & flags::REPLY != 0;
        (new, (*entry).backend, (*entry).generation, is_reply)
    };
    let is_its = backends
        .get(id)
        .is_some_and(|backend| backend.generation == generation);
    if new.packets == 0 || !is_its {
        return;
    }
    let Some(counts) = backend_counts.get_ptr_mut(id) else {
        return;
    };
    // SAFETY: fields of an array's element, which is never freed.
    unsafe {
        let (packets, bytes) = if is_reply {
            (
                ptr::addr_of_mut!((*counts).packets_from),
                ptr::addr_of_mut!((*counts).bytes_from),
            )
        } else {
            (
                ptr::addr_of_mut!((*counts).packets_to),
                ptr::addr_of_mut!((*counts).bytes_to),
            )
        };
        add_to(packets, new.packets);
        add_to(bytes, new.bytes);
    }
}
