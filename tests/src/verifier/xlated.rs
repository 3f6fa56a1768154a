//! The instructions of a loaded program, as the kernel shows them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use bytemuck::{Pod, Zeroable};

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register, low half; source register, high half.
    pub registers: u8,
    /// Offset of a memory access or a jump.
    pub offset: i16,
    /// Immediate.
    pub immediate: i32,
}

impl Instruction {
    /// Destination register.
    pub fn destination(&self) -> u8 {
        self.registers & 0xf
    }

    /// Source register.
    pub fn source(&self) -> u8 {
        self.registers >> 4
    }
}

/// The start of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// All instructions of a program, its subprograms behind it.
pub fn instructions(program: impl AsFd) -> Result<Vec<Instruction>> {
    let mut info = ProgInfo::default();
    read(&program, &mut info).context("asking for a program's length")?;
    let count = info.xlated_len as usize / size_of::<Instruction>();
    let mut instructions = vec![Instruction::zeroed(); count];
    let mut info = ProgInfo {
        xlated_len: info.xlated_len,
        xlated: instructions.as_mut_ptr() as u64,
        ..ProgInfo::default()
    };
    read(&program, &mut info).context("asking for a program's instructions")?;
    Ok(instructions)
}

fn read(program: impl AsFd, info: &mut ProgInfo) -> io::Result<()> {
    let mut attr = InfoAttr {
        fd: program.as_fd().as_raw_fd() as u32,
        len: size_of::<ProgInfo>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: layout of BPF_OBJ_GET_INFO_BY_FD; `info`, and the buffer that it may name, are valid
    // for the lengths given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            OBJ_GET_INFO_BY_FD,
            &raw mut attr,
            size_of::<InfoAttr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
