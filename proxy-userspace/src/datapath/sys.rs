//! The few bpf(2) commands that aya does not offer for what is pinned: links of every kind, raw
//! map elements, probes. Each function is one system call.

mod create;
mod programs;
mod query;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytemuck::Pod;

use super::xdp::XdpMode;

pub use self::create::{map_create, map_create_named};
pub use self::programs::{load_connect4, test_run};
pub use self::query::{Hook, program_count, program_name, programs_at};

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h.
const MEMBARRIER_GLOBAL: libc::c_long = 1;

/// Where a link is attached.
#[derive(Clone, Copy, Debug)]
pub enum LinkTarget<'a> {
    /// An interface, by index, at the given end of the list of its programs.
    Interface(u32, Place),
    /// An open cgroup folder.
    Cgroup(BorrowedFd<'a>),
    /// An interface, by index, with its XDP mode.
    Xdp(u32, XdpMode),
}

/// Place in the list of programs at one hook of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Before all that are there.
    First,
    /// After all that are there.
    Last,
}

/// `enum bpf_attach_type` of the hooks in use.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachType {
    /// connect(2) on an IPv4 socket.
    Connect4 = 10,
    /// connect(2) on an IPv6 socket.
    Connect6 = 11,
    /// sendmsg(2) on an unconnected IPv4 UDP socket.
    SendMsg4 = 14,
    /// sendmsg(2) on an unconnected IPv6 UDP socket.
    SendMsg6 = 15,
    /// recvmsg(2) on an IPv4 UDP socket.
    RecvMsg4 = 19,
    /// recvmsg(2) on an IPv6 UDP socket.
    RecvMsg6 = 20,
    /// getpeername(2) on an IPv4 socket.
    GetPeerName4 = 29,
    /// getpeername(2) on an IPv6 socket.
    GetPeerName6 = 30,
    /// TCX, packets that arrive.
    TcxIngress = 46,
    /// XDP.
    Xdp = 37,
    /// TCX, packets that leave.
    TcxEgress = 47,
}

/// What the kernel says of a map.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Kernel's id.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Size.
    pub max_entries: u32,
    /// Creation flags.
    pub flags: u32,
}

/// What the kernel says of a link.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct LinkInfo {
    /// `enum bpf_link_type`.
    pub kind: u32,
    /// Kernel's id.
    pub id: u32,
    /// Id of the program that runs.
    pub prog_id: u32,
    /// Zero.
    pub pad: u32,
    /// For a cgroup link the cgroup's id; for TCX ifindex (low half) and attach type; for XDP
    /// ifindex.
    pub target: u64,
}

/// Makes one bpf(2) call.
///
/// # Safety
/// `attr` must be laid out as the kernel's `union bpf_attr` for `command`, and every address in
/// it must be valid for what the command reads and writes.
pub(super) unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller upholds the layout; the size is that of the value behind the pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Makes one bpf(2) call that returns a file descriptor.
///
/// # Safety
/// As [`bpf`].
unsafe fn bpf_fd<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller upholds the contract.
    let fd = unsafe { bpf(command, attr)? };
    // SAFETY: the command has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Attributes of calls for many elements.
#[repr(C)]
#[derive(Default)]
pub(super) struct BatchAttr {
    pub(super) token: u64,
    pub(super) next_token: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) count: u32,
    pub(super) map: u32,
    pub(super) element_flags: u64,
    pub(super) flags: u64,
}

fn element(map: BorrowedFd<'_>, key: u64, value: u64, flags: u64) -> ElementAttr {
    ElementAttr {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key,
        value,
        flags,
    }
}

/// Writes one element. `key` and `value` must have the map's sizes.
pub fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    map_write(map, key, value, 0)
}

/// Writes elements in one call, which hash tables take (kernel 5.6). Keys lie behind each other, as
/// do values, and there must be as many of both.
pub fn map_update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    if keys.len() != values.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: layout of MAP_UPDATE_BATCH; the kernel reads `count` keys and values, whose sizes are
    // those of the map as in `map_write`.
    unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }.map(drop)
}

/// Writes one element where there is none; else the error is `EEXIST`.
pub fn map_add(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    const NOEXIST: u64 = 1;
    map_write(map, key, value, NOEXIST)
}

fn map_write(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let mut attr = element(map, key.as_ptr() as u64, value.as_ptr() as u64, flags);
    // SAFETY: layout of MAP_UPDATE_ELEM; the kernel reads key and value, of the sizes that the
    // maps of `datapath::maps` are checked to have when they are opened.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Removes one element; one that is not there is not an error.
pub fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = element(map, key.as_ptr() as u64, 0, 0);
    // SAFETY: as in `map_update`.
    match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Reads one element into `value`; false when there is none.
pub fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = element(map, key.as_ptr() as u64, value.as_mut_ptr() as u64, 0);
    // SAFETY: as in `map_update`; the kernel writes `value`, which the caller sized for the map.
    found(unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) })
}

/// Writes the key after `key` (`None`: the first) into `next`; false at the end.
pub fn map_next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let start = key.map_or(0, |key| key.as_ptr() as u64);
    let mut attr = element(map, start, next.as_mut_ptr() as u64, 0);
    // SAFETY: as in `map_lookup`.
    found(unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) })
}

fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct PathAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Pins a map, program or link.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = PathAttr {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: layout of OBJ_PIN; the path is a C string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = PathAttr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: as in `pin`.
    unsafe { bpf_fd(OBJ_GET, &mut attr) }
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

fn info<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoAttr {
        fd: object.as_raw_fd() as u32,
        len: size_of::<T>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: layout of OBJ_GET_INFO_BY_FD; the kernel writes at most `len` bytes of plain data.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info)
}

/// Asks for a map's type and sizes.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

/// Asks for the kernel's id of a map, program or link.
pub fn object_id(object: BorrowedFd<'_>) -> io::Result<u32> {
    // What is known of any of them begins with type and id.
    let [_kind, id]: [u32; 2] = info(object)?;
    Ok(id)
}

/// Asks what a link is attached to. `EINVAL` and the like mean that it is not a link.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// Attaches a program by a link: it stays as long as the link is open or pinned.
pub fn link_create(
    program: BorrowedFd<'_>,
    target: LinkTarget<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    const BEFORE: u32 = 1 << 3;
    // XDP_FLAGS_SKB_MODE and XDP_FLAGS_DRV_MODE of linux/if_link.h.
    const GENERIC: u32 = 1 << 1;
    const NATIVE: u32 = 1 << 2;
    let (target, flags) = match target {
        LinkTarget::Interface(ifindex, Place::First) => (ifindex, BEFORE),
        LinkTarget::Interface(ifindex, Place::Last) => (ifindex, 0),
        LinkTarget::Cgroup(folder) => (folder.as_raw_fd() as u32, 0),
        LinkTarget::Xdp(ifindex, XdpMode::Native) => (ifindex, NATIVE),
        LinkTarget::Xdp(ifindex, XdpMode::Generic) => (ifindex, GENERIC),
    };
    let mut attr = LinkAttr {
        program: program.as_raw_fd() as u32,
        target,
        attach_type: attach_type as u32,
        flags,
        ..LinkAttr::default()
    };
    // SAFETY: layout of LINK_CREATE; it holds no addresses.
    unsafe { bpf_fd(LINK_CREATE, &mut attr) }
}

/// Replaces the program of a link, atomically.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [link.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
    // SAFETY: layout of LINK_UPDATE; it holds no addresses.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link whoever else holds it open.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [link.as_raw_fd() as u32];
    // SAFETY: layout of LINK_DETACH; it holds no addresses.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

/// Waits until every program that runs has ended: whoever was swapped before has written what it
/// will write.
pub fn await_programs() {
    // SAFETY: takes numbers alone. It waits for a grace period of RCU, in which programs run; where
    // the kernel has no such call, what is swapped ends within microseconds all the same.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
}
