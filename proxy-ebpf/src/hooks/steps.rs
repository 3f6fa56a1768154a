//! The steps of the path on a context of the kernel, for every hook that sees packets.

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use proxy_common::Counter;

use super::environment::{KernelEnvironment, Raw};
use super::log::{self, Seen};
use crate::packet::bpf::SkbPacket;
use crate::packet::xdp::XdpPacket;
use crate::pipeline::{Refusal, Step};
use crate::tables::bpf::{Maps, ScratchMap};
use crate::wire::ethernet;
use crate::{Family, Hook, Packet, Tables, Verdict, pipeline, tell};

/// What the kernel gives a program that runs on a packet.
pub trait Context: Raw {
    /// The packet in it.
    type Packet: Packet;

    /// The packet, of this family, without more of it made readable than is.
    ///
    /// # Safety
    /// The kernel gave the context to this program run.
    unsafe fn packet_as_it_is<F: Family>(self) -> Self::Packet;

    /// The packet, of this family.
    ///
    /// # Safety
    /// The kernel gave the context to this program run.
    #[inline(always)]
    unsafe fn packet<F: Family>(self) -> Self::Packet {
        // SAFETY: the caller's.
        unsafe { self.packet_as_it_is::<F>() }
    }
}

impl Context for *mut __sk_buff {
    type Packet = SkbPacket;

    #[inline(always)]
    unsafe fn packet_as_it_is<F: Family>(self) -> SkbPacket {
        // SAFETY: the caller's.
        unsafe { SkbPacket::as_it_is(self, F::VERSION == 6) }
    }

    #[inline(always)]
    unsafe fn packet<F: Family>(self) -> SkbPacket {
        // SAFETY: the caller's.
        unsafe { SkbPacket::new(self, F::VERSION == 6) }
    }
}

impl Context for *mut xdp_md {
    type Packet = XdpPacket;

    #[inline(always)]
    unsafe fn packet_as_it_is<F: Family>(self) -> XdpPacket {
        // SAFETY: the caller's.
        unsafe { XdpPacket::new(self) }
    }
}

/// [`pipeline::fast`].
#[inline(always)]
pub fn fast<F: Family, C: Context>(ctx: C, hook: u32, l3: u32) -> Step
where
    Maps: Tables<F>,
{
    // SAFETY: the kernel gave the context to this program run.
    let mut packet = unsafe { ctx.packet_as_it_is::<F>() };
    let env = KernelEnvironment::new(ctx, hook);
    pipeline::or_stop(pipeline::fast::<F, _, _, _>(
        &mut packet,
        &Maps,
        &env,
        l3_offset(l3),
    ))
}

/// [`pipeline::begin`].
#[inline(always)]
pub fn begin<F: ScratchMap, C: Context>(ctx: C, hook: u32, l3: u32) -> Step {
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    // SAFETY: the kernel gave the context to this program run.
    let packet = unsafe { ctx.packet::<F>() };
    // SAFETY: this CPU's element for this hook; nothing else runs at it until the program ends.
    let scratch = unsafe { &mut *scratch };
    pipeline::or_stop(pipeline::begin::<F, _>(&packet, scratch, l3_offset(l3)))
}

/// [`pipeline::quote`].
#[inline(always)]
pub fn quote<F: ScratchMap, C: Context>(ctx: C, hook: u32) -> Step {
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    // SAFETY: the kernel gave the context to this program run.
    let packet = unsafe { ctx.packet::<F>() };
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::quote::<F, _>(&packet, unsafe { &mut *scratch }))
}

/// [`pipeline::unreadable`].
#[inline(always)]
pub fn unreadable<F: Family, C: Context>(ctx: C, l3: u32, step: Step) -> Step
where
    Maps: Tables<F>,
{
    let Step::Unreadable(reason) = step else {
        return step;
    };
    // SAFETY: the kernel gave the context to this program run.
    let packet = unsafe { ctx.packet::<F>() };
    pipeline::or_stop(pipeline::unreadable::<F, _, _>(
        &packet,
        &Maps,
        l3_offset(l3),
        reason,
    ))
}

/// [`pipeline::track`].
#[inline(always)]
pub fn track<F: ScratchMap, C: Context>(ctx: C, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    let env = KernelEnvironment::new(ctx, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::track::<F, _, _>(&Maps, &env, unsafe {
        &mut *scratch
    }))
}

/// [`pipeline::refresh`].
#[inline(always)]
pub fn refresh<F: ScratchMap, C: Context>(ctx: C, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    let env = KernelEnvironment::new(ctx, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::refresh::<F, _, _>(&Maps, &env, unsafe {
        &mut *scratch
    }))
}

/// [`pipeline::choose`].
#[inline(always)]
pub fn choose<F: ScratchMap, C: Context>(ctx: C, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    let env = KernelEnvironment::new(ctx, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::choose::<F, _, _>(&Maps, &env, unsafe {
        &mut *scratch
    }))
}

/// [`pipeline::create`].
#[inline(always)]
pub fn create<F: ScratchMap, C: Context>(ctx: C, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    let env = KernelEnvironment::new(ctx, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::create::<F, _, _>(&Maps, &env, unsafe {
        &mut *scratch
    }))
}

/// [`pipeline::finish`].
#[inline(always)]
pub fn finish<F: ScratchMap, C: Context>(ctx: C, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    // SAFETY: the kernel gave the context to this program run.
    let mut packet = unsafe { ctx.packet::<F>() };
    let env = KernelEnvironment::new(ctx, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::finish::<F, _, _, _>(
        &mut packet,
        &Maps,
        &env,
        unsafe { &mut *scratch },
    ))
}

/// [`pipeline::answer`].
#[inline(always)]
pub fn answer<F: Family, C: Context>(ctx: C, l3: u32, step: Step) -> Step
where
    Maps: Tables<F>,
{
    let Step::Answer(reason, answer) = step else {
        return step;
    };
    // SAFETY: the kernel gave the context to this program run.
    let mut packet = unsafe { ctx.packet::<F>() };
    // The hook is not asked for.
    let env = KernelEnvironment::new(ctx, Hook::Ingress as u32);
    let refusal = Refusal {
        l3: l3_offset(l3),
        reason,
        answer,
    };
    pipeline::answer::<F, _, _, _>(&mut packet, &Maps, &env, refusal)
}

/// [`tell::begun`].
#[inline(always)]
pub fn tell_begun<F: ScratchMap, C: Context>(ctx: C, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    let env = KernelEnvironment::new(ctx, hook);
    // SAFETY: as in `begin`.
    tell::begun(&Maps, &env, unsafe { &(*scratch).entries });
    Step::Finish
}

/// [`tell::ended`].
#[inline(always)]
pub fn tell_ended<F: Family, C: Context>(ctx: C, hook: u32, l3: u32, step: Step)
where
    Maps: Tables<F>,
{
    let env = KernelEnvironment::new(ctx, hook);
    let Some(end) = tell::wanted::<F, _, _>(&Maps, &env, step) else {
        return;
    };
    // SAFETY: the kernel gave the context to this program run.
    let packet = unsafe { ctx.packet_as_it_is::<F>() };
    tell::ended::<F, _, _, _>(&packet, &Maps, &env, end, l3_offset(l3));
}

/// Logs what [`tell_begun`] tells.
#[inline(always)]
pub fn log_begun<F: ScratchMap, C: Context>(ctx: C, hook: u32) {
    let Some(scratch) = F::scratch(hook) else {
        return;
    };
    // SAFETY: as in `begin`.
    log::begun::<F>(Seen::at(ctx, hook), unsafe { &(*scratch).entries });
}

/// Logs what [`tell_ended`] tells.
#[inline(always)]
pub fn log_ended<F: ScratchMap, C: Context>(ctx: C, hook: u32, l3: u32, step: Step) {
    let (Some(end), Some(scratch)) = (tell::End::of(step), F::scratch(hook)) else {
        return;
    };
    if !log::wants_end(end) {
        return;
    }
    // SAFETY: the kernel gave the context to this program run.
    let packet = unsafe { ctx.packet_as_it_is::<F>() };
    let glance = tell::glance::<F, _>(&packet, l3_offset(l3));
    // Whatever could be read, it is the same to the verifier when it comes out of a map: nothing in
    // there is of use to a packet that ends.
    // SAFETY: as in `begin`.
    let key = unsafe {
        let key = ptr::addr_of_mut!((*scratch).entries.key);
        (*key).tuple = glance.tuple;
        (*key).protocol = glance.protocol;
        key.read_volatile()
    };
    log::ended::<F>(Seen::at(ctx, hook), end, &key);
}

/// The scratch map has an element for each hook: this never happens.
const NO_SCRATCH: Step = Step::End(Verdict::Pass, Counter::Unconfigured);

/// One of two constants, so that the verifier knows the offset.
#[inline(always)]
fn l3_offset(l3: u32) -> usize {
    if l3 == 0 { 0 } else { ethernet::LEN }
}
