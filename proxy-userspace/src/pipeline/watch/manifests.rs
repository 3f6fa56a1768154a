//! The manifest source: what the files say together, and how that differs from what was said last.
//!
//! A file is read again as a whole when it changes. What it says no more is deleted, unless the
//! file has become hard to read: then what was known of the unreadable part stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::decode::{self, Content, Rejection};
use super::files::{self, Fingerprint, SETTLE, unreadable, unsettled};
use super::{KINDS, Selection, hidden};
use crate::objects::{Kind, Object, ObjectEvent, ObjectName};

/// All files below the given paths, as they were last read.
#[derive(Debug)]
pub struct Manifests {
    roots: Vec<PathBuf>,
    selection: Selection,
    files: BTreeMap<PathBuf, File>,
    known: BTreeMap<Key, Known>,
    duplicates: BTreeSet<(Key, PathBuf)>,
}

/// Result of looking at the files again.
#[derive(Debug, Default)]
pub struct Refreshed {
    /// What changed.
    pub events: Vec<ObjectEvent>,
    /// When to look once more, because something has not settled.
    pub again_at: Option<Instant>,
}

type Key = (Kind, ObjectName);

#[derive(Debug, Default)]
struct File {
    /// `None` where it could not be read: tried again at every look.
    fingerprint: Option<Fingerprint>,
    entries: Vec<Entry>,
    has_rejected: bool,
    missing_since: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Entry {
    key: Key,
    object: Arc<Object>,
    line: usize,
}

#[derive(Debug)]
struct Known {
    object: Arc<Object>,
    file: PathBuf,
    is_visible: bool,
}

impl Manifests {
    /// The files and folders in `roots`; only what `selection` says is passed on.
    pub fn new(roots: Vec<PathBuf>, selection: Selection) -> Self {
        Self {
            roots,
            selection,
            files: BTreeMap::new(),
            known: BTreeMap::new(),
            duplicates: BTreeSet::new(),
        }
    }

    /// Reads everything: a complete list of every kind.
    pub fn list(&mut self) -> Vec<ObjectEvent> {
        let mut rejected = Vec::new();
        for (path, metadata) in self.present(&mut rejected) {
            self.read(&path, &metadata, &mut rejected);
        }
        let mut events: Vec<_> = KINDS.into_iter().map(ObjectEvent::Restarted).collect();
        let all = self.files.keys().cloned().collect();
        self.difference(&all, &mut events);
        events.append(&mut rejected);
        events.extend(KINDS.into_iter().map(ObjectEvent::Listed));
        events
    }

    /// Looks at the files again. `written` are files known to be complete; any other whose
    /// appearance changed is read once it has settled.
    pub fn refresh(&mut self, written: &BTreeSet<PathBuf>, now: Instant) -> Refreshed {
        let mut refreshed = Refreshed::default();
        let mut rejected = Vec::new();
        let mut touched = BTreeSet::new();
        let present = self.present(&mut rejected);
        for (path, metadata) in &present {
            let is_written = written.contains(path);
            let seen = Some(Fingerprint::of(metadata));
            let file = self.files.entry(path.clone()).or_default();
            file.missing_since = None;
            if !is_written && file.fingerprint == seen {
                continue;
            }
            match unsettled(metadata).filter(|_| !is_written) {
                Some(rest) => refreshed.look_again(now + rest),
                None => {
                    self.read(path, metadata, &mut rejected);
                    touched.insert(path.clone());
                }
            }
        }
        self.files.retain(|path, file| {
            if present.contains_key(path) {
                return true;
            }
            let gone_at = *file.missing_since.get_or_insert(now) + SETTLE;
            if gone_at > now {
                refreshed.look_again(gone_at);
                return true;
            }
            touched.insert(path.clone());
            if file.has_rejected {
                rejected.push(reread(path));
            }
            false
        });
        if !touched.is_empty() {
            self.difference(&touched, &mut refreshed.events);
        }
        refreshed.events.append(&mut rejected);
        refreshed
    }

    /// Every manifest file there is.
    fn present(&self, rejected: &mut Vec<ObjectEvent>) -> BTreeMap<PathBuf, Metadata> {
        let mut found = BTreeMap::new();
        for root in &self.roots {
            match fs::metadata(root) {
                Ok(metadata) if metadata.is_dir() => files::walk(root, &mut found, rejected),
                Ok(metadata) => {
                    found.insert(root.clone(), metadata);
                }
                // Absence is handled by the caller, by time.
                Err(_) => {}
            }
        }
        found
    }

    fn read(&mut self, path: &Path, metadata: &Metadata, rejected: &mut Vec<ObjectEvent>) {
        let file = self.files.entry(path.to_owned()).or_default();
        if std::mem::take(&mut file.has_rejected) {
            rejected.push(reread(path));
        }
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let is_text_error = error.kind() == io::ErrorKind::InvalidData;
                let seen = Some(Fingerprint::of(metadata));
                file.fingerprint = if is_text_error { seen } else { None };
                file.has_rejected = true;
                rejected.push(unreadable(path, &error));
                return;
            }
        };
        file.fingerprint = Some(Fingerprint::of(metadata));
        let content = decode::decode(&text);
        for (kind, line) in &content.skipped {
            tracing::info!(file = %path.display(), line, kind, "kind is not read: skipped");
        }
        file.take(&content);
        file.has_rejected = !content.rejected.is_empty();
        rejected.extend(
            content
                .rejected
                .into_iter()
                .map(|rejection| event(path, rejection)),
        );
    }

    /// What the files say together against what was known; files in `touched` were read again.
    fn difference(&mut self, touched: &BTreeSet<PathBuf>, events: &mut Vec<ObjectEvent>) {
        let mut claims: BTreeMap<&Key, Vec<(&PathBuf, &Entry)>> = BTreeMap::new();
        // A file that is away for a moment says nothing where another one says it.
        let (present, missing): (Vec<_>, Vec<_>) = self
            .files
            .iter()
            .partition(|(_, file)| file.missing_since.is_none());
        for (path, file) in present {
            for entry in &file.entries {
                claims.entry(&entry.key).or_default().push((path, entry));
            }
        }
        for (path, file) in missing {
            for entry in &file.entries {
                claims
                    .entry(&entry.key)
                    .or_insert_with(|| vec![(path, entry)]);
            }
        }
        let mut deleted = Vec::new();
        self.known.retain(|key, known| {
            let stays = claims.contains_key(key);
            if !stays && known.is_visible {
                deleted.push(ObjectEvent::Deleted(key.0, key.1.clone()));
            }
            stays
        });
        let mut duplicates = BTreeSet::new();
        let mut rejected = Vec::new();
        for (key, claims) in claims {
            // Who was there first stays, so that a second file cannot take an object over.
            let owner = self.known.get(key).map(|known| &known.file);
            let winner = claims
                .iter()
                .position(|(path, _)| Some(*path) == owner)
                .unwrap_or(0);
            let (path, entry) = claims[winner];
            for (index, (second, duplicate)) in claims.iter().enumerate() {
                if index == winner {
                    continue;
                }
                let id = (key.clone(), (*second).clone());
                if touched.contains(*second) || !self.duplicates.contains(&id) {
                    rejected.push(duplicate_event(second, duplicate, path, entry));
                }
                duplicates.insert(id);
            }
            let is_visible = !hidden(&entry.object, &self.selection);
            let known = Known {
                object: entry.object.clone(),
                file: path.clone(),
                is_visible,
            };
            let before = self.known.insert(key.clone(), known);
            let was_disputed = self.duplicates.iter().any(|(disputed, _)| disputed == key);
            let is_settled = was_disputed && claims.len() == 1;
            let change = change(key, before.as_ref(), &entry.object, is_visible);
            // Told once more, so that the complaint about its duplicate is forgotten.
            let again = is_settled && is_visible && change.is_none();
            events.extend(change);
            events.extend(again.then(|| ObjectEvent::Applied((*entry.object).clone())));
        }
        self.duplicates = duplicates;
        // Make before break: an endpoint that moves between slices is never without one.
        events.append(&mut deleted);
        events.append(&mut rejected);
    }
}

impl Refreshed {
    fn look_again(&mut self, at: Instant) {
        self.again_at = Some(self.again_at.map_or(at, |earlier| earlier.min(at)));
    }
}

impl File {
    /// Takes over what the file says, and keeps of the previous content what the file may still
    /// mean to say.
    fn take(&mut self, content: &Content) {
        let previous = std::mem::take(&mut self.entries);
        let by_key: BTreeMap<_, _> = previous.iter().map(|entry| (&entry.key, entry)).collect();
        self.entries = content
            .objects
            .iter()
            .map(|found| {
                let metadata = found.object.metadata();
                let name = ObjectName {
                    namespace: metadata.namespace.clone(),
                    name: metadata.name.clone(),
                };
                let key = (found.object.kind(), name);
                // The same content keeps its place in memory: comparing it again is cheap.
                let same = by_key
                    .get(&key)
                    .filter(|entry| *entry.object == found.object);
                let object = same.map_or_else(
                    || Arc::new(found.object.clone()),
                    |entry| entry.object.clone(),
                );
                Entry {
                    key,
                    object,
                    line: found.line,
                }
            })
            .collect();
        let said: BTreeSet<_> = self.entries.iter().map(|entry| entry.key.clone()).collect();
        let rejected: BTreeSet<_> = content
            .rejected
            .iter()
            .filter_map(|rejection| rejection.object.as_ref())
            .collect();
        let keeps_all = content.has_unknown_rejected();
        self.entries.extend(previous.into_iter().filter(|entry| {
            !said.contains(&entry.key) && (keeps_all || rejected.contains(&entry.key))
        }));
    }
}

fn change(
    key: &Key,
    before: Option<&Known>,
    object: &Arc<Object>,
    is_visible: bool,
) -> Option<ObjectEvent> {
    let was_visible = before.is_some_and(|known| known.is_visible);
    let is_same =
        before.is_some_and(|known| Arc::ptr_eq(&known.object, object) || known.object == *object);
    match (was_visible, is_visible) {
        (true, true) if is_same => None,
        (_, true) => Some(ObjectEvent::Applied((**object).clone())),
        (true, false) => Some(ObjectEvent::Deleted(key.0, key.1.clone())),
        (false, false) => None,
    }
}

fn reread(path: &Path) -> ObjectEvent {
    ObjectEvent::Reread {
        place: path.display().to_string(),
    }
}

fn event(path: &Path, rejection: Rejection) -> ObjectEvent {
    ObjectEvent::Rejected {
        object: rejection.object,
        place: format!("{}:{}", path.display(), rejection.line),
        error: rejection.error,
    }
}

fn duplicate_event(path: &Path, entry: &Entry, first: &Path, winner: &Entry) -> ObjectEvent {
    let place = format!("{}:{}", first.display(), winner.line);
    let error = format!("metadata.name: duplicate, the object is given in {place} already");
    event(
        path,
        Rejection {
            object: Some(entry.key.clone()),
            line: entry.line,
            error,
        },
    )
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
