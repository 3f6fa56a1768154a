//! Which BPF programs hang where, asked of the kernel and not of who attached them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType::{Egress, Ingress};

use super::Netns;

/// `bpf()` command BPF_PROG_QUERY.
const PROG_QUERY: libc::c_int = 16;
/// Attach types of connect, sendmsg, recvmsg and getpeername, for IPv4 and IPv6 (linux/bpf.h).
const SOCKET_HOOKS: [u32; 8] = [10, 11, 14, 15, 19, 20, 29, 30];

/// `union bpf_attr` of BPF_PROG_QUERY.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

/// How many socket hook programs are attached to a cgroup.
pub fn cgroup_programs(cgroup: &Path) -> Result<u32> {
    let shown = || format!("asking for the programs of {}", cgroup.display());
    let folder = File::open(cgroup).with_context(shown)?;
    let mut count = 0;
    for attach_type in SOCKET_HOOKS {
        let target_fd = u32::try_from(folder.as_raw_fd())?;
        let mut query = Query {
            target_fd,
            attach_type,
            ..Query::default()
        };
        let (size, attributes) = (size_of::<Query>(), &raw mut query);
        // SAFETY: the attributes are valid for reads and writes of their size during the call, and
        // no ids are asked for.
        let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, attributes, size) };
        if result != 0 {
            return Err(std::io::Error::last_os_error()).with_context(shown);
        }
        count += query.prog_cnt;
    }
    Ok(count)
}

/// How many TCX programs hang on each interface of a namespace, as lines of text.
pub fn tcx_programs(netns: &Netns) -> Result<String> {
    netns.enter(|| {
        let mut lines = String::new();
        for interface in &nix::net::if_::if_nameindex().context("listing interfaces")? {
            let name = interface.name().to_string_lossy();
            for (kind, word) in [(Ingress, "ingress"), (Egress, "egress")] {
                let (_, programs) = SchedClassifier::query_tcx(&name, kind)
                    .with_context(|| format!("asking for the programs of {name}"))?;
                lines += &format!("{name} {word} {}\n", programs.len());
            }
        }
        Ok(lines)
    })?
}
