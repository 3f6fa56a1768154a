//! tc ingress and egress.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_skb_change_head};
use aya_ebpf::programs::TcContext;
use proxy_common::{Be16, Counter};

use super::register::{pack, unpack};
use super::skb_environment::SkbEnvironment;
use crate::packet::bpf::SkbPacket;
use crate::pipeline::{Refusal, Step, Steps};
use crate::tables::bpf::{Maps, ScratchMap, config, count};
use crate::wire::ethernet;
use crate::{Answer, Family, Hook, Tables, V4, V6, Verdict, pipeline};

/// Runs the pipeline on an skb at `hook`; `l3` is the length of the MAC header.
#[inline(always)]
pub fn run(ctx: &TcContext, hook: Hook, l3: usize) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel gave the context to this program run.
    let protocol = Be16(unsafe { (*skb).protocol } as u16);
    if is_redirected(skb) {
        count(Counter::Redirected);
        return TC_ACT_OK;
    }
    let (verdict, reason) = if protocol == V4::ETHERTYPE {
        pipeline::run(&mut Subprograms4 {
            skb,
            hook: hook as u32,
            l3: l3 as u32,
        })
    } else if protocol == V6::ETHERTYPE {
        pipeline::run(&mut Subprograms6 {
            skb,
            hook: hook as u32,
            l3: l3 as u32,
        })
    } else {
        (Verdict::Pass, Counter::NotIp)
    };
    count(reason);
    act(skb, hook, l3, verdict)
}

/// The steps as subprograms: their stack frames do not add up, nor do those of the families.
macro_rules! subprograms {
    (
        $name:ident, $family:ty, $begin:ident, $unreadable:ident, $track:ident, $refresh:ident,
        $choose:ident, $create:ident, $finish:ident, $answer:ident
    ) => {
        struct $name {
            skb: *mut __sk_buff,
            hook: u32,
            l3: u32,
        }

        impl Steps for $name {
            #[inline(always)]
            fn begin(&mut self) -> Step {
                unpack($begin(self.skb, self.hook, self.l3))
            }

            #[inline(always)]
            fn unreadable(&mut self, reason: Counter) -> Step {
                unpack($unreadable(
                    self.skb,
                    self.l3,
                    pack(Step::Unreadable(reason)),
                ))
            }

            #[inline(always)]
            fn track(&mut self) -> Step {
                unpack($track(self.skb, self.hook))
            }

            #[inline(always)]
            fn refresh(&mut self) -> Step {
                unpack($refresh(self.skb, self.hook))
            }

            #[inline(always)]
            fn choose(&mut self) -> Step {
                unpack($choose(self.skb, self.hook))
            }

            #[inline(always)]
            fn create(&mut self) -> Step {
                unpack($create(self.skb, self.hook))
            }

            #[inline(always)]
            fn finish(&mut self) -> Step {
                unpack($finish(self.skb, self.hook))
            }

            #[inline(always)]
            fn answer(&mut self, reason: Counter, answer: Answer) -> Step {
                unpack($answer(
                    self.skb,
                    self.l3,
                    pack(Step::Answer(reason, answer)),
                ))
            }
        }

        #[inline(never)]
        fn $begin(skb: *mut __sk_buff, hook: u32, l3: u32) -> u64 {
            pack(begin::<$family>(skb, hook, l3))
        }

        #[inline(never)]
        fn $unreadable(skb: *mut __sk_buff, l3: u32, step: u64) -> u64 {
            pack(unreadable::<$family>(skb, l3, unpack(step)))
        }

        #[inline(never)]
        fn $track(skb: *mut __sk_buff, hook: u32) -> u64 {
            pack(track::<$family>(skb, hook))
        }

        #[inline(never)]
        fn $refresh(skb: *mut __sk_buff, hook: u32) -> u64 {
            pack(refresh::<$family>(skb, hook))
        }

        #[inline(never)]
        fn $choose(skb: *mut __sk_buff, hook: u32) -> u64 {
            pack(choose::<$family>(skb, hook))
        }

        #[inline(never)]
        fn $create(skb: *mut __sk_buff, hook: u32) -> u64 {
            pack(create::<$family>(skb, hook))
        }

        #[inline(never)]
        fn $finish(skb: *mut __sk_buff, hook: u32) -> u64 {
            pack(finish::<$family>(skb, hook))
        }

        #[inline(never)]
        fn $answer(skb: *mut __sk_buff, l3: u32, step: u64) -> u64 {
            pack(answer::<$family>(skb, l3, unpack(step)))
        }
    };
}

subprograms!(
    Subprograms4,
    V4,
    begin4,
    unreadable4,
    track4,
    refresh4,
    choose4,
    create4,
    finish4,
    answer4
);
subprograms!(
    Subprograms6,
    V6,
    begin6,
    unreadable6,
    track6,
    refresh6,
    choose6,
    create6,
    finish6,
    answer6
);

#[inline(always)]
fn begin<F: ScratchMap>(skb: *mut __sk_buff, hook: u32, l3: u32) -> Step {
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    // SAFETY: the kernel gave the context to this program run.
    let packet = unsafe { SkbPacket::new(skb, F::VERSION == 6) };
    // SAFETY: this CPU's element for this hook; nothing else runs at it until the program ends.
    let scratch = unsafe { &mut *scratch };
    pipeline::or_stop(pipeline::begin::<F, _>(&packet, scratch, l3_offset(l3)))
}

#[inline(always)]
fn unreadable<F: Family>(skb: *mut __sk_buff, l3: u32, step: Step) -> Step
where
    Maps: Tables<F>,
{
    let Step::Unreadable(reason) = step else {
        return step;
    };
    // SAFETY: the kernel gave the context to this program run.
    let packet = unsafe { SkbPacket::new(skb, F::VERSION == 6) };
    pipeline::or_stop(pipeline::unreadable::<F, _, _>(
        &packet,
        &Maps,
        l3_offset(l3),
        reason,
    ))
}

#[inline(always)]
fn track<F: ScratchMap>(skb: *mut __sk_buff, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    let env = SkbEnvironment::new(skb, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::track::<F, _, _>(&Maps, &env, unsafe {
        &mut *scratch
    }))
}

#[inline(always)]
fn refresh<F: ScratchMap>(skb: *mut __sk_buff, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    let env = SkbEnvironment::new(skb, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::refresh::<F, _, _>(&Maps, &env, unsafe {
        &mut *scratch
    }))
}

#[inline(always)]
fn choose<F: ScratchMap>(skb: *mut __sk_buff, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    let env = SkbEnvironment::new(skb, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::choose::<F, _, _>(&Maps, &env, unsafe {
        &mut *scratch
    }))
}

#[inline(always)]
fn create<F: ScratchMap>(skb: *mut __sk_buff, hook: u32) -> Step
where
    Maps: Tables<F>,
{
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    let env = SkbEnvironment::new(skb, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::create::<F, _, _>(&Maps, &env, unsafe {
        &mut *scratch
    }))
}

#[inline(always)]
fn finish<F: ScratchMap>(skb: *mut __sk_buff, hook: u32) -> Step {
    let Some(scratch) = F::scratch(hook) else {
        return NO_SCRATCH;
    };
    // SAFETY: the kernel gave the context to this program run.
    let mut packet = unsafe { SkbPacket::new(skb, F::VERSION == 6) };
    let env = SkbEnvironment::new(skb, hook);
    // SAFETY: as in `begin`.
    pipeline::or_stop(pipeline::finish::<F, _, _>(&mut packet, &env, unsafe {
        &*scratch
    }))
}

#[inline(always)]
fn answer<F: Family>(skb: *mut __sk_buff, l3: u32, step: Step) -> Step
where
    Maps: Tables<F>,
{
    let Step::Answer(reason, answer) = step else {
        return step;
    };
    // SAFETY: the kernel gave the context to this program run.
    let mut packet = unsafe { SkbPacket::new(skb, F::VERSION == 6) };
    // The hook is not asked for.
    let env = SkbEnvironment::new(skb, Hook::Ingress as u32);
    let refusal = Refusal {
        l3: l3_offset(l3),
        reason,
        answer,
    };
    pipeline::answer::<F, _, _, _>(&mut packet, &Maps, &env, refusal)
}

/// The scratch map has an element for each hook: this never happens.
const NO_SCRATCH: Step = Step::End(Verdict::Pass, Counter::Unconfigured);

/// One of two constants, so that the verifier knows the offset.
#[inline(always)]
fn l3_offset(l3: u32) -> usize {
    if l3 == 0 { 0 } else { ethernet::LEN }
}

/// True for a packet that one of our programs has redirected; its mark is cleared (P-3).
#[inline(always)]
fn is_redirected(skb: *mut __sk_buff) -> bool {
    let Some(config) = config() else { return false };
    // SAFETY: the kernel gave the context to this program run.
    unsafe {
        if (*skb).mark & config.redirect_mark == 0 {
            return false;
        }
        (*skb).mark &= !config.redirect_mark;
    }
    true
}

#[inline(always)]
fn set_redirected(skb: *mut __sk_buff) {
    if let Some(config) = config() {
        // SAFETY: the kernel gave the context to this program run.
        unsafe { (*skb).mark |= config.redirect_mark };
    }
}

#[inline(always)]
fn act(skb: *mut __sk_buff, hook: Hook, l3: usize, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_OK,
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Return => {
            set_redirected(skb);
            // What came in goes out; what a process of this node sent comes in.
            let flags = match hook {
                Hook::Ingress => 0,
                Hook::Egress => BPF_F_INGRESS as u64,
            };
            // SAFETY: the helper takes plain numbers.
            unsafe { bpf_redirect((*skb).ifindex, flags) as i32 }
        }
        Verdict::Redirect(ifindex) => {
            set_redirected(skb);
            // SAFETY: the context is the program's; no next hop given: the kernel looks it up.
            unsafe {
                if l3 == 0 && bpf_skb_change_head(skb, ethernet::LEN as u32, 0) != 0 {
                    return TC_ACT_SHOT;
                }
                bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
            }
        }
        Verdict::Deliver(ifindex) => deliver(skb, ifindex, l3),
    }
}

/// Into the ingress of `ifindex`, addressed to its MAC: else the stack takes the packet for
/// somebody else's.
#[inline(always)]
fn deliver(skb: *mut __sk_buff, ifindex: u32, l3: usize) -> i32 {
    set_redirected(skb);
    let Some(interface) = Tables::<V4>::interface(&Maps, ifindex) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the context is the program's; bounds are checked before the writes.
    unsafe {
        if l3 == 0 && bpf_skb_change_head(skb, ethernet::LEN as u32, 0) != 0 {
            return TC_ACT_SHOT;
        }
        let ethertype = (*skb).protocol as u16;
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if data + ethernet::LEN > end {
            return TC_ACT_SHOT;
        }
        ((data + ethernet::DST) as *mut [u8; 6]).write_unaligned(interface.mac);
        ((data + ethernet::ETHERTYPE) as *mut u16).write_unaligned(ethertype);
        bpf_redirect(ifindex, BPF_F_INGRESS as u64) as i32
    }
}
