//! A packet at any hook.

#[cfg(target_arch = "bpf")]
pub mod bpf;
#[cfg(target_arch = "bpf")]
mod direct;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
#[cfg(target_arch = "bpf")]
pub mod xdp;

use bytemuck::{AnyBitPattern, NoUninit};
use proxy_common::{Be16, Counter};

use crate::Stop;
use crate::wire::checksum::{self, Delta};

/// A byte offset into a packet, bounded so that the verifier can follow it through memory.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offset(u16);

/// Largest offset: headers that begin behind it are not walked to.
pub const OFFSET_MAX: usize = 0x1fff;

/// The kernel's GSO_BY_FRAGS: a GSO packet of SCTP, whose segments are buffers of their own behind
/// the headers that they share.
pub const SEGMENTS_DIFFER: u32 = 0xffff;

impl Offset {
    /// The IP header on a device without a MAC header.
    pub const ZERO: Self = Self(0);

    /// The largest one.
    pub const MAX: Self = Self(OFFSET_MAX as u16);

    /// Refuses what is out of bounds.
    #[inline(always)]
    pub fn new(at: usize) -> Result<Self, Stop> {
        if at > OFFSET_MAX {
            return Err(Stop::Pass(Counter::TooManyHeaders));
        }
        Ok(Self(at as u16))
    }

    /// As a number.
    #[inline(always)]
    pub fn get(self) -> usize {
        self.0 as usize & OFFSET_MAX
    }
}

/// Bytes that must be there for a `T` to be read or written: at least two, because LLVM turns the
/// check for one byte into a form from which the verifier learns nothing.
#[inline(always)]
pub const fn checked_len<T>() -> usize {
    if size_of::<T>() < 2 {
        2
    } else {
        size_of::<T>()
    }
}

/// How a transport checksum is updated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L4Checksum {
    /// TCP, ICMPv6: covers the pseudo header; all values are valid.
    Plain,
    /// UDP over IPv4: 0 means "none" and stays; a computed 0 becomes 0xffff (RFC 768, S-136).
    Udp,
    /// ICMP over IPv4: no pseudo header.
    NoPseudoHeader,
}

/// What a rewrite does to a transport checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct L4Change {
    /// Of the pseudo header: addresses.
    pub addresses: Delta,
    /// Of what the checksum covers besides: ports, quoted packets.
    pub payload: Delta,
}

/// The bytes of a packet where they lie at this moment: bounds are checked once for many accesses.
/// Whatever might move them needs the packet, which is borrowed.
pub trait Bytes {
    /// True if there are as many.
    fn holds(&self, len: usize) -> bool;

    /// The value at an offset within what [`Self::holds`] was asked for. The verifier refuses any
    /// other, and on the host it panics.
    fn get<T: AnyBitPattern>(&self, at: usize) -> T;

    /// Writes a value there, likewise.
    fn put<T: NoUninit>(&mut self, at: usize, value: T);
}

/// The bytes of one packet. Offsets count from the first byte that the hook shows: the MAC header,
/// or the IP header on devices without one.
pub trait Packet {
    /// Its bytes.
    type Bytes<'a>: Bytes
    where
        Self: 'a;

    /// Its bytes, as they lie now.
    fn bytes(&mut self) -> Self::Bytes<'_>;

    /// Length in bytes.
    fn len(&self) -> usize;

    /// True without a byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a value; `Truncated` where the packet ends before it ([`checked_len`]).
    fn read<T: AnyBitPattern>(&self, at: usize) -> Result<T, Stop>;

    /// Writes a value; `WriteFailed` where the packet ends before it ([`checked_len`]).
    fn write<T: NoUninit>(&mut self, at: usize, value: &T) -> Result<(), Stop>;

    /// Updates the transport checksum at `at`, also where the stack or the device will finish it
    /// (partial checksum), and what the device computed over the whole packet. As it is here, for
    /// packets without either.
    #[inline(always)]
    fn update_l4_checksum(
        &mut self,
        at: usize,
        change: L4Change,
        kind: L4Checksum,
    ) -> Result<(), Stop> {
        let old: Be16 = self.read(at)?;
        self.write(at, &checksum::updated(old, change, kind))
    }

    /// The same for the checksum of a whole packet, which is `partial` where the stack has left it
    /// to a device: the folded sum of the pseudo header. Most are not, and then this costs less.
    #[inline(always)]
    fn update_whole_checksum(
        &mut self,
        at: usize,
        change: L4Change,
        kind: L4Checksum,
        _partial: Be16,
    ) -> Result<(), Stop> {
        self.update_l4_checksum(at, change, kind)
    }

    /// Tells the sum that a device made of the whole packet, if there is one, that the addresses
    /// and both checksums have been written.
    #[inline(always)]
    fn told_addresses(&mut self, _change: Delta) {}

    /// Makes the packet `len` bytes long: cut at the end, or grown with zeros.
    fn resize(&mut self, len: usize) -> Result<(), Stop>;

    /// Bytes of payload in each segment of a GSO packet; 0 for a single packet, [`SEGMENTS_DIFFER`]
    /// for one whose segments lie in it one by one.
    fn segment_len(&self) -> u32;
}
