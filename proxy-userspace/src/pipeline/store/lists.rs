//! Lists, whole and in progress, and objects that could not be decoded.

use std::collections::BTreeSet;

use super::{Rejection, Store, name_of};
use crate::objects::{Kind, ObjectName};

/// Rejections remembered; the oldest places go first.
const REJECTIONS_MAX: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Relist {
    number: u32,
    /// What was seen, but for Services and slices that are known: these have the number.
    seen: BTreeSet<ObjectName>,
    /// Something could not be told apart: nothing may be taken for gone.
    is_doubtful: bool,
}

impl Store {
    /// A list begins.
    pub(super) fn begin_list(&mut self, kind: Kind) {
        self.list_number += 1;
        let relist = Relist {
            number: self.list_number,
            ..Relist::default()
        };
        self.relists.insert(kind, relist);
    }

    /// Notes an object that the list in progress has.
    pub(super) fn see(&mut self, kind: Kind, name: ObjectName) {
        if let Some(relist) = self.relists.get_mut(&kind) {
            relist.seen.insert(name);
        }
    }

    /// An object that the list in progress had is gone meanwhile.
    pub(super) fn unsee(&mut self, kind: Kind, name: &ObjectName) {
        if let Some(relist) = self.relists.get_mut(&kind) {
            relist.seen.remove(name);
        }
    }

    /// Number of the list in progress; 0 where there is none.
    pub(super) fn list_of(&self, kind: Kind) -> u32 {
        self.relists.get(&kind).map_or(0, |relist| relist.number)
    }

    /// The list is complete: what was known and not seen again is gone (S-008).
    pub(super) fn finish_list(&mut self, kind: Kind) {
        if self.listed.insert(kind) {
            self.touched.node |= kind == Kind::Node;
            self.touched.service_cidrs |= kind == Kind::ServiceCidr;
        }
        let Some(relist) = self.relists.remove(&kind) else {
            return;
        };
        self.rejections.retain(|_, rejection| {
            let object = rejection.object.as_ref();
            object.is_none_or(|object| object.0 != kind || relist.seen.contains(&object.1))
        });
        if relist.is_doubtful {
            return;
        }
        for name in self.unseen(kind, &relist) {
            self.delete(kind, &name);
        }
    }

    /// What is known of a kind and was not in a list; by name.
    fn unseen(&self, kind: Kind, relist: &Relist) -> BTreeSet<ObjectName> {
        let mut known = BTreeSet::new();
        match kind {
            Kind::Service => {
                let old = self.services.iter();
                let old = old.filter(|(_, entry)| entry.service.is_some());
                let old = old.filter(|(_, entry)| entry.list != relist.number);
                known.extend(old.map(|(name, _)| ObjectName::clone(name)));
            }
            Kind::EndpointSlice => {
                for (service, entry) in &self.services {
                    let old = entry.slices.iter();
                    let old = old.filter(|slice| slice.list != relist.number);
                    known.extend(old.map(|slice| ObjectName {
                        namespace: service.namespace.clone(),
                        name: slice.name.to_string(),
                    }));
                }
            }
            Kind::Node => known.extend(self.node.iter().map(|node| name_of(&node.metadata))),
            Kind::ServiceCidr => known.extend(self.service_cidrs.keys().cloned()),
        }
        known.retain(|name| !relist.seen.contains(name));
        known
    }

    pub(super) fn reject(&mut self, rejection: Rejection) {
        match &rejection.object {
            Some((kind, name)) => self.see(*kind, name.clone()),
            None => self
                .relists
                .values_mut()
                .for_each(|relist| relist.is_doubtful = true),
        }
        if self.rejections.len() >= REJECTIONS_MAX {
            self.rejections.pop_first();
        }
        self.rejections.insert(rejection.place.clone(), rejection);
    }

    pub(super) fn forget_rejections(&mut self, kind: Kind, name: &ObjectName) {
        if !self.rejections.is_empty() {
            self.rejections.retain(|_, rejection| {
                rejection
                    .object
                    .as_ref()
                    .is_none_or(|object| (object.0, &object.1) != (kind, name))
            });
        }
    }
}
