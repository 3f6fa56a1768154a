//! The configuration file, followed: a file that says something else ends the agent (S-182).

use std::fs;
use std::path::{Path, PathBuf};

/// A file and what it said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    /// `None`: it cannot be read.
    text: Option<String>,
}

impl ConfigFile {
    /// As it is at this moment.
    pub fn read(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            text: fs::read_to_string(path).ok(),
        }
    }

    /// True if it says something else. A file that is gone, as in the middle of being replaced,
    /// says nothing.
    pub fn has_changed(&self) -> bool {
        let text = fs::read_to_string(&self.path).ok();
        text.is_some() && text != self.text
    }
}

#[cfg(test)]
mod tests {
    use crate::rules;

    use super::*;

    #[test]
    fn only_other_contents_are_a_change() {
        rules(&["S-182"]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, "a").unwrap();
        let file = ConfigFile::read(&path);
        fs::write(&path, "a").unwrap();
        assert!(!file.has_changed());
        fs::remove_file(&path).unwrap();
        assert!(!file.has_changed());
        fs::write(&path, "b").unwrap();
        assert!(file.has_changed());
    }
}
