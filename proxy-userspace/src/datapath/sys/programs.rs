//! Programs out of raw instructions, and runs of programs outside of any hook.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use super::{AttachType, bpf, bpf_fd};

const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

/// Loads a cgroup connect4 program from raw instructions; used to probe helpers.
pub fn load_connect4(instructions: &[u64]) -> io::Result<OwnedFd> {
    const CGROUP_SOCK_ADDR: u32 = 18;
    let license = c"GPL";
    let mut attr = LoadAttr {
        kind: CGROUP_SOCK_ADDR,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: AttachType::Connect4 as u32,
        ..LoadAttr::default()
    };
    // SAFETY: layout of PROG_LOAD; the instructions and the license outlive the call.
    unsafe { bpf_fd(PROG_LOAD, &mut attr) }
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    program: u32,
    result: u32,
    data_in_len: u32,
    data_out_len: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Runs a tc program once on `packet` and returns its return value.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut attr = TestRunAttr {
        program: program.as_raw_fd() as u32,
        data_in_len: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        ..TestRunAttr::default()
    };
    // SAFETY: layout of PROG_TEST_RUN; the kernel reads `packet`, and writes none of our memory.
    unsafe { bpf(PROG_TEST_RUN, &mut attr)? };
    Ok(attr.result)
}
