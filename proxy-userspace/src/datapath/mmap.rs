//! An array map mapped into our memory: plain stores for data, one release store to publish.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::Pod;

/// A mapped array of `T`. BPF programs read it while we write, so nothing borrows from it:
/// elements are copied in and out by volatile word accesses.
///
/// Elements lie `size_of::<T>()` rounded up to eight bytes apart, as the kernel lays arrays out.
/// The array is mapped in parts, each when it is first touched: what is mapped counts as memory of
/// this process, and arrays are made for more than most clusters have.
#[derive(Debug)]
pub struct MappedArray<T> {
    map: OwnedFd,
    parts: Box<[Cell<Option<NonNull<u32>>>]>,
    len: u32,
    element: PhantomData<T>,
}

/// Elements in one part. Elements are multiples of eight bytes apart, so a part is a multiple of
/// 64 KiB, the largest size of a page.
const PART_LEN: u32 = 8192;

// SAFETY: the mappings belong to this value alone and are not tied to a thread.
unsafe impl<T: Pod + Send> Send for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    /// Distance of two elements in bytes.
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Takes the array `map`, which must have `len` elements of the size of `T` and must have been
    /// created with `BPF_F_MMAPABLE`: else the kernel refuses.
    pub fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(4)) };
        let parts = (0..len.div_ceil(PART_LEN)).map(|_| Cell::new(None));
        let array = Self {
            map: map.try_clone_to_owned()?,
            parts: parts.collect(),
            len,
            element: PhantomData,
        };
        if !array.is_empty() {
            array.part(0)?;
        }
        Ok(array)
    }

    /// The start of a part, which is mapped if it is not.
    fn part(&self, index: u32) -> io::Result<NonNull<u32>> {
        if let Some(base) = self.parts[index as usize].get() {
            return Ok(base);
        }
        let offset = index as usize * PART_LEN as usize * Self::STRIDE;
        // SAFETY: a new shared mapping at a place of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                part_bytes::<T>(self.len, index),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.map.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        self.parts[index as usize].set(Some(base));
        Ok(base)
    }

    /// Number of elements.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True for an array of no elements, which the kernel does not make.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies one element out, or `None` beyond the end. Words are single-copy atomic, the whole is
    /// not; we are the only writer.
    pub fn read(&self, index: u32) -> Option<T> {
        let from = self.pointer(index)?;
        let mut element = T::zeroed();
        let words = bytemuck::bytes_of_mut(&mut element).chunks_exact_mut(4);
        for (word, bytes) in words.enumerate() {
            // SAFETY: `word` is below `size_of::<T>() / 4`, so the read lies inside the element,
            // which lies inside the mapping; the mapping is aligned to a page.
            let value = unsafe { from.add(word).read_volatile() };
            bytes.copy_from_slice(&value.to_ne_bytes());
        }
        Some(element)
    }

    /// Copies one element in; false beyond the end. Not atomic: for elements that no program
    /// reaches before a [`publish`](Self::publish).
    #[must_use]
    pub fn write(&mut self, index: u32, element: &T) -> bool {
        let Some(to) = self.pointer(index) else {
            return false;
        };
        let words = bytemuck::bytes_of(element).chunks_exact(4);
        for (word, bytes) in words.enumerate() {
            let value = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            // SAFETY: as in `read`; `&mut self` excludes other writers.
            unsafe { to.add(word).write_volatile(value) };
        }
        true
    }

    /// Stores the first eight bytes of an element by one release store: a program that reads
    /// them sees everything written before; false beyond the end.
    #[must_use]
    pub fn publish(&mut self, index: u32, word: u64) -> bool {
        let Some(to) = self.pointer(index) else {
            return false;
        };
        // SAFETY: elements are multiples of eight bytes apart from a page boundary, so this is an
        // aligned u64 inside the mapping, which stays until `&mut self` is lent again.
        unsafe { AtomicU64::from_ptr(to.as_ptr().cast()) }.store(word, Ordering::Release);
        true
    }

    fn pointer(&self, index: u32) -> Option<NonNull<u32>> {
        if index >= self.len {
            return None;
        }
        // Refused only where this process has no room left: as if the element were not there.
        let base = self.part(index / PART_LEN).ok()?;
        // SAFETY: below the elements of this part, of STRIDE bytes each: the size of its mapping.
        Some(unsafe { base.byte_add((index % PART_LEN) as usize * Self::STRIDE) })
    }
}

impl<T> MappedArray<T> {
    /// Unmaps everything; what is touched again is mapped again.
    pub fn unmap(&mut self) {
        for (index, part) in (0..).zip(&self.parts) {
            if let Some(base) = part.take() {
                let bytes = part_bytes::<T>(self.len, index);
                // SAFETY: mapped by `part` with this size, and no pointer into it outlives a call.
                // Failing would leave it mapped, which harms nobody.
                let _ = unsafe { libc::munmap(base.as_ptr().cast(), bytes) };
            }
        }
    }
}

/// Bytes of a part; the last one may be shorter, and ends with a page.
fn part_bytes<T>(len: u32, index: u32) -> usize {
    let elements = (len - index * PART_LEN).min(PART_LEN);
    elements as usize * size_of::<T>().next_multiple_of(8)
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        self.unmap();
    }
}
