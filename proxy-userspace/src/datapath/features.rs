//! What this kernel can do, found by trying, and the refusals that come before any change.

use std::fmt;
use std::io;
use std::os::fd::AsFd as _;

use serde::{Deserialize, Serialize};

use super::sys::{self, AttachType};
use super::udp_sockets;

/// Oldest kernel that has everything without a fallback (ring buffer, mmapable arrays, cgroup
/// links, `bpf_redirect_neigh`, netns cookies).
const KERNEL_MIN: (u32, u32) = (5, 10);

/// Why this machine cannot run the datapath at all.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// Too old.
    #[error("this kernel is {found}; shunt needs 5.10 or newer: upgrade the node's kernel")]
    KernelTooOld {
        /// Its release.
        found: String,
    },
    /// No right to use BPF.
    #[error(
        "no right to use BPF ({source}): run as root, in a container privileged or with \
         CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN"
    )]
    NotAllowed {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No BPF.
    #[error("this kernel has no BPF ({source}): it needs CONFIG_BPF_SYSCALL")]
    NoBpf {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What the kernel can do beyond the minimum.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    /// Its release, as `uname -r` says.
    pub kernel: String,
    /// TCX links (6.6); else clsact filters.
    pub tcx: bool,
    /// `bpf_set_retval` (5.18); else a refusal is left to the packet path (P-12).
    pub set_retval: bool,
    /// Ring buffer.
    pub ring_buffer: bool,
    /// BPF type information of the kernel.
    pub btf: bool,
    /// UDP sockets can be destroyed (CONFIG_INET_DIAG_DESTROY).
    pub udp_destroy: bool,
}

impl Features {
    /// Probes the kernel; changes nothing but this process' limit of locked memory.
    pub fn probe() -> Result<Self, FeatureError> {
        let kernel = release();
        if parse_release(&kernel).is_some_and(|release| release < KERNEL_MIN) {
            return Err(FeatureError::KernelTooOld { found: kernel });
        }
        raise_locked_memory();
        probe_map()?;
        Ok(Self {
            kernel,
            tcx: has_tcx(),
            set_retval: has_set_retval(),
            ring_buffer: has_ring_buffer(),
            udp_destroy: udp_sockets::can_destroy(),
            btf: std::path::Path::new("/sys/kernel/btf/vmlinux").exists(),
        })
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.tcx, "TCX"),
            (self.set_retval, "bpf_set_retval"),
            (self.ring_buffer, "ring buffer"),
            (self.btf, "BTF"),
            (self.udp_destroy, "destruction of UDP sockets"),
        ];
        let found = all.into_iter().filter(|(is_there, _)| *is_there);
        let names: Vec<&str> = found.map(|(_, name)| name).collect();
        f.write_str(&names.join(", "))
    }
}

/// What limits the memory of maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockedMemory {
    /// From 5.11 on it counts against a cgroup.
    NotCounted,
    /// The limit can be raised.
    Unlimited,
    /// It cannot: so many bytes.
    Limited(u64),
}

impl LockedMemory {
    /// Asks the kernel; changes nothing but this process' limit.
    pub fn read() -> Self {
        const CGROUPS_COUNT: (u32, u32) = (5, 11);
        if parse_release(&release()).is_none_or(|release| release >= CGROUPS_COUNT) {
            return Self::NotCounted;
        }
        raise_locked_memory();
        match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK) {
            Ok((limit, _)) if limit != libc::RLIM_INFINITY => Self::Limited(limit),
            _ => Self::Unlimited,
        }
    }
}

fn release() -> String {
    let uname = nix::sys::utsname::uname();
    uname
        .map(|uname| uname.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Reads the first two numbers of a release like `6.1.0-37-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Below 5.11 maps count against this limit, whose default is far below what ours take.
fn raise_locked_memory() {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the kernel only reads the limit. Failing shows when a map is made.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) };
}

fn probe_map() -> Result<(), FeatureError> {
    const ARRAY: u32 = 2;
    match sys::map_create(ARRAY, [4, 8, 1], 0) {
        Ok(_) => Ok(()),
        Err(source) if source.raw_os_error() == Some(libc::ENOSYS) => {
            Err(FeatureError::NoBpf { source })
        }
        Err(source) => Err(FeatureError::NotAllowed { source }),
    }
}

fn has_tcx() -> bool {
    // The loopback interface is 1 in every network namespace. Kernels without TCX refuse the
    // attach type; whether programs are there does not matter.
    match sys::program_count(1, AttachType::TcxIngress) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENOENT),
    }
}

fn has_set_retval() -> bool {
    const SET_RETVAL: u64 = 187;
    let program = [
        0x01b7,                  // r1 = 0
        0x85 | SET_RETVAL << 32, // call bpf_set_retval
        0xb7 | 1 << 32,          // r0 = 1
        0x95,                    // exit
    ];
    sys::load_connect4(&program).is_ok()
}

fn has_ring_buffer() -> bool {
    const RING_BUFFER: u32 = 27;
    sys::map_create(RING_BUFFER, [0, 0, 1 << 16], 0)
        .is_ok_and(|map| sys::map_info(map.as_fd()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::parse_release;

    #[test]
    fn releases_compare_by_their_first_two_numbers() {
        assert_eq!(parse_release("6.1.0-37-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.4.0"), Some((5, 4)));
        assert_eq!(parse_release("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(parse_release("weird"), None);
    }
}
