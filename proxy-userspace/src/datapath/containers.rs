//! The kernel's maps by kind: hashes and tries by system call, arrays by mapped memory.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, OwnedFd};

use bytemuck::Pod;

use super::mmap::MappedArray;
use super::pin::{PinError, Pins};
use super::sys;
use crate::maps::{MapError, MapResult};

/// A hash or trie in the kernel.
#[derive(Debug)]
pub(super) struct KernelHash<K, V> {
    name: &'static str,
    limit: u32,
    fd: OwnedFd,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> KernelHash<K, V> {
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, PinError> {
        let (fd, info) = pins.map(name)?;
        pins.check_sizes(name, &info, [size_of::<K>(), size_of::<V>()])?;
        Ok(Self {
            name,
            limit: info.max_entries,
            fd,
            types: PhantomData,
        })
    }

    pub(super) fn insert(&mut self, key: &K, value: &V) -> MapResult {
        let (key, value) = (bytemuck::bytes_of(key), bytemuck::bytes_of(value));
        sys::map_update(self.fd.as_fd(), key, value).map_err(|source| {
            match source.raw_os_error() {
                // A hash says E2BIG, a trie ENOSPC.
                Some(libc::E2BIG | libc::ENOSPC) => MapError::Full {
                    map: self.name,
                    limit: self.limit,
                },
                _ => self.failed(source),
            }
        })
    }

    pub(super) fn remove(&mut self, key: &K) -> MapResult {
        sys::map_delete(self.fd.as_fd(), bytemuck::bytes_of(key))
            .map_err(|source| self.failed(source))
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut value = V::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut value);
        let found = sys::map_lookup(self.fd.as_fd(), bytemuck::bytes_of(key), bytes);
        matches!(found, Ok(true)).then_some(value)
    }

    pub(super) fn keys(&self) -> Vec<K> {
        let mut keys: Vec<K> = Vec::new();
        let mut next = K::zeroed();
        // We are the only writer, so no key that we stand on vanishes and restarts the walk; the
        // bound only guards against a foreign hand in the map.
        while keys.len() < self.limit as usize {
            let current = keys.last().map(bytemuck::bytes_of);
            let bytes = bytemuck::bytes_of_mut(&mut next);
            if !matches!(sys::map_next_key(self.fd.as_fd(), current, bytes), Ok(true)) {
                break;
            }
            keys.push(next);
        }
        keys
    }

    pub(super) fn entries(&self) -> Vec<(K, V)> {
        let keys = self.keys().into_iter();
        keys.filter_map(|key| Some((key, self.get(&key)?)))
            .collect()
    }

    fn failed(&self, source: io::Error) -> MapError {
        MapError::Write {
            map: self.name,
            source,
        }
    }
}

/// A mapped array with its name.
#[derive(Debug)]
pub(super) struct KernelArray<T> {
    name: &'static str,
    pub(super) elements: MappedArray<T>,
}

impl<T: Pod> KernelArray<T> {
    pub(super) fn open(pins: &Pins, name: &'static str) -> Result<Self, PinError> {
        let (fd, info) = pins.map(name)?;
        pins.check_sizes(name, &info, [size_of::<u32>(), size_of::<T>()])?;
        let elements = MappedArray::new(fd.as_fd(), info.max_entries)
            .map_err(|source| PinError::Map { name, source })?;
        Ok(Self { name, elements })
    }

    pub(super) fn read(&self, index: u32) -> Option<T> {
        self.elements.read(index)
    }

    fn done(&self, written: bool) -> MapResult {
        match written {
            true => Ok(()),
            false => Err(MapError::Full {
                map: self.name,
                limit: self.elements.len(),
            }),
        }
    }

    pub(super) fn write(&mut self, index: u32, element: &T) -> MapResult {
        let written = self.elements.write(index, element);
        self.done(written)
    }

    pub(super) fn publish(&mut self, index: u32, word: u64) -> MapResult {
        let written = self.elements.publish(index, word);
        self.done(written)
    }

    /// Zeroes an element, if it is not zero.
    pub(super) fn zero(&mut self, index: u32) {
        let is_zero = |found: T| bytemuck::bytes_of(&found).iter().all(|byte| *byte == 0);
        // Beyond the end there is nothing to zero.
        if self.read(index).is_some_and(|found| !is_zero(found)) {
            let _ = self.elements.write(index, &T::zeroed());
        }
    }
}
