//! What one reconcile did.

use crate::maps::MapError;
use crate::pipeline::apply::{Obstacle, Outcome};

/// What one reconcile did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Successful writes.
    pub writes: u64,
    /// Writes that failed; they are tried again.
    pub failed: u64,
    /// Service ports, prefixes and addresses that found no room in a map.
    pub full: u64,
    /// Service ports, prefixes and addresses that are not as they should be.
    pub pending: u64,
    /// Backends of UDP service ports that are gone: connected sockets may hang on them (S-123).
    pub lost_udp: u64,
}

impl Report {
    pub(super) fn fail(&mut self, error: &MapError) {
        tracing::warn!(%error, "write failed");
        self.pending += 1;
        match error {
            MapError::Full { .. } => self.full += 1,
            MapError::Write { .. } => self.failed += 1,
        }
    }

    pub(super) fn add<A>(&mut self, outcome: Outcome<A>) {
        self.writes += outcome.writes;
        self.failed += outcome.failed;
        self.lost_udp += outcome.lost_udp;
        let obstacles = outcome.obstacles.values().chain(outcome.prefixes.values());
        for obstacle in obstacles {
            self.pending += 1;
            self.full += u64::from(matches!(obstacle, Obstacle::Full(_)));
        }
    }
}
