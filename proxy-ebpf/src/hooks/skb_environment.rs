//! The kernel around an skb.

use aya_ebpf::bindings::__sk_buff;
use proxy_common::Tuple;

use super::kernel;
use crate::environment::RouteQuery;
use crate::{Environment, Family, Hook};

/// The kernel around an skb.
pub struct SkbEnvironment {
    skb: *mut __sk_buff,
    hook: Hook,
}

impl SkbEnvironment {
    /// For the program run that `skb` was given to, at `hook` as number.
    #[inline(always)]
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
        kernel::now_secs(hz)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        kernel::random()
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery<F>) -> Option<u32> {
        kernel::find_route(self.skb.cast(), query, Environment::<F>::ifindex(self))
    }

    #[inline(always)]
    fn socket_owns(&self, tuple: &Tuple<F::Addr>, protocol: u8) -> bool {
        kernel::socket_owns::<F>(self.skb.cast(), tuple, protocol)
    }
}
