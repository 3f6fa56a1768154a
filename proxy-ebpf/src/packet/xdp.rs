//! A frame at the XDP hook.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_xdp_adjust_tail;
use bytemuck::{AnyBitPattern, NoUninit};
use proxy_common::Counter;

use super::Packet;
use super::direct::{self, Bounds, DirectBytes};
use crate::Stop;

/// A frame. Data pointers are read anew for each access, since helpers may move them.
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
    fn bounds(&self) -> Bounds {
        // SAFETY: the context is valid for the run (`new`).
        unsafe { ((*self.ctx).data as usize, (*self.ctx).data_end as usize) }
    }
}

impl Packet for XdpPacket {
    type Bytes<'a> = DirectBytes<'a>;

    #[inline(always)]
    fn bytes(&mut self) -> DirectBytes<'_> {
        // SAFETY: bounds of this run's packet.
        unsafe { DirectBytes::new(self.bounds()) }
    }

    #[inline(always)]
    fn len(&self) -> usize {
        let (data, end) = self.bounds();
        end.wrapping_sub(data)
    }

    #[inline(always)]
    fn read<T: AnyBitPattern>(&self, at: usize) -> Result<T, Stop> {
        // SAFETY: bounds of this run's packet.
        unsafe { direct::read(self.bounds(), at) }
    }

    #[inline(always)]
    fn write<T: NoUninit>(&mut self, at: usize, value: &T) -> Result<(), Stop> {
        // SAFETY: bounds of this run's packet.
        unsafe { direct::write(self.bounds(), at, value) }
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
