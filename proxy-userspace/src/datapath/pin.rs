//! Pins: where maps, programs and links of one agent lie on its bpffs, and who may touch them.
//!
//! Below DIR/shunt: `maps/NAME`, `programs/NAME`, `links/HOOK` or `links/IFINDEX_DIRECTION`, and
//! `clsact/IFINDEX` where a filter stands in for a link. An agent holds a lock on DIR/shunt.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::catalog::MapSpec;
use super::sys::{self, MapInfo};

/// Why pins could not be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The folder is missing and could not be made.
    #[error("{path} could not be made or opened: {source}; name a folder on a bpffs by --bpffs")]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The folder lies on another file system.
    #[error("{path} is not on a bpffs; mount one: mount -t bpf bpf {path}")]
    NotBpffs {
        /// Which folder.
        path: PathBuf,
    },
    /// Another agent holds the lock.
    #[error("another shunt agent uses {path}; stop it, or give this one its own --bpffs folder")]
    InUse {
        /// Which folder.
        path: PathBuf,
    },
    /// A pin is not ours, or of another version of ours.
    #[error(
        "{path} is {found}, not {expected}: it belongs to another program or version; \
         run `shunt cleanup` of the version that made it, or remove it"
    )]
    Stranger {
        /// Which pin.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A pin that must be there is not.
    #[error(
        "{path} is missing while other pins of its kind are there: somebody has removed it; run \
         `shunt cleanup` (flows are lost), or restore it"
    )]
    Missing {
        /// Which pin.
        path: PathBuf,
    },
    /// A pin could not be opened.
    #[error("opening the pin {path}")]
    Open {
        /// Which pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pin could not be made, renamed or removed.
    #[error("writing the pin {path}")]
    Write {
        /// Which pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An array could not be mapped into memory.
    #[error("mapping the array {name} into memory")]
    Map {
        /// Which map.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The kinds of pins, each in a folder of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinKind {
    /// Maps.
    Maps,
    /// Programs.
    Programs,
    /// Links.
    Links,
    /// Marks of interfaces that carry our filters instead of links.
    Clsact,
    /// Maps that are to take the place of pinned ones; for the length of a start.
    NextMaps,
    /// Maps whose place was taken, while old programs may use them; for the length of a start.
    OldMaps,
}

impl PinKind {
    /// All kinds, in the order in which cleanup removes them: what runs goes first.
    pub const ALL: [Self; 6] = [
        Self::Links,
        Self::Clsact,
        Self::Programs,
        Self::NextMaps,
        Self::OldMaps,
        Self::Maps,
    ];
    /// Those that every agent has.
    const LASTING: [Self; 4] = [Self::Links, Self::Clsact, Self::Programs, Self::Maps];

    fn folder(self) -> &'static str {
        match self {
            Self::Maps => "maps",
            Self::Programs => "programs",
            Self::Links => "links",
            Self::Clsact => "clsact",
            Self::NextMaps => "maps_next",
            Self::OldMaps => "maps_old",
        }
    }
}

/// The pins below one bpffs folder.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// Keeps other agents away from the pins as long as it lives.
#[derive(Debug)]
pub struct PinLock {
    _folder: Flock<File>,
}

impl Pins {
    /// Names the pins below `bpffs` without touching anything.
    pub fn at(bpffs: &Path) -> Self {
        Self {
            root: bpffs.join("shunt"),
        }
    }

    /// Makes the folders, having checked that `bpffs` (or the nearest folder above it that
    /// exists) lies on a bpffs.
    pub fn create(bpffs: &Path) -> Result<Self, PinError> {
        let existing = bpffs
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(bpffs);
        if !is_bpffs(existing) {
            return Err(PinError::NotBpffs {
                path: bpffs.to_owned(),
            });
        }
        let pins = Self::at(bpffs);
        for kind in PinKind::LASTING {
            pins.make_folder(kind)?;
        }
        Ok(pins)
    }

    /// Makes the folder of one kind of pins; one that is there is not an error.
    pub fn make_folder(&self, kind: PinKind) -> Result<(), PinError> {
        let path = self.folder(kind);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| PinError::Folder { path, source })
    }

    /// Removes the folder of one kind with all pins in it; none that is there is not an error.
    pub fn remove_folder(&self, kind: PinKind) -> Result<(), PinError> {
        for name in self.names(kind) {
            self.remove(kind, &name)?;
        }
        remove_dir(self.folder(kind))
    }

    /// Lets all pins of one kind be of another one, of which there must be none.
    pub fn rename_folder(&self, from: PinKind, to: PinKind) -> Result<(), PinError> {
        let path = self.folder(to);
        fs::rename(self.folder(from), &path).map_err(|source| PinError::Write { path, source })
    }

    /// True if an agent has ever made its folders here.
    pub fn exist(&self) -> bool {
        self.root.is_dir()
    }

    /// The folder that holds everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A name that tells these pins from those of other agents on the machine.
    pub fn identity(&self) -> io::Result<String> {
        let folder = fs::metadata(&self.root)?;
        Ok(format!("{:x}-{:x}", folder.dev(), folder.ino()))
    }

    /// Takes the lock, or says that another agent has it.
    pub fn lock(&self) -> Result<PinLock, PinError> {
        let path = self.root.clone();
        let folder = File::open(&path).map_err(|source| PinError::Folder {
            path: path.clone(),
            source,
        })?;
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(folder) => Ok(PinLock { _folder: folder }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(PinError::InUse { path }),
            Err((_, errno)) => Err(PinError::Folder {
                path,
                source: errno.into(),
            }),
        }
    }

    /// The folder of one kind of pins.
    pub fn folder(&self, kind: PinKind) -> PathBuf {
        self.root.join(kind.folder())
    }

    /// The path of one pin.
    pub fn path(&self, kind: PinKind, name: &str) -> PathBuf {
        self.folder(kind).join(name)
    }

    /// Names of all pins of a kind; none where the folder is missing.
    pub fn names(&self, kind: PinKind) -> BTreeSet<String> {
        let entries = fs::read_dir(self.folder(kind))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Opens a pin; `None` where there is none.
    pub fn open(&self, kind: PinKind, name: &str) -> Result<Option<OwnedFd>, PinError> {
        let path = self.path(kind, name);
        match sys::open_pinned(&path) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PinError::Open { path, source }),
        }
    }

    /// Pins an object under `name`, in place of what is pinned there, without a moment in which
    /// nothing is.
    pub fn replace(
        &self,
        kind: PinKind,
        name: &str,
        object: BorrowedFd<'_>,
    ) -> Result<(), PinError> {
        let path = self.path(kind, name);
        let aside = self.path(kind, &format!("{name}_next"));
        // A leftover of an agent that died between the two steps below.
        let _ = fs::remove_file(&aside);
        sys::pin(object, &aside)
            .and_then(|()| fs::rename(&aside, &path))
            .map_err(|source| PinError::Write { path, source })
    }

    /// Removes a pin; one that is not there is not an error.
    pub fn remove(&self, kind: PinKind, name: &str) -> Result<(), PinError> {
        let path = self.path(kind, name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Detaches the program of a pinned link, and removes the pin. Removing the pin alone would
    /// detach it too, but some time later.
    pub fn remove_link(&self, name: &str) -> Result<(), PinError> {
        if let Some(link) = self.open(PinKind::Links, name)? {
            // Fails where the interface or cgroup is gone, and the program with it.
            let _ = sys::link_detach(link.as_fd());
        }
        self.remove(PinKind::Links, name)
    }

    /// Opens a map that must be there.
    pub fn map(&self, name: &'static str) -> Result<(OwnedFd, MapInfo), PinError> {
        let path = self.path(PinKind::Maps, name);
        let opened = sys::open_pinned(&path).and_then(|fd| {
            let info = sys::map_info(fd.as_fd())?;
            Ok((fd, info))
        });
        opened.map_err(|source| PinError::Open { path, source })
    }

    /// Refuses a map whose key or value has another size than `[key, value]`.
    pub fn check_sizes(
        &self,
        name: &str,
        info: &MapInfo,
        sizes: [usize; 2],
    ) -> Result<(), PinError> {
        if [info.key_size as usize, info.value_size as usize] == sizes {
            return Ok(());
        }
        Err(PinError::Stranger {
            path: self.path(PinKind::Maps, name),
            found: format!("a map of {} + {} bytes", info.key_size, info.value_size),
            expected: format!("one of {} + {} bytes", sizes[0], sizes[1]),
        })
    }

    /// Refuses a map of another type than `spec` says.
    pub fn check_kind(&self, spec: &MapSpec, info: &MapInfo) -> Result<(), PinError> {
        match info.kind == spec.kind as u32 {
            true => Ok(()),
            false => Err(PinError::Stranger {
                path: self.path(PinKind::Maps, spec.name),
                found: format!("a map of type {}", info.kind),
                expected: format!("one of type {}", spec.kind as u32),
            }),
        }
    }

    /// Removes the folders, empty by then; ones that are not there are not an error.
    pub fn remove_folders(&self) -> Result<(), PinError> {
        let folders = PinKind::ALL.map(|kind| self.folder(kind));
        folders
            .into_iter()
            .chain([self.root.clone()])
            .try_for_each(remove_dir)
    }
}

fn remove_dir(path: PathBuf) -> Result<(), PinError> {
    match fs::remove_dir(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinError::Write { path, source })
        }
        _ => Ok(()),
    }
}

/// True if a path that exists lies on a bpffs.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}
