//! Bytes of a packet between the two pointers of a context.
//!
//! A value is read and written in one piece where its address is not a multiple of its alignment
//! too: an IP header behind a MAC header is so. BPF permits that on packets wherever the CPU does,
//! which is so on every kernel that we support (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`), and the
//! verifier refuses the program elsewhere. Read byte by byte, a foreign packet costs a sixth more.

use core::marker::PhantomData;
use core::ptr;

use bytemuck::{AnyBitPattern, NoUninit};
use proxy_common::Counter;

use super::{Bytes, checked_len};
use crate::Stop;

/// Where the bytes begin, and where they end, as the context says at this moment: helpers may move
/// them.
pub type Bounds = (usize, usize);

#[inline(always)]
fn at<T>((data, end): Bounds, at: usize) -> Option<*mut T> {
    let start = data + at;
    if start + checked_len::<T>() > end {
        return None;
    }
    Some(start as *mut T)
}

/// [`Packet::read`](super::Packet::read).
///
/// # Safety
/// `bounds` are those of a packet of this program run.
#[inline(always)]
pub unsafe fn read<T: AnyBitPattern>(bounds: Bounds, offset: usize) -> Result<T, Stop> {
    let start = at::<T>(bounds, offset).ok_or(Stop::Pass(Counter::Truncated))?;
    // SAFETY: bounds checked by `at`; any bytes are a valid T. For alignment see above.
    Ok(unsafe { ptr::read(start) })
}

/// [`Packet::write`](super::Packet::write).
///
/// # Safety
/// As for [`read`].
#[inline(always)]
pub unsafe fn write<T: NoUninit>(bounds: Bounds, offset: usize, value: &T) -> Result<(), Stop> {
    let start = at::<T>(bounds, offset).ok_or(Stop::Drop(Counter::WriteFailed))?;
    // SAFETY: as in `read`; T has no padding.
    unsafe { ptr::write(start, *value) };
    Ok(())
}

/// The bytes between two pointers, while the packet is borrowed.
pub struct DirectBytes<'a> {
    bounds: Bounds,
    packet: PhantomData<&'a mut ()>,
}

impl DirectBytes<'_> {
    /// # Safety
    /// `bounds` are those of a packet of this program run, which is borrowed as long.
    #[inline(always)]
    pub unsafe fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            packet: PhantomData,
        }
    }
}

impl Bytes for DirectBytes<'_> {
    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        let (data, end) = self.bounds;
        data + len <= end
    }

    #[inline(always)]
    fn get<T: AnyBitPattern>(&self, at: usize) -> T {
        // SAFETY: the verifier takes the program only where `holds` was asked; otherwise as in
        // `read`.
        unsafe { ptr::read((self.bounds.0 + at) as *const T) }
    }

    #[inline(always)]
    fn put<T: NoUninit>(&mut self, at: usize, value: T) {
        // SAFETY: as in `get`; T has no padding.
        unsafe { ptr::write((self.bounds.0 + at) as *mut T, value) };
    }
}
