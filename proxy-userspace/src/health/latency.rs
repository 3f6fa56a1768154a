//! How long changes of endpoints take until they are programmed (S-161).

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::objects::{Kind, Object, ObjectEvent, ObjectName};

/// On a slice: when what made it change happened, RFC 3339.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Changes of one slice that are remembered: a sync that fails for long must not cost memory.
const CHANGES_MAX: usize = 64;

/// Times at which slices changed that are not programmed yet, by family (IPv4, IPv6) and slice.
#[derive(Debug)]
pub struct Triggers {
    /// What happened before is no change that this process has programmed.
    started: Timestamp,
    waiting: [BTreeMap<ObjectName, Vec<Timestamp>>; 2],
}

impl Triggers {
    /// None yet.
    pub fn new(started: Timestamp) -> Self {
        Self {
            started,
            waiting: Default::default(),
        }
    }

    /// Takes the time out of an object, where it has one: nobody else reads it.
    pub fn take(&mut self, event: &mut ObjectEvent) {
        match event {
            ObjectEvent::Applied(Object::EndpointSlice(slice)) => {
                let Some(text) = slice.metadata.annotations.remove(TRIGGER_TIME) else {
                    return;
                };
                let family = match slice.address_type.as_str() {
                    "IPv4" => 0,
                    "IPv6" => 1,
                    _ => return,
                };
                let Ok(time) = text.parse::<Timestamp>() else {
                    return;
                };
                if time < self.started {
                    return;
                }
                let name = ObjectName {
                    namespace: slice.metadata.namespace.clone(),
                    name: slice.metadata.name.clone(),
                };
                let times = self.waiting[family].entry(name).or_default();
                if times.len() < CHANGES_MAX {
                    times.push(time);
                }
            }
            ObjectEvent::Deleted(Kind::EndpointSlice, name) => {
                for waiting in &mut self.waiting {
                    waiting.remove(name);
                }
            }
            _ => {}
        }
    }

    /// A sync of this family is complete: how long each change took, in seconds.
    pub fn synced(&mut self, family: usize, now: Timestamp) -> Vec<f64> {
        let waiting = std::mem::take(&mut self.waiting[family]);
        let times = waiting.into_values().flatten();
        // Another machine's clock may be ahead.
        times
            .map(|time| now.duration_since(time).as_secs_f64().max(0.0))
            .collect()
    }
}

/// kube-proxy's buckets, in seconds.
pub fn buckets() -> Vec<f64> {
    let steps = [0.25, 0.5].into_iter();
    let steps = steps.chain((1..60).map(f64::from));
    let steps = steps.chain((60..=115).step_by(5).map(f64::from));
    steps
        .chain((120..=300).step_by(30).map(f64::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::EndpointSlice;

    fn applied(name: &str, time: &str) -> ObjectEvent {
        let mut slice = EndpointSlice {
            address_type: "IPv4".to_owned(),
            ..EndpointSlice::default()
        };
        name.clone_into(&mut slice.metadata.name);
        let time = (TRIGGER_TIME.to_owned(), time.to_owned());
        slice.metadata.annotations = [time].into();
        ObjectEvent::Applied(Object::EndpointSlice(slice))
    }

    fn deleted(name: &str) -> ObjectEvent {
        let name = ObjectName {
            namespace: String::new(),
            name: name.to_owned(),
        };
        ObjectEvent::Deleted(Kind::EndpointSlice, name)
    }

    /// What a sync at 10:00:02.2 observes.
    fn observed(events: Vec<ObjectEvent>) -> Vec<f64> {
        let mut triggers = Triggers::new("2026-03-01T10:00:00Z".parse().unwrap());
        for mut event in events {
            triggers.take(&mut event);
            if let ObjectEvent::Applied(object) = &event {
                assert!(object.metadata().annotations.is_empty());
            }
        }
        let now = "2026-03-01T10:00:02.2Z".parse().unwrap();
        assert!(triggers.synced(1, now).is_empty());
        let all = triggers.synced(0, now);
        assert!(triggers.synced(0, now).is_empty());
        all
    }

    #[test]
    fn every_change_of_a_slice_is_one_observation() {
        crate::rules(&["S-161"]);
        let all = observed(vec![
            applied("a", "2026-03-01T10:00:00.2Z"),
            applied("a", "2026-03-01T10:00:01.2Z"),
            applied("b", "2026-03-01T10:00:02.200000000Z"),
        ]);
        assert_eq!(all, [2.0, 1.0, 0.0]);
    }

    #[test]
    fn stamps_that_are_wrong_or_old_and_slices_that_are_gone_are_none() {
        crate::rules(&["S-161"]);
        let all = observed(vec![
            applied("a", "yesterday"),
            applied("b", "2026-03-01T09:59:59Z"),
            applied("c", "2026-03-01T10:00:01Z"),
            deleted("c"),
        ]);
        assert_eq!(all, [0.0; 0]);
    }

    #[test]
    fn buckets_are_kube_proxys() {
        crate::rules(&["S-160"]);
        let all = buckets();
        assert_eq!(all[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(all[all.len() - 3..], [240.0, 270.0, 300.0]);
        assert!(all.is_sorted());
    }
}
