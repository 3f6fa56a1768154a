//! Bytes of a packet between the two pointers of a context.
//!
//! A value is read and written in one piece where its address is not a multiple of its alignment
//! too: an IP header behind a MAC header is so. BPF permits that on packets wherever the CPU does,
//! which is so on every kernel that we support (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`), and the
//! verifier refuses the program elsewhere. Read byte by byte, a foreign packet costs a sixth more.

use core::ptr;

use bytemuck::{AnyBitPattern, NoUninit};
use proxy_common::Counter;

use super::checked_len;
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
