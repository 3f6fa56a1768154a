//! What the programs of `cargo xtask bench datapath` and the program that runs them agree on.
//!
//! A test run gives a program the same packet again and again, as the program left it. So the
//! program that is run is a wrapper: it restores the packet, makes it one of another flow, and
//! tail-calls the program that is measured.
#![cfg_attr(target_arch = "bpf", no_std)]

#[cfg(target_arch = "bpf")]
pub mod wrapper;
#[cfg(target_arch = "bpf")]
pub mod yardstick;

use bytemuck::{Pod, Zeroable};

/// Bytes that the wrapper keeps of the packet.
pub const KEPT: usize = 128;
/// Bytes that it writes at the beginning of the packet: the headers, IPv6 and TCP at most.
pub const WRITTEN: usize = 80;
/// Bytes of every packet that are there at least.
pub const PACKET_MIN: usize = WRITTEN;
/// Where a write goes that is not wanted: into what is kept and not written.
pub const NOWHERE: u32 = 120;
/// What a wrapper returns where it could not restore the packet, or there is nothing to call.
pub const FAILED: u32 = 99;
/// Entries of CHOICES, a power of two.
pub const CHOICES_LEN: u32 = 1024;
/// First port of a varied flow.
const FIRST_PORT: u16 = 1024;
/// Ports of an address.
const PORT_BITS: u32 = 15;

/// The one element of PLANS: the packet, and how it is varied.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Plan {
    /// The first bytes of the packet.
    pub packet: [u8; KEPT],
    /// State of the random numbers.
    pub state: u32,
    /// Flows among which each packet's is drawn; 0: every packet is of a flow of its own.
    pub flows: u32,
    /// The last 32 bits of the first flow's address, in host order.
    pub addr: u32,
    /// Length of the packet in bytes.
    pub len: u32,
    /// Offset of those 32 bits.
    pub addr_at: u32,
    /// Offset of the port.
    pub port_at: u32,
    /// Offset of the transport checksum.
    pub l4_sum_at: u32,
    /// Offset of the IPv4 header checksum, or [`NOWHERE`].
    pub l3_sum_at: u32,
    /// Sum of what the transport checksum covers, beside the 32 bits and the port.
    pub l4_sum: u32,
    /// The same of the IPv4 header, beside the 32 bits.
    pub l3_sum: u32,
}

impl Plan {
    /// Makes the packet one of the next flow.
    #[inline(always)]
    pub fn advance(&mut self) {
        // Knuth's constants: the period is 2^32, so flows of their own do not come twice.
        self.state = self
            .state
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        let index = if self.flows == 0 {
            self.state
        } else {
            (self.state >> 8) % self.flows
        };
        self.set_flow(index);
    }

    /// Makes the packet one of flow `index`.
    #[inline(always)]
    pub fn set_flow(&mut self, index: u32) {
        let (offset, port) = place(index);
        let addr = self.addr.wrapping_add(offset).to_be();
        let port = port.to_be();
        let words = (addr & 0xffff) + (addr >> 16);
        let l4_sum = fold(self.l4_sum + words + port as u32);
        let l3_sum = fold(self.l3_sum + words);
        self.put(self.addr_at, addr.to_ne_bytes());
        self.put(self.port_at, port.to_ne_bytes());
        self.put(self.l4_sum_at, (!l4_sum).to_ne_bytes());
        self.put(self.l3_sum_at, (!l3_sum).to_ne_bytes());
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, at: u32, bytes: [u8; N]) {
        const { assert!(N <= 4 && NOWHERE as usize + 4 <= KEPT) };
        let at = (at & 127) as usize;
        if at <= NOWHERE as usize {
            let mut position = 0;
            while position < N {
                self.packet[at + position] = bytes[position];
                position += 1;
            }
        }
    }
}

/// How far a flow's address is from that of the first, and its port.
#[inline(always)]
pub const fn place(index: u32) -> (u32, u16) {
    let port = FIRST_PORT + (index & ((1 << PORT_BITS) - 1)) as u16;
    (index >> PORT_BITS, port)
}

/// Folds a sum of 16-bit words.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
