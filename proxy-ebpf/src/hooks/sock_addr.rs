//! The cgroup socket hooks: connect, sendmsg, recvmsg, getpeername.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_jiffies64, bpf_set_retval,
};
use aya_ebpf::programs::SockAddrContext;
use proxy_common::{Addr4, Addr6, Address, Be16, Be32, Counter, EventKind, Tuple, protocol};

use super::kernel::{find_socket, jiffies_secs};
use crate::socket::{self, Call, Dial, Outcome, Owner, Surroundings};
use crate::tables::bpf::{Maps, config, count};
use crate::tell::{self, Dialed};
use crate::{Family, Tables, V4, V6};

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails with the value set, or EPERM.
const DENY: i32 = 0;
/// `-ECONNREFUSED`.
const REFUSED: i32 = -111;
/// `-ETIMEDOUT`.
const TIMED_OUT: i32 = -110;

/// Set by the loader to 1 where `bpf_set_retval` exists (kernel 5.18). Below, a refusal is left to
/// the packet path: a plain 0 would give EPERM (P-12).
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u8 = 0;

/// Where the address stands in the context.
pub trait Place: Family {
    /// Reads it.
    ///
    /// # Safety
    /// `ctx` is the context of the running program.
    unsafe fn read(ctx: *mut bpf_sock_addr) -> Self::Addr;
    /// Writes it.
    ///
    /// # Safety
    /// `ctx` is the context of the running program.
    unsafe fn write(ctx: *mut bpf_sock_addr, addr: Self::Addr);
    /// The address that the socket is bound to.
    ///
    /// # Safety
    /// `ctx` is the context of the running program.
    unsafe fn source(ctx: *mut bpf_sock_addr) -> Self::Addr;
}

impl Place for V4 {
    #[inline(always)]
    unsafe fn read(ctx: *mut bpf_sock_addr) -> Addr4 {
        // SAFETY: the caller's.
        Addr4(Be32(unsafe { (*ctx).user_ip4 }))
    }

    #[inline(always)]
    unsafe fn write(ctx: *mut bpf_sock_addr, addr: Addr4) {
        // SAFETY: the caller's.
        unsafe { (*ctx).user_ip4 = addr.0.0 };
    }

    #[inline(always)]
    unsafe fn source(ctx: *mut bpf_sock_addr) -> Addr4 {
        // SAFETY: the caller's; the context of these programs always has a socket.
        unsafe { Addr4(Be32((*(*ctx).__bindgen_anon_1.sk).src_ip4)) }
    }
}

impl Place for V6 {
    #[inline(always)]
    unsafe fn read(ctx: *mut bpf_sock_addr) -> Addr6 {
        // SAFETY: the caller's.
        unsafe {
            Addr6([
                Be32((*ctx).user_ip6[0]),
                Be32((*ctx).user_ip6[1]),
                Be32((*ctx).user_ip6[2]),
                Be32((*ctx).user_ip6[3]),
            ])
        }
    }

    #[inline(always)]
    unsafe fn write(ctx: *mut bpf_sock_addr, addr: Addr6) {
        // SAFETY: the caller's.
        unsafe {
            (*ctx).user_ip6[0] = addr.0[0].0;
            (*ctx).user_ip6[1] = addr.0[1].0;
            (*ctx).user_ip6[2] = addr.0[2].0;
            (*ctx).user_ip6[3] = addr.0[3].0;
        }
    }

    #[inline(always)]
    unsafe fn source(ctx: *mut bpf_sock_addr) -> Addr6 {
        // SAFETY: the caller's; the context of these programs always has a socket.
        unsafe {
            let sk = (*ctx).__bindgen_anon_1.sk;
            Addr6([
                Be32((*sk).src_ip6[0]),
                Be32((*sk).src_ip6[1]),
                Be32((*sk).src_ip6[2]),
                Be32((*sk).src_ip6[3]),
            ])
        }
    }
}

/// An IPv4 address in an IPv6 socket (RFC 4291 section 2.5.5.2).
#[derive(Clone, Copy)]
pub struct Mapped;

/// An IPv6 socket address that is really IPv4.
#[inline(always)]
fn is_mapped(ctx: *mut bpf_sock_addr) -> bool {
    // SAFETY: the kernel gave the context to this program run.
    unsafe {
        (*ctx).user_ip6[0] == 0
            && (*ctx).user_ip6[1] == 0
            && (*ctx).user_ip6[2] == 0xffff_u32.to_be()
    }
}

/// connect4, sendmsg4.
#[inline(always)]
pub fn dial4(ctx: &SockAddrContext, call: Call) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: the kernel gave the context to this program run.
    unsafe {
        let addr = V4::read(ctx);
        dial::<V4>(ctx, addr, call, |addr| V4::write(ctx, addr))
    }
}

/// connect6, sendmsg6.
#[inline(always)]
pub fn dial6(ctx: &SockAddrContext, call: Call) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: the kernel gave the context to this program run.
    unsafe {
        if is_mapped(ctx) {
            let addr = Addr4(Be32((*ctx).user_ip6[3]));
            return dial::<V4>(ctx, addr, call, |addr| (*ctx).user_ip6[3] = addr.0.0);
        }
        let addr = V6::read(ctx);
        dial::<V6>(ctx, addr, call, |addr| V6::write(ctx, addr))
    }
}

/// recvmsg4, getpeername4.
#[inline(always)]
pub fn peer4(ctx: &SockAddrContext, counter: Counter) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: the kernel gave the context to this program run.
    unsafe {
        let addr = V4::read(ctx);
        peer::<V4>(ctx, addr, counter, |addr| V4::write(ctx, addr))
    }
}

/// recvmsg6, getpeername6.
#[inline(always)]
pub fn peer6(ctx: &SockAddrContext, counter: Counter) -> i32 {
    let ctx = ctx.sock_addr;
    // SAFETY: the kernel gave the context to this program run.
    unsafe {
        if is_mapped(ctx) {
            let addr = Addr4(Be32((*ctx).user_ip6[3]));
            return peer::<V4>(ctx, addr, counter, |addr| (*ctx).user_ip6[3] = addr.0.0);
        }
        let addr = V6::read(ctx);
        peer::<V6>(ctx, addr, counter, |addr| V6::write(ctx, addr))
    }
}

#[inline(always)]
fn dial<F: Place>(
    ctx: *mut bpf_sock_addr,
    addr: F::Addr,
    call: Call,
    write: impl FnOnce(F::Addr),
) -> i32
where
    Maps: Tables<F>,
{
    // SAFETY: the kernel gave the context to this program run; helpers take it as it is.
    unsafe {
        let asked = Dial::<F> {
            cookie: bpf_get_socket_cookie(ctx.cast()),
            addr,
            port: Be16((*ctx).user_port as u16),
            protocol: (*ctx).protocol as u8,
            call,
            owner: owner(ctx),
            source: F::source(ctx),
        };
        let env = SockAddr { ctx };
        match socket::dial(&Maps, &env, &asked) {
            Outcome::Leave => ALLOW,
            Outcome::Translate(addr, port) => {
                write(addr);
                (*ctx).user_port = port.0 as u32;
                count(socket::translated(call));
                ALLOW
            }
            Outcome::Refuse(frontend) => {
                let result = refuse(asked.protocol, call);
                if result == DENY {
                    Tables::<F>::count_refused(&Maps, frontend);
                    let told = ended(EventKind::Reject, Counter::SocketRefused, frontend);
                    tell::dialed(&Maps, &env, &asked, &told);
                }
                result
            }
            Outcome::Drop(frontend) => {
                let result = drop_call(asked.protocol);
                if result == DENY {
                    Tables::<F>::count_dropped(&Maps, frontend);
                    let told = ended(EventKind::Drop, Counter::SocketDropped, frontend);
                    tell::dialed(&Maps, &env, &asked, &told);
                }
                result
            }
        }
    }
}

/// What is told of a call that no backend serves.
#[inline(always)]
fn ended<F: Family>(kind: EventKind, reason: Counter, frontend: u32) -> Dialed<F> {
    Dialed {
        kind,
        reason,
        frontend,
        backend: 0,
        to: (F::Addr::UNSPECIFIED, Be16(0)),
    }
}

/// The kernel around the socket of a context.
struct SockAddr {
    ctx: *mut bpf_sock_addr,
}

impl<F: Family> Surroundings<F> for SockAddr {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now_secs(&self, hz: u32) -> u32 {
        // SAFETY: the helper has no arguments.
        jiffies_secs(unsafe { bpf_jiffies64() }, hz)
    }

    #[inline(always)]
    fn listens(&self, addr: &F::Addr, port: Be16, protocol: u8) -> bool {
        let tuple = Tuple {
            src: F::Addr::UNSPECIFIED,
            dst: *addr,
            sport: Be16(0),
            dport: port,
        };
        find_socket::<F, _>(self.ctx.cast(), &tuple, protocol, |_| true)
    }
}

/// What the packet path would drop gets no answer: a connection times out, at once where the kernel
/// lets us say so, and a datagram is what netfilter's DROP makes of it.
#[inline(always)]
fn drop_call(protocol: u8) -> i32 {
    // SAFETY: as in `refuse`.
    let has_set_retval = unsafe { core::ptr::addr_of!(HAS_SET_RETVAL).read_volatile() } != 0;
    if !has_set_retval {
        count(Counter::SocketSteppedAside);
        return ALLOW;
    }
    count(Counter::SocketDropped);
    if protocol == protocol::TCP {
        // SAFETY: the helper takes a number.
        unsafe { bpf_set_retval(TIMED_OUT) };
    }
    DENY
}

/// ECONNREFUSED where the kernel lets us say so. A datagram is left to the packet path, whose
/// answer reaches the socket as an error of the next call.
#[inline(always)]
fn refuse(protocol: u8, call: Call) -> i32 {
    // SAFETY: a plain load; volatile, since the loader replaces the value.
    let has_set_retval = unsafe { core::ptr::addr_of!(HAS_SET_RETVAL).read_volatile() } != 0;
    if !has_set_retval || (protocol == protocol::UDP && matches!(call, Call::Send)) {
        count(Counter::SocketSteppedAside);
        return ALLOW;
    }
    count(Counter::SocketRefused);
    // SAFETY: the helper takes a number.
    unsafe { bpf_set_retval(REFUSED) };
    DENY
}

#[inline(always)]
fn peer<F: Family>(
    ctx: *mut bpf_sock_addr,
    addr: F::Addr,
    counter: Counter,
    write: impl FnOnce(F::Addr),
) -> i32
where
    Maps: Tables<F>,
{
    // SAFETY: the kernel gave the context to this program run.
    unsafe {
        let cookie = bpf_get_socket_cookie(ctx.cast());
        let port = Be16((*ctx).user_port as u16);
        if let Some((addr, port)) =
            socket::peer::<F, Maps>(&Maps, cookie, addr, port, (*ctx).protocol as u8)
        {
            write(addr);
            (*ctx).user_port = port.0 as u32;
            count(counter);
        }
    }
    ALLOW
}

/// Whose socket it is. Without a cookie in the configuration (kernels before 5.14) the node's
/// namespace is the initial one.
#[inline(always)]
fn owner(ctx: *mut bpf_sock_addr) -> Owner {
    // SAFETY: the helper takes the context, or null for the initial namespace.
    let is_node = unsafe {
        let cookie = bpf_get_netns_cookie(ctx.cast());
        let host = match config() {
            Some(config) if config.host_netns_cookie != 0 => config.host_netns_cookie,
            _ => bpf_get_netns_cookie(core::ptr::null_mut()),
        };
        cookie == host
    };
    if is_node { Owner::Node } else { Owner::Pod }
}
