//! A packet in a `Vec`: for tests, fuzzing and `shunt explain`.

use bytemuck::{AnyBitPattern, NoUninit};
use proxy_common::Counter;

use super::{Bytes, Packet, checked_len};
use crate::Stop;

/// A packet in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPacket {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// See [`Packet::segment_len`].
    pub segment_len: u32,
}

impl HostPacket {
    /// A single packet with these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            segment_len: 0,
        }
    }
}

impl Bytes for &mut [u8] {
    fn holds(&self, len: usize) -> bool {
        self.len() >= len
    }

    fn get<T: AnyBitPattern>(&self, at: usize) -> T {
        bytemuck::pod_read_unaligned(&self[at..at + size_of::<T>()])
    }

    fn put<T: NoUninit>(&mut self, at: usize, value: T) {
        self[at..at + size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
    }
}

impl Packet for HostPacket {
    type Bytes<'a> = &'a mut [u8];

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn read<T: AnyBitPattern>(&self, at: usize) -> Result<T, Stop> {
        let bytes = self.bytes.get(at..at + checked_len::<T>());
        let bytes = bytes.ok_or(Stop::Pass(Counter::Truncated))?;
        Ok(bytemuck::pod_read_unaligned(&bytes[..size_of::<T>()]))
    }

    fn write<T: NoUninit>(&mut self, at: usize, value: &T) -> Result<(), Stop> {
        let bytes = self.bytes.get_mut(at..at + checked_len::<T>());
        let bytes = bytes.ok_or(Stop::Drop(Counter::WriteFailed))?;
        bytes[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(value));
        Ok(())
    }

    fn resize(&mut self, len: usize) -> Result<(), Stop> {
        self.bytes.resize(len, 0);
        Ok(())
    }

    fn segment_len(&self) -> u32 {
        self.segment_len
    }
}
