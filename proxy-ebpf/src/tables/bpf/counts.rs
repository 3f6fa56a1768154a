//! What programs count.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use proxy_common::Counter;
use proxy_common::reasons::COUNTERS_LEN;

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_LEN, 0);

/// What one CPU has done in one second.
#[repr(C)]
#[derive(Clone, Copy)]
struct Done {
    second: u32,
    count: u32,
}

#[map]
static ANSWERS: PerCpuArray<Done> = PerCpuArray::with_max_entries(1, 0);
#[map]
static NEW_FLOWS: PerCpuArray<Done> = PerCpuArray::with_max_entries(1, 0);

/// One more.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's element; programs do not interrupt each other at these hooks, and a
        // lost count changes nothing.
        unsafe { *value += 1 };
    }
}

/// FRONTEND_COUNTS or BACKEND_COUNTS: one more in this field of the element `id`.
#[inline(always)]
pub fn add<T>(counts: &Array<T>, id: u32, field: impl FnOnce(*mut T) -> *mut u64) {
    if let Some(counts) = counts.get_ptr_mut(id) {
        // SAFETY: a field of an array's element, which is never freed.
        unsafe { add_to(field(counts), 1) };
    }
}

/// Adds to what all CPUs add to. Written as the instruction itself: what `core` has for it needs
/// a compare-and-swap, which the target lacks, and kernel 5.10 knows only the form without a
/// result.
///
/// # Safety
/// `counter` points into an element of a map.
#[inline(always)]
pub unsafe fn add_to(counter: *mut u64, amount: u64) {
    // SAFETY: the caller's; the instruction touches nothing else.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {amount}",
            counter = in(reg) counter,
            amount = in(reg) amount,
            options(nostack),
        );
    }
}

/// One more answer: true for the first `limit` in the second `now` on this CPU.
#[inline(always)]
pub fn may_answer(now: u32, limit: u32) -> bool {
    is_within(&ANSWERS, now, limit)
}

/// The same for a new flow.
#[inline(always)]
pub fn may_begin(now: u32, limit: u32) -> bool {
    is_within(&NEW_FLOWS, now, limit)
}

#[inline(always)]
fn is_within(done: &PerCpuArray<Done>, now: u32, limit: u32) -> bool {
    let Some(done) = done.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's element, as for counters.
    unsafe {
        if (*done).second != now {
            (*done).second = now;
            (*done).count = 0;
        }
        (*done).count += 1;
        (*done).count <= limit
    }
}
