//! What the kernel tells a program at any hook: time, chance, routes, neighbours and sockets.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup, bpf_sock, bpf_sock_tuple,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_get_prandom_u32, bpf_jiffies64, bpf_sk_lookup_tcp,
    bpf_sk_lookup_udp, bpf_sk_release,
};
use proxy_common::{Address, NextHop, Tuple, protocol};

use crate::Family;
use crate::environment::RouteQuery;

/// Address families as `bpf_fib_lookup` wants them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The jiffies clock in seconds, where `hz` is the kernel's ticks per second.
#[inline(always)]
pub fn now_secs(hz: u32) -> u32 {
    // SAFETY: the helper has no arguments.
    jiffies_secs(unsafe { bpf_jiffies64() }, hz)
}

/// 32 random bits.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// The jiffies clock in seconds.
#[inline(always)]
pub fn jiffies_secs(ticks: u64, hz: u32) -> u32 {
    (ticks / if hz == 0 { 250 } else { hz as u64 }) as u32
}

/// The interface of the route that a packet from the interface `ifindex` would take. The neighbour
/// is resolved, and the size checked, elsewhere.
#[inline(always)]
pub fn find_route<F: Family>(ctx: *mut c_void, query: &RouteQuery<F>, ifindex: u32) -> Option<u32> {
    let mut params = fib_params(query, ifindex);
    match look_up_route(ctx, &mut params, 0) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            Some(params.ifindex)
        }
        _ => None,
    }
}

/// Both MAC addresses of a packet that leaves by the interface `ifindex`, or `None` where the
/// neighbour has not been asked for yet.
#[inline(always)]
pub fn find_next_hop<F: Family>(
    ctx: *mut c_void,
    query: &RouteQuery<F>,
    ifindex: u32,
) -> Option<NextHop> {
    let mut params = fib_params(query, ifindex);
    let result = look_up_route(ctx, &mut params, BPF_FIB_LOOKUP_OUTPUT);
    if result != BPF_FIB_LKUP_RET_SUCCESS || params.ifindex != ifindex {
        return None;
    }
    Some(NextHop {
        dst: params.dmac,
        src: params.smac,
    })
}

#[inline(always)]
fn look_up_route(ctx: *mut c_void, params: &mut bpf_fib_lookup, flags: u32) -> u32 {
    let len = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: `params` is a valid struct of the length given.
    unsafe { fib_lookup(ctx, params, len, flags) as u32 }
}

#[inline(always)]
fn fib_params<F: Family>(query: &RouteQuery<F>, ifindex: u32) -> bpf_fib_lookup {
    // SAFETY: zero is valid for every field.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.l4_protocol = query.protocol;
    params.sport = query.tuple.sport.0;
    params.dport = query.tuple.dport.0;
    params.ifindex = ifindex;
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
    params
}

/// True if a socket of the current namespace owns the connection whose packets have `tuple`. A
/// listener or an unconnected socket has no peer port.
#[inline(always)]
pub fn socket_owns<F: Family>(ctx: *mut c_void, tuple: &Tuple<F::Addr>, protocol: u8) -> bool {
    let peer_port = tuple.sport.0;
    find_socket::<F, _>(ctx, tuple, protocol, |found| {
        // SAFETY: a socket that is held.
        unsafe { (*found).dst_port == peer_port }
    })
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
