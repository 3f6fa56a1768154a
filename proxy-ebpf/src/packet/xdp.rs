//! A frame at the XDP hook.

use core::ptr;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_xdp_adjust_tail;
use bytemuck::{AnyBitPattern, NoUninit};
use proxy_common::Counter;

use super::{Packet, checked_len};
use crate::Stop;

/// A frame. Data pointers are read anew for each access, since helpers may move them; unaligned
/// access as in [`SkbPacket`](super::bpf::SkbPacket).
pub struct XdpPacket {
    ctx: *mut xdp_md,
}

impl XdpPacket {
    /// The frame of this program run.
    ///
    /// # Safety
    /// `ctx` is the context that the kernel gave the running program.
    #[inline(always)]
    pub unsafe fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn at<T>(&self, at: usize) -> Option<*mut T> {
        // SAFETY: the context is valid for the run (`new`).
        let (data, end) = unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) };
        let start = data + at;
        if start + checked_len::<T>() > end {
            return None;
        }
        Some(start as *mut T)
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the context is valid for the run (`new`).
        unsafe { ((*self.ctx).data_end as usize).wrapping_sub((*self.ctx).data as usize) }
    }

    #[inline(always)]
    fn read<T: AnyBitPattern>(&self, at: usize) -> Result<T, Stop> {
        let start = self.at::<T>(at).ok_or(Stop::Pass(Counter::Truncated))?;
        // SAFETY: bounds checked by `at`; any bytes are a valid T.
        Ok(unsafe { ptr::read(start) })
    }

    #[inline(always)]
    fn write<T: NoUninit>(&mut self, at: usize, value: &T) -> Result<(), Stop> {
        let start = self.at::<T>(at).ok_or(Stop::Drop(Counter::WriteFailed))?;
        // SAFETY: as in `read`; T has no padding.
        unsafe { ptr::write(start, *value) };
        Ok(())
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Result<(), Stop> {
        let delta = len as i32 - self.len() as i32;
        // SAFETY: the context is valid for the run.
        if unsafe { bpf_xdp_adjust_tail(self.ctx, delta) } != 0 {
            return Err(Stop::Drop(Counter::WriteFailed));
        }
        Ok(())
    }

    /// A frame is one packet.
    #[inline(always)]
    fn segment_len(&self) -> u32 {
        0
    }
}
