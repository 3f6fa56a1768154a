//! Socket programs at a cgroup: attached by pinned links, several programs side by side.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::load::{Programs, SOCKET_PROGRAMS};
use super::pin::{PinError, PinKind, Pins};
use super::sys::{self, AttachType, LinkTarget};

/// Why the socket programs could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Not a cgroup v2 folder.
    #[error(
        "{path} is not a cgroup v2 folder; name one by --cgroup (on a hybrid system \
         /sys/fs/cgroup/unified), or switch the socket programs off by --socket-lb off"
    )]
    NotCgroup2 {
        /// Which folder.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("attaching {name} to the cgroup")]
    Attach {
        /// Which program.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The link could not be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// An open cgroup v2 folder.
#[derive(Debug)]
pub struct Cgroup {
    folder: File,
    /// The kernel's id of a cgroup is the number of its inode.
    id: u64,
}

impl Cgroup {
    /// Opens `path`, or says that it is none.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let refused = || CgroupError::NotCgroup2 {
            path: path.to_owned(),
        };
        let is_cgroup2 = statfs(path).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC);
        if !is_cgroup2 {
            return Err(refused());
        }
        let folder = File::open(path).map_err(|_| refused())?;
        let id = folder.metadata().map_err(|_| refused())?.ino();
        Ok(Self { folder, id })
    }

    /// The open folder.
    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// The kernel's id of it.
    pub fn id(&self) -> u64 {
        self.id
    }
}

/// Attaches every socket program to `cgroup`, or swaps it where its link is pinned already.
pub fn attach(pins: &Pins, programs: &Programs, cgroup: &Cgroup) -> Result<(), CgroupError> {
    for name in SOCKET_PROGRAMS {
        attach_one(pins, programs, cgroup, name)?;
    }
    Ok(())
}

fn attach_one(
    pins: &Pins,
    programs: &Programs,
    cgroup: &Cgroup,
    name: &'static str,
) -> Result<(), CgroupError> {
    let program = programs.get(name);
    if let Some(link) = pins.open(PinKind::Links, name)? {
        let is_here = sys::link_info(link.as_fd()).is_ok_and(|info| info.target == cgroup.id);
        if is_here && sys::link_update(link.as_fd(), program).is_ok() {
            programs.swapped();
            return Ok(());
        }
        // Attached elsewhere, or to a cgroup that is gone.
        pins.remove_link(name)?;
    }
    let target = LinkTarget::Cgroup(cgroup.folder.as_fd());
    let link = sys::link_create(program, target, attach_type(name))
        .map_err(|source| CgroupError::Attach { name, source })?;
    Ok(pins.replace(PinKind::Links, name, link.as_fd())?)
}

/// Names of the socket programs that are not attached to `cgroup` as [`attach`] left them.
pub fn missing(pins: &Pins, programs: &Programs, cgroup: &Cgroup) -> Vec<&'static str> {
    let is_missing = |name: &&'static str| {
        let link = pins.open(PinKind::Links, name);
        let (Ok(Some(link)), Ok(id)) = (link, sys::object_id(programs.get(name))) else {
            return true;
        };
        sys::link_info(link.as_fd())
            .is_ok_and(|info| info.prog_id != id || info.target != cgroup.id)
    };
    SOCKET_PROGRAMS.into_iter().filter(is_missing).collect()
}

/// Detaches every socket program.
pub fn detach(pins: &Pins) -> Result<(), CgroupError> {
    for name in SOCKET_PROGRAMS {
        pins.remove_link(name)?;
    }
    Ok(())
}

/// The hook of a socket program.
pub(super) fn attach_type(name: &str) -> AttachType {
    match name {
        "connect4" => AttachType::Connect4,
        "connect6" => AttachType::Connect6,
        "sendmsg4" => AttachType::SendMsg4,
        "sendmsg6" => AttachType::SendMsg6,
        "recvmsg4" => AttachType::RecvMsg4,
        "recvmsg6" => AttachType::RecvMsg6,
        "getpeername4" => AttachType::GetPeerName4,
        _ => AttachType::GetPeerName6,
    }
}
