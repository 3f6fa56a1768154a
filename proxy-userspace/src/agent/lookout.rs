//! What the agent looks after beside its work: what somebody else has changed in the kernel, and
//! what finds no room.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_common::Counter;
use tokio::time::Instant;

use super::Agent;
use super::status::ProblemView;
use crate::datapath::audit::Drift;
use crate::doctor::Severity as Grade;
use crate::events::{Events, Note, Regarding, Severity};
use crate::objects::ObjectName;
use crate::pipeline::reconciler::AuditRound;

/// Between two parts of an audit.
const PART_PACE: Duration = Duration::from_millis(10);

/// Counters of packets that were dropped for want of room, with what is to be done about it.
const PRESSURES: [(Counter, &str); 3] = [
    (
        Counter::InsertFailed,
        "connections were refused: the flow tables take no more (--max-flows)",
    ),
    (
        Counter::SnatPortsExhausted,
        "connections were refused: no SNAT port is free (--snat-ports)",
    ),
    (
        Counter::NewFlowLimited,
        "connections were dropped: more began than --new-flows-per-sec allows",
    ),
];

/// What was noticed so far.
#[derive(Debug)]
pub(super) struct Lookout {
    events: Events,
    period: Duration,
    /// When the next audit is due, or the next part of the one that goes on.
    pub(super) next: Instant,
    /// What is left of an audit of the maps' entries.
    round: AuditRound,
    /// Services that did not fit, and why.
    without_room: BTreeMap<ObjectName, String>,
    /// Each of [`PRESSURES`] at the last audit.
    refused: [Option<u64>; PRESSURES.len()],
    /// Those that have grown since the one before.
    pressures: Vec<&'static str>,
    /// All that audits have repaired.
    pub(super) drift: u64,
}

impl Lookout {
    pub(super) fn new(events: Events, period: Duration) -> Self {
        Self {
            events,
            period,
            next: Instant::now() + period,
            round: AuditRound::default(),
            without_room: BTreeMap::new(),
            refused: [None; PRESSURES.len()],
            pressures: Vec::new(),
            drift: 0,
        }
    }

    /// What of the node itself finds no room.
    pub(super) fn problems(&self, node: &str) -> Vec<ProblemView> {
        let pressures = self.pressures.iter();
        pressures
            .map(|text| ProblemView {
                service: format!("node {node}"),
                problem: (*text).to_owned(),
                severity: Grade::Problem,
            })
            .collect()
    }

    /// Tells of Services that fit no more, and of those that fit again.
    fn tell_room(&mut self, found: BTreeMap<ObjectName, String>) {
        for (service, text) in &found {
            if self.without_room.get(service) != Some(text) {
                let text = format!("{text}: raise --max-services or --max-endpoints");
                self.tell(service, Severity::Warning, "NoRoom", text);
            }
        }
        for service in self.without_room.keys() {
            if !found.contains_key(service) {
                let text = "nothing of it waits for room".to_owned();
                self.tell(service, Severity::Normal, "RoomFound", text);
            }
        }
        self.without_room = found;
    }

    fn tell(&self, service: &ObjectName, severity: Severity, reason: &'static str, text: String) {
        self.events.publish(Note {
            regarding: Regarding::Service(service.clone()),
            severity,
            reason,
            action: "Program",
            text,
        });
    }

    fn tell_pressure(&mut self, counts: [u64; PRESSURES.len()]) {
        let rows = PRESSURES.iter().zip(self.refused).zip(counts);
        let grown = rows.filter(|((_, before), now)| before.is_some_and(|before| before < *now));
        self.pressures = grown.map(|(((_, text), _), _)| *text).collect();
        self.refused = counts.map(Some);
        for text in &self.pressures {
            self.events.publish(Note {
                regarding: Regarding::Node,
                severity: Severity::Warning,
                reason: "NoRoom",
                action: "Translate",
                text: (*text).to_owned(),
            });
        }
    }
}

impl Agent {
    /// To be called after each reconcile: `full` things found no room.
    pub(super) fn tell_room(&mut self, full: u64) {
        if full > 0 || !self.lookout.without_room.is_empty() {
            self.lookout.tell_room(self.reconciler.without_room());
        }
    }

    /// Compares the kernel with what should be there, repairs and counts. Entries are many: changes
    /// are taken in between their parts.
    pub(super) fn audit(&mut self) {
        let entries = match self.lookout.round.is_over() {
            true => self.audit_datapath(),
            false => {
                let now = std::time::Instant::now();
                let round = &mut self.lookout.round;
                self.reconciler.audit_part(round, &mut self.maps, now)
            }
        };
        self.note_drift("entries", entries);
        let wait = match self.lookout.round.is_over() {
            true => self.lookout.period,
            false => PART_PACE.min(self.lookout.period),
        };
        self.lookout.next = Instant::now() + wait;
    }

    /// Begins an audit with all that is not an entry of a Service; returns how many entries of
    /// INTERFACES were wrong.
    fn audit_datapath(&mut self) -> u64 {
        let Drift {
            programs,
            interfaces,
            pins,
        } = self.datapath.audit(&mut self.maps);
        self.note_drift("programs", programs);
        self.note_drift("pins", pins);
        if self.ready_at.is_some() {
            self.lookout.round = self.reconciler.begin_audit();
        }
        let counts = PRESSURES.map(|(counter, _)| self.maps.counter(counter as u32));
        self.lookout.tell_pressure(counts);
        interfaces
    }

    fn note_drift(&mut self, what: &'static str, count: u64) {
        self.health.metrics().drifted(what, count);
        self.lookout.drift += count;
        if count > 0 {
            tracing::warn!(what, count, "somebody has changed what is ours: repaired");
        }
    }
}
