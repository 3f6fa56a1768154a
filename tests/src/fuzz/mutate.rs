//! Damage to packets: what a bad sender, router or link does, and what only a tester does.

use super::Version;
use crate::cases::packets::L3;

/// Ways to damage a packet that one input may go through.
const ROUNDS_MAX: u64 = 4;
/// No packet gets longer.
const LEN_MAX: usize = 2_048;
/// Values that are at the edge of something.
const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x45, 0x60, 0x2c];
/// IPv6 headers that may stand in front of a transport header, and some that are none.
const EXTENSIONS: [u8; 6] = [0, 43, 44, 60, 50, 59];

/// The chance of a run.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// The same for the same seed.
    pub fn new(seed: u64) -> Self {
        // xorshift stays at 0 for ever.
        Self {
            state: seed | 1 << 63,
        }
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// True once in so many times.
    pub fn is_one_of(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// Damages a packet; `other` is one that parts may come from.
    pub fn damage(&mut self, version: Version, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.next() % ROUNDS_MAX {
            match self.below(12) {
                0 => self.flip(bytes),
                1 => self.set(bytes),
                2 => self.cut(bytes),
                3 => self.grow(bytes),
                4 => self.splice(bytes, other),
                5 | 6 => self.lie_of_length(version, bytes),
                7 | 8 => self.insert_header(version, bytes),
                9 => self.exchange_ends(version, bytes),
                10 => self.fragment(version, bytes),
                _ => self.quote(version, bytes),
            }
            bytes.truncate(LEN_MAX);
        }
    }

    fn next(&mut self) -> u64 {
        // xorshift64 (Marsaglia).
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// A position behind the Ethernet header, mostly in the headers.
    fn position(&mut self, bytes: &[u8]) -> Option<usize> {
        let len = bytes.len().checked_sub(L3)?;
        let end = if self.is_one_of(4) { len } else { len.min(100) };
        (end > 0).then(|| L3 + self.below(end))
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        if let Some(at) = self.position(bytes) {
            bytes[at] ^= 1 << self.below(8);
        }
    }

    fn set(&mut self, bytes: &mut [u8]) {
        if let Some(at) = self.position(bytes) {
            bytes[at] = match self.is_one_of(2) {
                true => *self.pick(&EDGES),
                false => self.next() as u8,
            };
        }
    }

    fn cut(&mut self, bytes: &mut Vec<u8>) {
        if let Some(at) = self.position(bytes) {
            bytes.truncate(at);
        }
    }

    fn grow(&mut self, bytes: &mut Vec<u8>) {
        let more = 1 + self.below(40);
        let value = self.next() as u8;
        bytes.extend(std::iter::repeat_n(value, more));
    }

    /// The beginning of one and the end of the other.
    fn splice(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        if let (Some(at), Some(from)) = (self.position(bytes), self.position(other)) {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }

    /// Something that says how long something is.
    fn lie_of_length(&mut self, version: Version, bytes: &mut [u8]) {
        let fields: &[usize] = match version {
            // Header and total length; length of UDP, data offset of TCP; of what an error quotes.
            Version::V4 => &[0, 2, 3, 24, 25, 32, 28, 30, 31, 52],
            // Payload length; an extension header's; UDP, TCP; of what an error quotes.
            Version::V6 => &[4, 5, 41, 44, 45, 49, 52, 52, 53, 89],
        };
        let at = L3 + *self.pick(fields);
        if at < bytes.len() {
            let change = self.below(17) as u8;
            bytes[at] = match self.below(3) {
                0 => bytes[at].wrapping_add(change),
                1 => bytes[at].wrapping_sub(change),
                _ => self.next() as u8,
            };
        }
    }

    /// IPv4 options, or an IPv6 extension header, in the packet or in what an error quotes.
    fn insert_header(&mut self, version: Version, bytes: &mut Vec<u8>) {
        let (own, quoted) = match version {
            Version::V4 => (L3, L3 + 28),
            Version::V6 => (L3, L3 + 48),
        };
        let l3 = if self.is_one_of(3) { quoted } else { own };
        let end = l3 + if version == Version::V4 { 20 } else { 40 };
        if bytes.len() < end {
            return;
        }
        let new = match version {
            Version::V4 => {
                let words = 1 + self.below(3);
                bytes[l3] = bytes[l3].wrapping_add(words as u8);
                vec![1; words * 4]
            }
            Version::V6 => {
                let kind = *self.pick(&EXTENSIONS);
                let next = std::mem::replace(&mut bytes[l3 + 6], kind);
                let units = if kind == 44 { 0 } else { self.below(3) };
                let mut header = vec![0; 8 * (units + 1)];
                (header[0], header[1]) = (next, units as u8);
                header
            }
        };
        // The packet's own length goes with it, or it is a lie.
        if !self.is_one_of(4) {
            let field = own + if version == Version::V4 { 2 } else { 4 };
            let len = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
            let len = len.wrapping_add(new.len() as u16).to_be_bytes();
            bytes[field..field + 2].copy_from_slice(&len);
        }
        bytes.splice(end..end, new);
    }

    /// Source and destination change places.
    fn exchange_ends(&mut self, version: Version, bytes: &mut [u8]) {
        let (at, size, ports) = match version {
            Version::V4 => (L3 + 12, 4, L3 + 20),
            Version::V6 => (L3 + 8, 16, L3 + 40),
        };
        if bytes.len() >= ports + 4 {
            let (src, dst) = bytes[at..at + 2 * size].split_at_mut(size);
            src.swap_with_slice(dst);
            bytes[ports..ports + 4].rotate_left(2);
        }
    }

    /// Another place in a datagram, or another datagram.
    fn fragment(&mut self, version: Version, bytes: &mut [u8]) {
        let at = match version {
            Version::V4 => L3 + 4,
            Version::V6 => L3 + 42,
        };
        let values = [[0x20, 0], [0, 9], [0x40, 0], [0, 0], [0, 1], [0x1f, 0xff]];
        let value = *self.pick(&values);
        let at = at + if self.is_one_of(2) { 2 } else { 0 };
        if bytes.len() >= at + 2 {
            bytes[at..at + 2].copy_from_slice(&value);
        }
    }

    /// An ICMP error that quotes the packet, to its sender from its destination.
    fn quote(&mut self, version: Version, bytes: &mut Vec<u8>) {
        let (at, size, header_len) = match version {
            Version::V4 => (12, 4, 20),
            Version::V6 => (8, 16, 40),
        };
        if bytes.len() < L3 + header_len {
            return;
        }
        let quoted = bytes[L3..].to_vec();
        let mut header = vec![0; header_len];
        header[at..at + size].copy_from_slice(&quoted[at + size..at + 2 * size]);
        header[at + size..at + 2 * size].copy_from_slice(&quoted[at..at + size]);
        let icmp = match version {
            Version::V4 => [3, 4, 0, 0, 0, 0, 5, 0x14],
            Version::V6 => [2, 0, 0, 0, 0, 0, 5, 0x14],
        };
        let len = (icmp.len() + quoted.len()) as u16;
        match version {
            Version::V4 => {
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
                (header[8], header[9]) = (64, 1);
            }
            Version::V6 => {
                header[0] = 0x60;
                header[4..6].copy_from_slice(&len.to_be_bytes());
                (header[6], header[7]) = (58, 64);
            }
        }
        bytes.truncate(L3);
        bytes.extend([&header[..], &icmp, &quoted].concat());
    }
}
