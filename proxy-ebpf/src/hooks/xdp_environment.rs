//! The kernel around a frame at XDP.

use aya_ebpf::bindings::xdp_md;
use proxy_common::{NextHop, Tuple};

use super::kernel;
use crate::environment::RouteQuery;
use crate::{Environment, Family, Hook};

/// The kernel around a frame.
pub struct XdpEnvironment {
    ctx: *mut xdp_md,
}

impl XdpEnvironment {
    /// For the program run that `ctx` was given to.
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }
}

impl<F: Family> Environment<F> for XdpEnvironment {
    #[inline(always)]
    fn hook(&self) -> Hook {
        Hook::Xdp
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel gave the context to this program run.
        unsafe { (*self.ctx).ingress_ifindex }
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
        kernel::find_route(self.ctx.cast(), query, Environment::<F>::ifindex(self))
    }

    #[inline(always)]
    fn next_hop(&self, query: &RouteQuery<F>, ifindex: u32) -> Option<NextHop> {
        kernel::find_next_hop(self.ctx.cast(), query, ifindex)
    }

    #[inline(always)]
    fn socket_owns(&self, tuple: &Tuple<F::Addr>, protocol: u8) -> bool {
        kernel::socket_owns::<F>(self.ctx.cast(), tuple, protocol)
    }
}
