//! A real terminal: a tmux server with one pane.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::net::eventually;

/// For a screen to show what it should: some ticks, with both processors busy.
const SOON: Duration = Duration::from_secs(30);
/// What the shell in the terminal prints when the command has ended, before its code.
pub const ENDED: &str = "ended with code";

/// Columns and lines of a terminal.
pub type Size = (u16, u16);

/// A terminal with a server of its own; both end with this.
pub struct Screen {
    socket: PathBuf,
}

impl Screen {
    /// Runs a script in a terminal. `dir`: where the server's socket lies.
    pub fn start(dir: &Path, (columns, lines): Size, script: &str) -> Result<Self> {
        // The server of an earlier screen may still be on its way out.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let socket = dir.join(format!("tmux{number}"));
        let screen = Self { socket };
        // After the script the pane stays, with what it shows.
        let script = format!("{script}; echo {ENDED} $?; exec cat");
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let begin = ["-f", "/dev/null", "-u", "new-session", "-d"];
        let size = ["-x", &columns, "-y", &lines];
        screen.tmux(&[&begin[..], &size, &["sh", "-c", &script]].concat())?;
        Ok(screen)
    }

    /// Runs a command of tmux, and returns what it prints.
    pub fn tmux(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).args(words);
        command.env("LC_ALL", "C.UTF-8").env_remove("TMUX");
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().context("starting tmux")?;
        let error = String::from_utf8_lossy(&stderr);
        ensure!(status.success(), "tmux {words:?}: {error}");
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// What is seen.
    pub fn text(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with its colors, as escape sequences (ECMA-48).
    pub fn colored(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Presses keys, by tmux' names.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Waits until the screen is as it should be.
    pub fn await_text(&self, what: &str, is_it: impl Fn(&[&str]) -> bool) -> Result<()> {
        eventually(SOON, || {
            let text = self.text()?;
            let lines: Vec<&str> = text.lines().collect();
            ensure!(is_it(&lines), "{what}, on this screen:\n{text}");
            Ok(())
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It has ended by itself where the terminal could not be made.
        let _ = self.tmux(&["kill-server"]);
    }
}
