//! Which programs run at a hook, whoever attached them.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use super::{AttachType, bpf, bpf_fd, info};

const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_QUERY: libc::c_long = 16;

/// Programs of one hook that are asked for at first: as many as fit into one list of TCX.
const PROGRAMS_USUAL: usize = 64;

/// Whose programs are asked for.
#[derive(Clone, Copy, Debug)]
pub enum Hook<'a> {
    /// Those of an interface.
    Interface(u32),
    /// Those that run for processes of an open cgroup folder: its own and its ancestors'.
    Cgroup(BorrowedFd<'a>),
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

/// Counts the programs at a hook of an interface; `EINVAL` where the kernel has no such hook.
pub fn program_count(ifindex: u32, attach_type: AttachType) -> io::Result<u32> {
    let mut attr = QueryAttr {
        target: ifindex,
        attach_type: attach_type as u32,
        ..QueryAttr::default()
    };
    // SAFETY: layout of PROG_QUERY; all addresses are zero, so only the count is written.
    unsafe { bpf(PROG_QUERY, &mut attr)? };
    Ok(attr.count)
}

/// Ids of the programs at a hook, in the order in which they run.
pub fn programs_at(hook: Hook<'_>, attach_type: AttachType) -> io::Result<Vec<u32>> {
    const EFFECTIVE: u32 = 1;
    let (target, query_flags) = match hook {
        Hook::Interface(ifindex) => (ifindex, 0),
        Hook::Cgroup(folder) => (folder.as_raw_fd() as u32, EFFECTIVE),
    };
    let mut size = PROGRAMS_USUAL;
    loop {
        let mut ids = vec![0_u32; size];
        let mut attr = QueryAttr {
            target,
            attach_type: attach_type as u32,
            query_flags,
            ids: ids.as_mut_ptr() as u64,
            count: size as u32,
            ..QueryAttr::default()
        };
        // SAFETY: layout of PROG_QUERY; the kernel writes at most `count` ids.
        match unsafe { bpf(PROG_QUERY, &mut attr) } {
            // Nobody has ever attached a program there.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < 1 << 16 => size *= 2,
            Err(error) => return Err(error),
            Ok(_) => {
                ids.truncate(attr.count as usize);
                return Ok(ids);
            }
        }
    }
}

/// `struct bpf_prog_info` of linux/bpf.h, as far as the name.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: u64,
    lengths: [u32; 2],
    instructions: [u64; 2],
    load_time: u64,
    uid: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// The name of a program by its id; `ENOENT` where it is gone.
pub fn program_name(id: u32) -> io::Result<String> {
    let mut attr = [id, 0, 0];
    // SAFETY: layout of PROG_GET_FD_BY_ID; it holds no addresses.
    let program = unsafe { bpf_fd(PROG_GET_FD_BY_ID, &mut attr)? };
    let info: ProgramInfo = info(program.as_fd())?;
    let name = CStr::from_bytes_until_nul(&info.name);
    Ok(name.map_or_else(
        |_| String::new(),
        |name| name.to_string_lossy().into_owned(),
    ))
}
