//! Which manifest files there are, and how to tell that one changed.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::objects::ObjectEvent;

/// How long a file may be absent, or unfinished, before that counts: editors move a file away and
/// write it again, which must not take a Service down in between.
pub const SETTLE: Duration = Duration::from_millis(50);

/// What tells that a file changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Fingerprint {
    /// Of the file that `metadata` describes.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: metadata.modified().ok(),
        }
    }
}

/// Time until a file counts as complete, where it was changed a moment ago.
pub fn unsettled(metadata: &Metadata) -> Option<Duration> {
    let age = metadata.modified().ok()?.elapsed().ok()?;
    SETTLE.checked_sub(age).filter(|rest| !rest.is_zero())
}

/// Collects the manifest files below a folder. Hidden names are left out: a mounted ConfigMap keeps
/// its versions in hidden folders and links the files from the visible place.
pub fn walk(
    folder: &Path,
    found: &mut BTreeMap<PathBuf, Metadata>,
    rejected: &mut Vec<ObjectEvent>,
) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return rejected.push(unreadable(folder, &error)),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let is_folder = entry.file_type().is_ok_and(|it| it.is_dir());
        if is_hidden {
            continue;
        }
        if is_folder {
            walk(&path, found, rejected);
        } else if is_manifest(&path) {
            // A link may lead nowhere for a moment: absent, like any other file.
            if let Some(metadata) = fs::metadata(&path).ok().filter(Metadata::is_file) {
                found.insert(path, metadata);
            }
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        ["yaml", "yml", "json"]
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    })
}

/// The complaint about a file or folder that cannot be read.
pub fn unreadable(path: &Path, error: &io::Error) -> ObjectEvent {
    ObjectEvent::Rejected {
        object: None,
        place: path.display().to_string(),
        error: format!("cannot be read: {error}"),
    }
}
