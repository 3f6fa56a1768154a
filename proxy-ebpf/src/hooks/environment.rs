//! The kernel around a packet, at every hook that sees packets.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use proxy_common::{NextHop, Tuple};

use super::kernel;
use crate::environment::RouteQuery;
use crate::{Environment, Family, Hook};

/// What the kernel gives a program, as far as it tells of the packet's surroundings.
pub trait Raw: Copy {
    /// For helpers.
    fn pointer(self) -> *mut c_void;

    /// The hook that has this number among those where there is such a context.
    fn hook(number: u32) -> Hook;

    /// The interface of the hook.
    ///
    /// # Safety
    /// The kernel gave the context to this program run.
    unsafe fn ifindex(self) -> u32;
}

impl Raw for *mut __sk_buff {
    #[inline(always)]
    fn pointer(self) -> *mut c_void {
        self.cast()
    }

    #[inline(always)]
    fn hook(number: u32) -> Hook {
        if number == Hook::Ingress as u32 {
            Hook::Ingress
        } else {
            Hook::Egress
        }
    }

    #[inline(always)]
    unsafe fn ifindex(self) -> u32 {
        // SAFETY: the caller's.
        unsafe { (*self).ifindex }
    }
}

impl Raw for *mut xdp_md {
    #[inline(always)]
    fn pointer(self) -> *mut c_void {
        self.cast()
    }

    #[inline(always)]
    fn hook(_number: u32) -> Hook {
        Hook::Xdp
    }

    #[inline(always)]
    unsafe fn ifindex(self) -> u32 {
        // SAFETY: the caller's.
        unsafe { (*self).ingress_ifindex }
    }
}

/// The kernel around a packet.
pub struct KernelEnvironment<C> {
    context: C,
    hook: u32,
}

impl<C: Raw> KernelEnvironment<C> {
    /// For the program run that `context` was given to, at `hook` as number.
    #[inline(always)]
    pub fn new(context: C, hook: u32) -> Self {
        Self { context, hook }
    }
}

impl<F: Family, C: Raw> Environment<F> for KernelEnvironment<C> {
    #[inline(always)]
    fn hook(&self) -> Hook {
        C::hook(self.hook)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel gave the context to this program run (`new`).
        unsafe { self.context.ifindex() }
    }

    #[inline(always)]
    fn now_secs(&self, hz: u32) -> u32 {
        kernel::now_secs(hz)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        kernel::random()
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery<F>) -> Option<u32> {
        let ifindex = Environment::<F>::ifindex(self);
        kernel::find_route(self.context.pointer(), query, ifindex)
    }

    #[inline(always)]
    fn next_hop(&self, query: &RouteQuery<F>, ifindex: u32) -> Option<NextHop> {
        kernel::find_next_hop(self.context.pointer(), query, ifindex)
    }

    #[inline(always)]
    fn socket_owns(&self, tuple: &Tuple<F::Addr>, protocol: u8) -> bool {
        kernel::socket_owns::<F>(self.context.pointer(), tuple, protocol)
    }
}
