//! The kernel around an skb: clock, chance, routes and sockets.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_CURRENT_NETNS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, bpf_sock, bpf_sock_tuple,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_get_prandom_u32, bpf_jiffies64, bpf_sk_lookup_tcp,
    bpf_sk_lookup_udp, bpf_sk_release,
};
use proxy_common::{Address, Tuple, protocol};

use crate::environment::RouteQuery;
use crate::{Environment, Family, Hook};

/// Address families as `bpf_fib_lookup` wants them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The kernel around an skb.
pub struct SkbEnvironment {
    skb: *mut __sk_buff,
    hook: Hook,
}

impl SkbEnvironment {
    #[inline(always)]
    /// For the program run that `skb` was given to, at `hook` as number.
    pub fn new(skb: *mut __sk_buff, hook: u32) -> Self {
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
        jiffies_secs(unsafe { bpf_jiffies64() }, hz)
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
        // A listener or an unconnected socket has no peer port.
        let peer_port = tuple.sport.0;
        find_socket::<F, _>(self.skb.cast(), tuple, protocol, |found| {
            // SAFETY: a socket that is held.
            unsafe { (*found).dst_port == peer_port }
        })
    }
}

/// The jiffies clock in seconds.
#[inline(always)]
pub fn jiffies_secs(ticks: u64, hz: u32) -> u32 {
    (ticks / if hz == 0 { 250 } else { hz as u64 }) as u32
}

/// True if the current namespace has a socket for packets with `tuple`, and it is `accepted`.
#[inline(always)]
pub fn find_socket<F: Family, A: FnOnce(*const bpf_sock) -> bool>(
    ctx: *mut c_void,
    tuple: &Tuple<F::Addr>,
    protocol: u8,
    accepted: A,
) -> bool {
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
            protocol::TCP => bpf_sk_lookup_tcp(ctx, &mut sock, len, netns, 0),
            protocol::UDP => bpf_sk_lookup_udp(ctx, &mut sock, len, netns, 0),
            _ => return false,
        };
        if found.is_null() {
            return false;
        }
        let is_accepted = accepted(found);
        bpf_sk_release(found.cast());
        is_accepted
    }
}
