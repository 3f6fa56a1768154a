//! The internet checksum, updated incrementally (RFC 1071, RFC 1624).
//!
//! A sum of 16-bit words in one's complement does not depend on byte order (RFC 1071 section 2(B)),
//! so words are taken as they stand in memory.

use bytemuck::{NoUninit, bytes_of};
use proxy_common::{Address, Be16, Be32};

use crate::packet::{L4Change, L4Checksum};

/// A difference between two sums: new minus old, not folded. Adding two is adding the numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta(pub u64);

impl Delta {
    /// What replacing `old` by `new` does to a sum that covers it.
    #[inline(always)]
    pub fn address<A: Address>(old: &A, new: &A) -> Self {
        let (old, new) = (old.words(), new.words());
        let mut delta = Self::word(old[0], new[0]);
        if A::BITS > 32 {
            delta = delta.plus(Self::word(old[1], new[1]));
            delta = delta.plus(Self::word(old[2], new[2]));
            delta = delta.plus(Self::word(old[3], new[3]));
        }
        delta
    }

    /// The same for a 32-bit word. A 32-bit word sums like its two 16-bit halves, since
    /// 2^16 = 1 (mod 2^16 - 1).
    #[inline(always)]
    pub fn word(old: Be32, new: Be32) -> Self {
        Self(new.0 as u64 + !old.0 as u64)
    }

    /// The same for a port or any 16-bit word at an even offset.
    #[inline(always)]
    pub fn half(old: Be16, new: Be16) -> Self {
        Self(new.0 as u64 + !old.0 as u64)
    }

    /// Both changes.
    #[inline(always)]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// As a 32-bit one's complement sum, the form that the kernel's helpers take.
    #[inline(always)]
    pub fn folded_32(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    }
}

/// Folds a sum into 16 bits.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A checksum field after a change of what it covers (RFC 1624, equation 3).
#[inline(always)]
pub fn replaced(old: Be16, delta: Delta) -> Be16 {
    Be16(!fold((!old.0) as u64 + delta.0))
}

/// A transport checksum field after a change.
#[inline(always)]
pub fn updated(old: Be16, change: L4Change, kind: L4Checksum) -> Be16 {
    match kind {
        L4Checksum::Plain => replaced(old, change.addresses.plus(change.payload)),
        L4Checksum::NoPseudoHeader => replaced(old, change.payload),
        L4Checksum::Udp if old.0 == 0 => old,
        L4Checksum::Udp => match replaced(old, change.addresses.plus(change.payload)) {
            Be16(0) => Be16(0xffff),
            sum => sum,
        },
    }
}

/// Sum of the 16-bit words of a value of even size.
#[inline(always)]
pub fn sum<T: NoUninit>(value: &T) -> u64 {
    let mut sum = 0;
    for pair in bytes_of(value).chunks_exact(2) {
        sum += u16::from_ne_bytes([pair[0], pair[1]]) as u64;
    }
    sum
}

/// Sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
pub fn pseudo_header<A: Address>(src: &A, dst: &A, protocol: u8, len: u16) -> u64 {
    let mut sum = len.to_be() as u64 + (protocol as u16).to_be() as u64;
    let (src, dst) = (src.words(), dst.words());
    sum += src[0].0 as u64 + dst[0].0 as u64;
    if A::BITS > 32 {
        sum += src[1].0 as u64 + dst[1].0 as u64;
        sum += src[2].0 as u64 + dst[2].0 as u64;
        sum += src[3].0 as u64 + dst[3].0 as u64;
    }
    sum
}
