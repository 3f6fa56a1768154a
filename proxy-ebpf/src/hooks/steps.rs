//! The steps of the path as subprograms, for every hook that sees packets.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use proxy_common::Counter;

use super::environment::{KernelEnvironment, Raw};
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

/// The steps as subprograms on a context: their stack frames do not add up, nor do those of the
/// families.
macro_rules! subprograms {
    ($context:ty) => {
        subprograms!(
            $context,
            Subprograms4,
            V4,
            fast4,
            begin4,
            quote4,
            unreadable4,
            track4,
            refresh4,
            choose4,
            create4,
            finish4,
            answer4,
            tell4
        );
        subprograms!(
            $context,
            Subprograms6,
            V6,
            fast6,
            begin6,
            quote6,
            unreadable6,
            track6,
            refresh6,
            choose6,
            create6,
            finish6,
            answer6,
            tell6
        );
    };
    (
        $context:ty, $name:ident, $family:ty, $fast:ident, $begin:ident, $quote:ident,
        $unreadable:ident, $track:ident, $refresh:ident, $choose:ident, $create:ident,
        $finish:ident, $answer:ident, $tell:ident
    ) => {
        struct $name {
            ctx: $context,
            hook: u32,
            l3: u32,
        }

        impl Steps for $name {
            #[inline(always)]
            fn fast(&mut self) -> Step {
                unpack($fast(self.ctx, self.hook, self.l3))
            }

            #[inline(always)]
            fn begin(&mut self) -> Step {
                unpack($begin(self.ctx, self.hook, self.l3))
            }

            #[inline(always)]
            fn quote(&mut self) -> Step {
                unpack($quote(self.ctx, self.hook))
            }

            #[inline(always)]
            fn unreadable(&mut self, reason: Counter) -> Step {
                unpack($unreadable(
                    self.ctx,
                    self.l3,
                    pack(Step::Unreadable(reason)),
                ))
            }

            #[inline(always)]
            fn track(&mut self) -> Step {
                unpack($track(self.ctx, self.hook))
            }

            #[inline(always)]
            fn refresh(&mut self) -> Step {
                unpack($refresh(self.ctx, self.hook))
            }

            #[inline(always)]
            fn choose(&mut self) -> Step {
                unpack($choose(self.ctx, self.hook))
            }

            #[inline(always)]
            fn create(&mut self) -> Step {
                unpack($create(self.ctx, self.hook))
            }

            #[inline(always)]
            fn finish(&mut self) -> Step {
                unpack($finish(self.ctx, self.hook))
            }

            #[inline(always)]
            fn answer(&mut self, reason: Counter, answer: Answer) -> Step {
                unpack($answer(
                    self.ctx,
                    self.l3,
                    pack(Step::Answer(reason, answer)),
                ))
            }

            #[inline(always)]
            fn tell(&mut self, step: Step) {
                $tell(self.ctx, self.hook, self.l3, pack(step));
            }
        }

        #[inline(never)]
        fn $fast(ctx: $context, hook: u32, l3: u32) -> u64 {
            pack(steps::fast::<$family, _>(ctx, hook, l3))
        }

        #[inline(never)]
        fn $begin(ctx: $context, hook: u32, l3: u32) -> u64 {
            pack(steps::begin::<$family, _>(ctx, hook, l3))
        }

        #[inline(never)]
        fn $quote(ctx: $context, hook: u32) -> u64 {
            pack(steps::quote::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $unreadable(ctx: $context, l3: u32, step: u64) -> u64 {
            pack(steps::unreadable::<$family, _>(ctx, l3, unpack(step)))
        }

        #[inline(never)]
        fn $track(ctx: $context, hook: u32) -> u64 {
            pack(steps::track::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $refresh(ctx: $context, hook: u32) -> u64 {
            pack(steps::refresh::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $choose(ctx: $context, hook: u32) -> u64 {
            pack(steps::choose::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $create(ctx: $context, hook: u32) -> u64 {
            pack(steps::create::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $finish(ctx: $context, hook: u32) -> u64 {
            pack(steps::finish::<$family, _>(ctx, hook))
        }

        #[inline(never)]
        fn $answer(ctx: $context, l3: u32, step: u64) -> u64 {
            pack(steps::answer::<$family, _>(ctx, l3, unpack(step)))
        }

        #[inline(never)]
        fn $tell(ctx: $context, hook: u32, l3: u32, step: u64) {
            steps::tell::<$family, _>(ctx, hook, l3, unpack(step));
        }
    };
}
pub(super) use subprograms;

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

/// [`tell::ended`].
#[inline(always)]
pub fn tell<F: Family, C: Context>(ctx: C, hook: u32, l3: u32, step: Step)
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

/// The scratch map has an element for each hook: this never happens.
const NO_SCRATCH: Step = Step::End(Verdict::Pass, Counter::Unconfigured);

/// One of two constants, so that the verifier knows the offset.
#[inline(always)]
fn l3_offset(l3: u32) -> usize {
    if l3 == 0 { 0 } else { ethernet::LEN }
}
