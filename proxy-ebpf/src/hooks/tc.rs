//! tc ingress and egress.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_CURRENT_NETNS, BPF_F_INGRESS, BPF_FIB_LKUP_RET_FRAG_NEEDED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_OK, TC_ACT_SHOT, bpf_fib_lookup,
    bpf_sock, bpf_sock_tuple,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_get_prandom_u32, bpf_jiffies64, bpf_redirect,
    bpf_redirect_neigh, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_change_head,
};
use proxy_common::{Address, Be16, Counter, Tuple, protocol};

use crate::environment::RouteQuery;
use crate::packet::bpf::SkbPacket;
use crate::pipeline::{Step, Steps};
use crate::tables::bpf::{Maps, ScratchMap, config, count};
use crate::wire::ethernet;
use crate::{Answer, Environment, Family, Hook, Tables, V4, V6, Verdict, pipeline};

/// Address families as `bpf_fib_lookup` wants them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Runs the pipeline on an skb at `hook`; `l3` is the length of the MAC header.
#[inline(always)]
pub fn run(skb: *mut __sk_buff, hook: Hook, l3: usize) -> i32 {
    // SAFETY: the kernel gave the context to this program run.
    let protocol = Be16(unsafe { (*skb).protocol } as u16);
    if is_redirected(skb) {
        count(Counter::Redirected);
        return TC_ACT_OK as i32;
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
        $name:ident, $family:ty, $begin:ident, $track:ident, $refresh:ident, $create:ident, $finish:ident,
        $answer:ident
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
            fn track(&mut self) -> Step {
                unpack($track(self.skb, self.hook))
            }

            #[inline(always)]
            fn refresh(&mut self) -> Step {
                unpack($refresh(self.skb, self.hook))
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
        fn $track(skb: *mut __sk_buff, hook: u32) -> u64 {
            pack(track::<$family>(skb, hook))
        }

        #[inline(never)]
        fn $refresh(skb: *mut __sk_buff, hook: u32) -> u64 {
            pack(refresh::<$family>(skb, hook))
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
    track4,
    refresh4,
    create4,
    finish4,
    answer4
);
subprograms!(
    Subprograms6,
    V6,
    begin6,
    track6,
    refresh6,
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
fn answer<F: Family>(skb: *mut __sk_buff, l3: u32, step: Step) -> Step {
    let Step::Answer(reason, answer) = step else {
        return step;
    };
    // SAFETY: the kernel gave the context to this program run.
    let mut packet = unsafe { SkbPacket::new(skb, F::VERSION == 6) };
    pipeline::answer::<F, _>(&mut packet, l3_offset(l3), reason, answer)
}

/// The scratch map has an element for each hook: this never happens.
const NO_SCRATCH: Step = Step::End(Verdict::Pass, Counter::Unconfigured);

/// One of two constants, so that the verifier knows the offset.
#[inline(always)]
fn l3_offset(l3: u32) -> usize {
    if l3 == 0 { 0 } else { ethernet::LEN }
}

/// A subprogram returns one register: kind, detail, counter and a number.
#[inline(always)]
fn pack(step: Step) -> u64 {
    let (kind, detail, reason, number) = match step {
        Step::Create => (0, 0, 0, 0),
        Step::Finish => (1, 0, 0, 0),
        Step::Refresh => (4, 0, 0, 0),
        Step::Track => (5, 0, 0, 0),
        Step::Answer(reason, Answer::Refused) => (2, 0, reason as u64, 0),
        Step::Answer(reason, Answer::TimeExceeded) => (2, 1, reason as u64, 0),
        Step::Answer(reason, Answer::TooBig(mtu)) => (2, 2, reason as u64, mtu as u32),
        Step::End(Verdict::Pass, reason) => (3, 0, reason as u64, 0),
        Step::End(Verdict::Drop, reason) => (3, 1, reason as u64, 0),
        Step::End(Verdict::Return, reason) => (3, 2, reason as u64, 0),
        Step::End(Verdict::Redirect(ifindex), reason) => (3, 3, reason as u64, ifindex),
        Step::End(Verdict::Deliver(ifindex), reason) => (3, 4, reason as u64, ifindex),
    };
    kind << 56 | detail << 48 | reason << 32 | number as u64
}

#[inline(always)]
fn unpack(packed: u64) -> Step {
    let number = packed as u32;
    let reason = Counter::from_number((packed >> 32) as u16 as u32);
    match (packed >> 56, packed >> 48 & 0xff) {
        (0, _) => Step::Create,
        (1, _) => Step::Finish,
        (4, _) => Step::Refresh,
        (5, _) => Step::Track,
        (2, 0) => Step::Answer(reason, Answer::Refused),
        (2, 1) => Step::Answer(reason, Answer::TimeExceeded),
        (2, _) => Step::Answer(reason, Answer::TooBig(number as u16)),
        (_, 0) => Step::End(Verdict::Pass, reason),
        (_, 1) => Step::End(Verdict::Drop, reason),
        (_, 2) => Step::End(Verdict::Return, reason),
        (_, 3) => Step::End(Verdict::Redirect(number), reason),
        (_, _) => Step::End(Verdict::Deliver(number), reason),
    }
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
        Verdict::Pass => TC_ACT_OK as i32,
        Verdict::Drop => TC_ACT_SHOT as i32,
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
                    return TC_ACT_SHOT as i32;
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
        return TC_ACT_SHOT as i32;
    };
    // SAFETY: the context is the program's; bounds are checked before the writes.
    unsafe {
        if l3 == 0 && bpf_skb_change_head(skb, ethernet::LEN as u32, 0) != 0 {
            return TC_ACT_SHOT as i32;
        }
        let ethertype = (*skb).protocol as u16;
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if data + ethernet::LEN > end {
            return TC_ACT_SHOT as i32;
        }
        ((data + ethernet::DST) as *mut [u8; 6]).write_unaligned(interface.mac);
        ((data + ethernet::ETHERTYPE) as *mut u16).write_unaligned(ethertype);
        bpf_redirect(ifindex, BPF_F_INGRESS as u64) as i32
    }
}

/// The kernel around an skb.
struct SkbEnvironment {
    skb: *mut __sk_buff,
    hook: Hook,
}

impl SkbEnvironment {
    #[inline(always)]
    fn new(skb: *mut __sk_buff, hook: u32) -> Self {
        let hook = if hook == Hook::Ingress as u32 {
            Hook::Ingress
        } else {
            Hook::Egress
        };
        Self { skb, hook }
    }
}

impl<F: Family> Environment<F> for SkbEnvironment {
    #[inline(always)]
    fn hook(&self) -> Hook {
        self.hook
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel gave the context to this program run.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    fn now_secs(&self, hz: u32) -> u32 {
        // SAFETY: the helper has no arguments.
        let ticks = unsafe { bpf_jiffies64() };
        (ticks / if hz == 0 { 250 } else { hz as u64 }) as u32
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery<F>) -> Option<u32> {
        // SAFETY: zero is valid for every field.
        let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        params.l4_protocol = query.protocol;
        params.sport = query.tuple.sport.0;
        params.dport = query.tuple.dport.0;
        // SAFETY: the kernel gave the context to this program run.
        params.ifindex = unsafe { (*self.skb).ifindex };
        let (src, dst) = (query.tuple.src.words(), query.tuple.dst.words());
        if F::VERSION == 4 {
            params.family = AF_INET;
            params.__bindgen_anon_3.ipv4_src = src[0].0;
            params.__bindgen_anon_4.ipv4_dst = dst[0].0;
        } else {
            params.family = AF_INET6;
            params.__bindgen_anon_3.ipv6_src = src.map(|word| word.0);
            params.__bindgen_anon_4.ipv6_dst = dst.map(|word| word.0);
        }
        let len = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: `params` is a valid struct of the length given.
        let result = unsafe { fib_lookup(self.skb.cast(), &mut params, len, 0) } as u32;
        // The neighbour is resolved, and the size checked, elsewhere.
        match result {
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                Some(params.ifindex)
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn socket_owns(&self, tuple: &Tuple<F::Addr>, protocol: u8) -> bool {
        // SAFETY: zero is valid for every field.
        let mut sock: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let (src, dst) = (tuple.src.words(), tuple.dst.words());
        let len = if F::VERSION == 4 {
            sock.__bindgen_anon_1.ipv4.saddr = src[0].0;
            sock.__bindgen_anon_1.ipv4.daddr = dst[0].0;
            sock.__bindgen_anon_1.ipv4.sport = tuple.sport.0;
            sock.__bindgen_anon_1.ipv4.dport = tuple.dport.0;
            12
        } else {
            sock.__bindgen_anon_1.ipv6.saddr = src.map(|word| word.0);
            sock.__bindgen_anon_1.ipv6.daddr = dst.map(|word| word.0);
            sock.__bindgen_anon_1.ipv6.sport = tuple.sport.0;
            sock.__bindgen_anon_1.ipv6.dport = tuple.dport.0;
            36
        };
        let netns = BPF_F_CURRENT_NETNS as i64 as u64;
        // SAFETY: the tuple is valid for `len` bytes; a found socket is released.
        unsafe {
            let found: *mut bpf_sock = match protocol {
                protocol::TCP => bpf_sk_lookup_tcp(self.skb.cast(), &mut sock, len, netns, 0),
                protocol::UDP => bpf_sk_lookup_udp(self.skb.cast(), &mut sock, len, netns, 0),
                _ => return false,
            };
            if found.is_null() {
                return false;
            }
            // A listener or an unconnected socket has no peer port.
            let is_owner = (*found).dst_port == tuple.sport.0;
            bpf_sk_release(found.cast());
            is_owner
        }
    }
}
