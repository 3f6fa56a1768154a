//! Maps that are made.

use std::io;
use std::os::fd::OwnedFd;

use super::bpf_fd;

const MAP_CREATE: libc::c_long = 0;

/// Creates a map without a name.
pub fn map_create(kind: u32, sizes: [u32; 3], flags: u32) -> io::Result<OwnedFd> {
    let [key_size, value_size, max_entries] = sizes;
    let mut attr = [kind, key_size, value_size, max_entries, flags, 0];
    // SAFETY: layout of MAP_CREATE; it holds no addresses.
    unsafe { bpf_fd(MAP_CREATE, &mut attr) }
}

/// Creates a map that goes by `name`, cut to 15 bytes. Sizes as in [`map_create`].
pub fn map_create_named(name: &str, kind: u32, sizes: [u32; 3]) -> io::Result<OwnedFd> {
    const NAME_LEN: usize = 16;
    let [key_size, value_size, max_entries] = sizes;
    let mut bytes = [0; NAME_LEN];
    let kept = name.len().min(NAME_LEN - 1);
    bytes[..kept].copy_from_slice(&name.as_bytes()[..kept]);
    let name: [u32; NAME_LEN / 4] = bytemuck::cast(bytes);
    // Behind the sizes: flags, inner map, NUMA node.
    let mut attr = [0; 7 + NAME_LEN / 4];
    attr[..4].copy_from_slice(&[kind, key_size, value_size, max_entries]);
    attr[7..].copy_from_slice(&name);
    // SAFETY: layout of MAP_CREATE; it holds no addresses.
    unsafe { bpf_fd(MAP_CREATE, &mut attr) }
}
