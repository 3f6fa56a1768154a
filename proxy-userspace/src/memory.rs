//! Memory of this process.

/// Gives what is free back to the kernel. To be called when something large is over: a start leaves
/// tens of megabytes that the allocator would keep for a next time that never comes.
pub fn give_back() {
    // SAFETY: the C library gives back only what nobody holds, and takes its own locks.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
}
