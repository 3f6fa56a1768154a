//! Follows the manifest files with inotify.
//!
//! Latency counts (a backend taken out should lose its traffic at once), so a completed write or a
//! rename is acted on immediately; only what may be half done waits (`files::SETTLE`).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::Sender;

use super::files::SETTLE;
use super::manifests::Manifests;
use super::{Selection, WatchError};
use crate::objects::ObjectEvent;

/// How often the thread looks whether anybody still listens.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(1);

/// Lists the manifests below `roots` and follows them on a thread of its own, until the receiver of
/// `sender` is dropped. Fails where a path does not exist or cannot be watched.
pub fn spawn(
    roots: Vec<PathBuf>,
    selection: Selection,
    sender: Sender<ObjectEvent>,
) -> Result<(), WatchError> {
    for root in &roots {
        fs::metadata(root).map_err(|source| WatchError::Manifests {
            path: root.clone(),
            source,
        })?;
    }
    let (notices, received) = channel();
    let watcher = notify::recommended_watcher(notices).map_err(WatchError::Notify)?;
    let mut follower = Follower {
        roots: roots.clone(),
        watcher,
        received,
    };
    // Watched before the first look, so that no change falls between the two.
    for root in &roots {
        follower.watch(root)?;
    }
    let manifests = Manifests::new(roots, selection);
    std::thread::Builder::new()
        .name("manifests".to_owned())
        .spawn(move || follower.run(manifests, &sender))
        .map_err(WatchError::Thread)?;
    Ok(())
}

type Notice = notify::Result<notify::Event>;

struct Follower {
    roots: Vec<PathBuf>,
    watcher: RecommendedWatcher,
    received: Receiver<Notice>,
}

/// What a batch of notices asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Files that are complete.
    written: BTreeSet<PathBuf>,
    /// A look is due at once.
    is_urgent: bool,
    /// A look is due when things have settled.
    is_later: bool,
    /// Roots that appeared: they need a watch of their own.
    appeared: BTreeSet<PathBuf>,
}

impl Follower {
    fn watch(&mut self, root: &Path) -> Result<(), WatchError> {
        let parent = match root.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        // The parent tells of a root that is replaced as a whole.
        self.watcher
            .watch(parent, RecursiveMode::NonRecursive)
            .map_err(WatchError::Notify)?;
        if root.is_dir() {
            self.watcher
                .watch(root, RecursiveMode::Recursive)
                .map_err(WatchError::Notify)?;
        }
        Ok(())
    }

    fn run(mut self, mut manifests: Manifests, sender: &Sender<ObjectEvent>) {
        if send(sender, manifests.list()).is_err() {
            return;
        }
        let mut again_at: Option<Instant> = None;
        while !sender.is_closed() {
            let now = Instant::now();
            let timeout = again_at
                .map_or(LIVENESS_INTERVAL, |at| at.saturating_duration_since(now))
                .min(LIVENESS_INTERVAL);
            let wanted = match self.received.recv_timeout(timeout) {
                Ok(notice) => wanted(std::iter::once(notice).chain(self.received.try_iter())),
                Err(RecvTimeoutError::Timeout) => Wanted::default(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.watch_appeared(&wanted);
            let now = Instant::now();
            if wanted.is_later {
                again_at = Some(again_at.map_or(now + SETTLE, |at| at.min(now + SETTLE)));
            }
            let is_due = again_at.is_some_and(|at| at <= now);
            if !wanted.is_urgent && !is_due {
                continue;
            }
            let refreshed = manifests.refresh(&wanted.written, now);
            let pending = again_at.filter(|at| *at > now);
            again_at = pending.into_iter().chain(refreshed.again_at).min();
            if send(sender, refreshed.events).is_err() {
                return;
            }
        }
    }

    fn watch_appeared(&mut self, wanted: &Wanted) {
        let roots: Vec<_> = self
            .roots
            .iter()
            .filter(|root| wanted.appeared.contains(*root))
            .cloned()
            .collect();
        for root in roots {
            if let Err(error) = self.watch(&root) {
                tracing::warn!(path = %root.display(), %error, "manifests are not followed");
            }
        }
    }
}

fn send(sender: &Sender<ObjectEvent>, events: Vec<ObjectEvent>) -> Result<(), ()> {
    events
        .into_iter()
        .try_for_each(|event| sender.blocking_send(event).map_err(|_| ()))
}

fn wanted(notices: impl Iterator<Item = Notice>) -> Wanted {
    let mut wanted = Wanted::default();
    for notice in notices {
        match notice {
            Ok(event) => wanted.add(event),
            Err(error) => {
                tracing::warn!(%error, "following the manifests");
                wanted.is_urgent = true;
            }
        }
    }
    wanted
}

impl Wanted {
    fn add(&mut self, event: notify::Event) {
        if event.need_rescan() {
            self.is_urgent = true;
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => self.complete(event.paths),
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
                self.is_later = true;
            }
            EventKind::Modify(ModifyKind::Name(_)) => {
                self.appeared.extend(event.paths.iter().cloned());
                self.complete(event.paths);
            }
            EventKind::Create(CreateKind::Folder) => {
                // Files may be made in it before its own watch exists: a second look finds them.
                self.appeared.extend(event.paths);
                self.is_urgent = true;
                self.is_later = true;
            }
            EventKind::Create(_) => {
                // A created file is complete when it is closed; a link is at once.
                let links: Vec<_> = event.paths.into_iter().filter(|it| is_link(it)).collect();
                if !links.is_empty() {
                    self.complete(links);
                }
            }
            EventKind::Modify(ModifyKind::Metadata(_)) => self.is_later = true,
            EventKind::Access(_) | EventKind::Modify(_) => {}
            EventKind::Any | EventKind::Other => self.is_urgent = true,
        }
    }

    fn complete(&mut self, paths: Vec<PathBuf>) {
        self.written.extend(paths);
        self.is_urgent = true;
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink() || it.nlink() > 1)
}
