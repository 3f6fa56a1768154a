//! The full re-verification (S-010): once an hour the maps are read again, as after a restart, and
//! everything is computed and compared anew. What is as it should be is not written.

use std::time::{Duration, Instant};

use super::Reconciler;
use crate::maps::Maps;
use crate::restore;

/// Between two re-verifications.
pub(in crate::pipeline) const VERIFY_PERIOD: Duration = Duration::from_secs(3600);

impl Reconciler {
    /// Forgets what the maps are believed to hold, where it is time.
    pub(super) fn verify_if_due(&mut self, maps: &impl Maps, now: Instant) {
        if !self.store.is_synced() {
            return;
        }
        let due_at = *self.verify_at.get_or_insert(now + VERIFY_PERIOD);
        if now < due_at {
            return;
        }
        self.verify_at = Some(now + VERIFY_PERIOD);
        let mut shared = restore::shared(maps);
        let v4 = restore::family(maps, &mut shared);
        let v6 = restore::family(maps, &mut shared);
        let shared = std::mem::replace(&mut self.shared, shared);
        self.shared.regions.rest_like(shared.regions);
        self.v4.replace_actual(v4);
        self.v6.replace_actual(v6);
        self.has_taken_restored = false;
        self.has_rested = false;
        self.is_node_touched = true;
        self.store.touch_all();
    }
}
