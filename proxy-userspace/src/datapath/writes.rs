//! How often an agent has written its maps, and the aid of the tests that ends it after a chosen
//! write.

use nix::sys::signal::{Signal, raise};

/// Counts the writes of one agent.
#[derive(Debug, Default)]
pub struct WriteCounter {
    done: u64,
    /// The process ends with this write.
    last: Option<u64>,
}

impl WriteCounter {
    /// Writes so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Ends the process by SIGKILL after `more` further writes.
    pub fn kill_after(&mut self, more: u64) {
        self.last = Some(self.done + more);
    }

    /// Counts one write, which has happened.
    pub(super) fn count(&mut self) {
        self.done += 1;
        if self.last == Some(self.done) {
            // A signal that nobody can catch: what is pinned is left as it is at this moment.
            // Raising it cannot fail.
            let _ = raise(Signal::SIGKILL);
        }
    }
}
