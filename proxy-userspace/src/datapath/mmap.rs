//! An array map mapped into our memory: plain stores for data, one release store to publish.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::Pod;

/// A mapped array of `T`. BPF programs read it while we write, so nothing borrows from it:
/// elements are copied in and out by volatile word accesses.
///
/// Elements lie `size_of::<T>()` rounded up to eight bytes apart, as the kernel lays arrays out.
#[derive(Debug)]
pub struct MappedArray<T> {
    base: NonNull<u32>,
    len: u32,
    element: PhantomData<T>,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl<T: Pod + Send> Send for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    /// Distance of two elements in bytes.
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps the array `map`, which must have `len` elements of the size of `T` and must have been
    /// created with `BPF_F_MMAPABLE`: else the kernel refuses.
    pub fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(4)) };
        // SAFETY: a new shared mapping at a place of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::bytes(len),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            base,
            len,
            element: PhantomData,
        })
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
        // aligned u64 inside the mapping, and it lives as long as `self`.
        unsafe { AtomicU64::from_ptr(to.as_ptr().cast()) }.store(word, Ordering::Release);
        true
    }

    fn pointer(&self, index: u32) -> Option<NonNull<u32>> {
        // SAFETY: below `len` elements of STRIDE bytes, the size of the mapping.
        (index < self.len).then(|| unsafe { self.base.byte_add(index as usize * Self::STRIDE) })
    }

    fn bytes(len: u32) -> usize {
        len as usize * Self::STRIDE
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        let bytes = self.len as usize * size_of::<T>().next_multiple_of(8);
        // SAFETY: mapped by `new` with this size, and no pointer into it outlives `self`.
        // Failing would leave it mapped, which harms nobody.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), bytes) };
    }
}
