//! The wrappers: what a test run runs.

use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_skb_change_tail, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::{FAILED, Plan, WRITTEN};

#[map]
static PLANS: Array<Plan> = Array::with_max_entries(1, 0);
/// What is measured at tc.
#[map]
static TC_TARGETS: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// What is measured as XDP.
#[map]
static XDP_TARGETS: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// Where the packet began at the first run of a test run: 0 before it.
#[map]
static STARTS: Array<u64> = Array::with_max_entries(1, 0);

/// Restores an skb and calls the target.
#[inline(always)]
pub fn tc(ctx: &TcContext) -> i32 {
    let Some(plan) = next() else {
        return FAILED as i32;
    };
    let skb = ctx.skb.skb;
    // SAFETY: the kernel gave the context to this program run.
    unsafe {
        if (*skb).len != plan.len && bpf_skb_change_tail(skb, plan.len, 0) != 0 {
            return FAILED as i32;
        }
        (*skb).mark = 0;
    }
    if write(plan, ctx.data(), ctx.data_end()) {
        // SAFETY: the target is of this program's type, or the call fails.
        unsafe { TC_TARGETS.tail_call(ctx, 0) };
    }
    FAILED as i32
}

/// Restores an XDP packet, where it begins and where it ends, and calls the target.
#[inline(always)]
pub fn xdp(ctx: &XdpContext) -> u32 {
    let Some(plan) = next() else {
        return FAILED;
    };
    if !restore_start(ctx) || !restore_end(ctx, plan.len) {
        return FAILED;
    }
    if write(plan, ctx.data(), ctx.data_end()) {
        // SAFETY: the target is of this program's type, or the call fails.
        unsafe { XDP_TARGETS.tail_call(ctx, 0) };
    }
    FAILED
}

#[inline(always)]
fn next() -> Option<&'static mut Plan> {
    let plan = PLANS.get_ptr_mut(0)?;
    // SAFETY: one test run at a time.
    let plan = unsafe { &mut *plan };
    plan.advance();
    Some(plan)
}

/// Moves the beginning of the packet back to where it was at the first run.
#[inline(always)]
fn restore_start(ctx: &XdpContext) -> bool {
    let Some(start) = STARTS.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: one test run at a time. The address is stored as a number, because the verifier takes
    // no difference between a packet's pointer and a number.
    let moved = unsafe {
        let first = ptr::read_volatile(start);
        ptr::write_volatile(start, ctx.data() as u64);
        let here = ptr::read_volatile(start);
        if first == 0 {
            return true;
        }
        ptr::write_volatile(start, first);
        first.wrapping_sub(here) as i32
    };
    // SAFETY: the context is the program's.
    moved == 0 || unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), moved) == 0 }
}

#[inline(always)]
fn restore_end(ctx: &XdpContext, len: u32) -> bool {
    let grown = len as i32 - (ctx.data_end() - ctx.data()) as i32;
    // SAFETY: the context is the program's.
    grown == 0 || unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast(), grown) == 0 }
}

#[inline(always)]
fn write(plan: &Plan, data: usize, end: usize) -> bool {
    if data + WRITTEN > end {
        return false;
    }
    let words: *const u64 = plan.packet.as_ptr().cast();
    for word in 0..WRITTEN / 8 {
        // SAFETY: bounds checked above; the kernel takes words at any address of a packet.
        unsafe { *(data as *mut u64).add(word) = *words.add(word) };
    }
    true
}
