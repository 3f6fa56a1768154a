//! Whether updates reach the maps in time (S-144), and whether this node should get traffic
//! (S-145 to S-147). Time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use crate::objects::Node;

/// The autoscaler marks nodes with it before it takes them away (S-145).
pub const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The time of what never happened, as Go writes it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A point in time: by the clock that durations need, and by the one that people read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Monotonic.
    pub instant: Instant,
    /// Of the day.
    pub time: Timestamp,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self {
            instant: Instant::now(),
            time: Timestamp::now(),
        }
    }
}

/// How both families keep up, and whether the node is eligible.
#[derive(Clone, Debug)]
pub struct ProxyHealth {
    /// An update that waits as long as this is late.
    patience: Duration,
    families: BTreeMap<&'static str, FamilyHealth>,
    is_node_eligible: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct FamilyHealth {
    updated: Option<Timestamp>,
    oldest_queued: Option<Instant>,
    /// What waits lacks room in a map, and nothing else (decision 0018).
    is_short_of_room: bool,
}

impl ProxyHealth {
    /// Healthy, until something is late. An update is late after 2 x `sync_period`.
    pub fn new(sync_period: Duration) -> Self {
        Self {
            patience: sync_period * 2,
            families: BTreeMap::new(),
            is_node_eligible: false,
        }
    }

    /// An update of this family waits. The oldest one counts.
    pub fn queued(&mut self, family: &'static str, now: Moment) {
        let family = self.families.entry(family).or_default();
        family.oldest_queued.get_or_insert(now.instant);
        family.is_short_of_room = false;
    }

    /// An update of this family waits until a map has room for it: this family is late as with any
    /// other update, but neither another start nor another node would help.
    pub fn short_of_room(&mut self, family: &'static str, now: Moment) {
        self.queued(family, now);
        self.families.entry(family).or_default().is_short_of_room = true;
    }

    /// Everything known is programmed in this family.
    pub fn updated(&mut self, family: &'static str, now: Moment) {
        let family = self.families.entry(family).or_default();
        family.oldest_queued = None;
        family.updated = Some(now.time);
    }

    /// Takes in the own Node; `None`: unknown, or deleted.
    pub fn set_node(&mut self, node: Option<&Node>) {
        self.is_node_eligible = node.is_some_and(is_eligible);
    }

    /// True if no update of any family is late that could be in time.
    pub fn is_healthy(&self, now: Moment) -> bool {
        let mut families = self.families.values();
        families.all(|family| family.is_short_of_room || self.is_in_time(family, now))
    }

    /// What /healthz says, and whether it is 200.
    pub fn healthz(&self, now: Moment) -> (bool, HealthBody) {
        let is_ok = self.is_healthy(now) && self.is_node_eligible;
        (is_ok, self.body(now, is_ok, Some(self.is_node_eligible)))
    }

    /// What /livez says, and whether it is 200: the node does not matter (S-146).
    pub fn livez(&self, now: Moment) -> (bool, HealthBody) {
        let is_ok = self.is_healthy(now);
        (is_ok, self.body(now, is_ok, None))
    }

    fn body(&self, now: Moment, is_ok: bool, node_eligible: Option<bool>) -> HealthBody {
        let updated = self.families.values().filter_map(|family| family.updated);
        let last = if is_ok { Some(now.time) } else { updated.max() };
        let status = self.families.iter().filter_map(|(name, family)| {
            let body = FamilyBody {
                last_updated: text(Some(family.updated?)),
                healthy: self.is_in_time(family, now),
            };
            Some((*name, body))
        });
        HealthBody {
            last_updated: text(last),
            current_time: text(Some(now.time)),
            node_eligible,
            healthy: self.is_healthy(now),
            status: status.collect(),
        }
    }

    fn is_in_time(&self, family: &FamilyHealth, now: Moment) -> bool {
        family
            .oldest_queued
            .is_none_or(|queued| now.instant.saturating_duration_since(queued) < self.patience)
    }
}

/// Body of /healthz and /livez.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthBody {
    last_updated: String,
    current_time: String,
    /// Absent from /livez.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_eligible: Option<bool>,
    /// Of the updates alone.
    pub(super) healthy: bool,
    status: BTreeMap<&'static str, FamilyBody>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

/// A cordoned node stays eligible: only nodes on their way out do not (S-145).
fn is_eligible(node: &Node) -> bool {
    let mut taints = node.spec.taints.iter();
    node.metadata.deletion_timestamp.is_none()
        && !taints.any(|taint| taint.key == TO_BE_DELETED_TAINT)
}

/// RFC 3339.
fn text(time: Option<Timestamp>) -> String {
    time.map_or_else(|| NEVER.to_owned(), |time| time.to_string())
}
