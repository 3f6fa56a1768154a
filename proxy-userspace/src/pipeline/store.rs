//! Stage 2: the last seen objects, which of them are complete, and which Services were touched
//! since the last reconcile.

use std::collections::{BTreeMap, BTreeSet};

use crate::objects::{
    EndpointSlice, Kind, Metadata, Node, Object, ObjectEvent, ObjectName, Service,
};

/// Names the Service of a slice (S-040).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Rejections remembered; the oldest places go first.
const REJECTIONS_MAX: usize = 1000;

/// The last seen objects.
#[derive(Debug, Default)]
pub struct Store {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    /// Names of the slices of each Service.
    slices_by_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    node: Option<Node>,
    /// It was deleted since it was last seen.
    is_node_gone: bool,
    service_cidrs: BTreeMap<ObjectName, Vec<String>>,
    /// Lists in progress: what was seen in them.
    relists: BTreeMap<Kind, Relist>,
    /// Kinds whose list was complete at least once.
    listed: BTreeSet<Kind>,
    touched: Touched,
    rejections: BTreeMap<String, Rejection>,
}

/// What changed since [`Store::take_touched`].
#[derive(Debug, Default)]
pub struct Touched {
    /// Services that changed themselves, or whose slices did.
    pub services: BTreeSet<ObjectName>,
    /// The own Node, or whether it is listed.
    pub node: bool,
    /// A ServiceCIDR, or whether they are listed.
    pub service_cidrs: bool,
}

/// An object that could not be decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// The object, where it could be told.
    pub object: Option<(Kind, ObjectName)>,
    /// File and line, or API path.
    pub place: String,
    /// What is wrong.
    pub error: String,
}

/// Of which kinds an object may exist that could not be decoded, and of which nothing is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Doubt {
    /// A Service.
    pub services: bool,
    /// An EndpointSlice.
    pub slices: bool,
}

#[derive(Debug, Default)]
struct Relist {
    seen: BTreeSet<ObjectName>,
    /// Something could not be told apart: nothing may be taken for gone.
    is_doubtful: bool,
}

impl Store {
    /// Takes in one event. An unchanged object touches nothing (S-006).
    pub fn handle(&mut self, event: ObjectEvent) {
        match event {
            ObjectEvent::Restarted(kind) => {
                self.relists.insert(kind, Relist::default());
            }
            ObjectEvent::Applied(object) => self.apply(object),
            ObjectEvent::Deleted(kind, name) => self.delete(kind, &name),
            ObjectEvent::Listed(kind) => self.finish_list(kind),
            ObjectEvent::Reread { place } => self.rejections.retain(|at, _| {
                at.strip_prefix(&place)
                    .is_none_or(|rest| !rest.is_empty() && !rest.starts_with(':'))
            }),
            ObjectEvent::Rejected {
                object,
                place,
                error,
            } => {
                self.reject(Rejection {
                    object,
                    place,
                    error,
                });
            }
        }
    }

    /// True when the lists that the barrier waits for are complete (S-007).
    pub fn is_synced(&self) -> bool {
        self.is_listed(Kind::Service) && self.is_listed(Kind::EndpointSlice)
    }

    /// True when this kind was listed completely at least once.
    pub fn is_listed(&self, kind: Kind) -> bool {
        self.listed.contains(&kind)
    }

    /// What changed since the last call.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Marks every Service as touched (S-070).
    pub fn touch_all(&mut self) {
        self.touched.services.extend(self.services.keys().cloned());
    }

    /// Marks these Services as touched.
    pub fn touch(&mut self, services: BTreeSet<ObjectName>) {
        self.touched.services.extend(services);
    }

    /// A Service.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// All slices of a Service, by name.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        let names = self.slices_by_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name))
    }

    /// The last known own Node: kept when it is deleted (S-147, S-174).
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The own Node, unless it is deleted (S-145).
    pub fn existing_node(&self) -> Option<&Node> {
        self.node.as_ref().filter(|_| !self.is_node_gone)
    }

    /// The CIDR texts of each ServiceCIDR.
    pub fn service_cidrs(&self) -> &BTreeMap<ObjectName, Vec<String>> {
        &self.service_cidrs
    }

    /// Objects that could not be decoded, by place.
    pub fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        self.rejections.values()
    }

    /// What the rejections leave unknown. An object that is known in spite of one is not.
    pub fn doubt(&self) -> Doubt {
        let mut doubt = Doubt::default();
        for rejection in self.rejections() {
            match &rejection.object {
                None => {
                    return Doubt {
                        services: true,
                        slices: true,
                    };
                }
                Some((Kind::Service, name)) => {
                    doubt.services |= !self.services.contains_key(name);
                }
                Some((Kind::EndpointSlice, name)) => {
                    doubt.slices |= !self.slices.contains_key(name);
                }
                Some((Kind::Node | Kind::ServiceCidr, _)) => {}
            }
        }
        doubt
    }

    fn apply(&mut self, object: Object) {
        let kind = object.kind();
        let name = object_name(&object);
        if let Some(relist) = self.relists.get_mut(&kind) {
            relist.seen.insert(name.clone());
        }
        self.forget_rejections(kind, &name);
        match object {
            Object::Service(service) => self.apply_service(name, service),
            Object::EndpointSlice(slice) => self.apply_slice(name, slice),
            Object::Node(node) => {
                if self
                    .node
                    .as_ref()
                    .is_none_or(|known| is_node_changed(known, &node))
                {
                    self.touched.node = true;
                }
                self.node = Some(node);
                self.is_node_gone = false;
            }
            Object::ServiceCidr(cidr) => {
                let old = self.service_cidrs.insert(name, cidr.spec.cidrs.clone());
                self.touched.service_cidrs |= old != Some(cidr.spec.cidrs);
            }
        }
    }

    fn apply_service(&mut self, name: ObjectName, service: Service) {
        let same = self.services.get(&name).is_some_and(|known| {
            known.spec == service.spec
                && known.status == service.status
                && known.metadata.creation_timestamp == service.metadata.creation_timestamp
        });
        if !same {
            self.touched.services.insert(name.clone());
        }
        self.services.insert(name, service);
    }

    fn apply_slice(&mut self, name: ObjectName, slice: EndpointSlice) {
        let service = service_of(&slice);
        if let Some(known) = self.slices.get(&name) {
            let known_service = service_of(known);
            let same = known_service == service
                && known.address_type == slice.address_type
                && known.endpoints == slice.endpoints
                && known.ports == slice.ports;
            if same {
                return;
            }
            if known_service != service {
                self.unlink_slice(&name);
            }
        }
        match service {
            Some(service) => {
                self.slices_by_service
                    .entry(service.clone())
                    .or_default()
                    .insert(name.clone());
                self.touched.services.insert(service);
                self.slices.insert(name, slice);
            }
            None => {
                tracing::warn!(
                    namespace = name.namespace,
                    slice = name.name,
                    "slice without a service name is ignored"
                );
                self.slices.remove(&name);
            }
        }
    }

    /// Takes a slice out of its Service's list.
    fn unlink_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.slices.get(name).and_then(service_of) else {
            return;
        };
        if let Some(names) = self.slices_by_service.get_mut(&service) {
            names.remove(name);
            if names.is_empty() {
                self.slices_by_service.remove(&service);
            }
        }
        self.touched.services.insert(service);
    }

    fn delete(&mut self, kind: Kind, name: &ObjectName) {
        if let Some(relist) = self.relists.get_mut(&kind) {
            relist.seen.remove(name);
        }
        self.forget_rejections(kind, name);
        match kind {
            Kind::Service => {
                if self.services.remove(name).is_some() {
                    self.touched.services.insert(name.clone());
                }
            }
            Kind::EndpointSlice => {
                self.unlink_slice(name);
                self.slices.remove(name);
            }
            Kind::Node => self.is_node_gone = true,
            Kind::ServiceCidr => {
                self.touched.service_cidrs |= self.service_cidrs.remove(name).is_some();
            }
        }
    }

    /// The list is complete: what was known and not seen again is gone (S-008).
    fn finish_list(&mut self, kind: Kind) {
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
        let known: Vec<ObjectName> = match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Node => self
                .node
                .iter()
                .map(|node| name_of(&node.metadata))
                .collect(),
            Kind::ServiceCidr => self.service_cidrs.keys().cloned().collect(),
        };
        for name in known.iter().filter(|name| !relist.seen.contains(name)) {
            self.delete(kind, name);
        }
    }

    fn reject(&mut self, rejection: Rejection) {
        match &rejection.object {
            Some((kind, name)) => {
                if let Some(relist) = self.relists.get_mut(kind) {
                    relist.seen.insert(name.clone());
                }
            }
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

    fn forget_rejections(&mut self, kind: Kind, name: &ObjectName) {
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

/// Namespace and name of a decoded object.
fn object_name(object: &Object) -> ObjectName {
    name_of(object.metadata())
}

fn name_of(metadata: &Metadata) -> ObjectName {
    ObjectName {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
    }
}

/// The Service that a slice belongs to (S-040).
fn service_of(slice: &EndpointSlice) -> Option<ObjectName> {
    let name = slice.metadata.labels.get(SERVICE_NAME_LABEL)?;
    let is_complete = ![name, &slice.metadata.namespace, &slice.metadata.name]
        .into_iter()
        .any(String::is_empty);
    is_complete.then(|| ObjectName {
        namespace: slice.metadata.namespace.clone(),
        name: name.clone(),
    })
}

/// True if anything that is read of a Node differs.
fn is_node_changed(known: &Node, node: &Node) -> bool {
    known.spec != node.spec
        || known.status != node.status
        || known.metadata.name != node.metadata.name
        || known.metadata.labels != node.metadata.labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_read_again_loses_its_rejections_and_no_others() {
        let mut store = Store::default();
        for place in [
            "a.yaml:3",
            "a.yaml:7",
            "a.yaml",
            "a.yaml2:3",
            "services n/web",
        ] {
            store.handle(ObjectEvent::Rejected {
                object: None,
                place: place.to_owned(),
                error: "wrong".to_owned(),
            });
        }
        store.handle(ObjectEvent::Reread {
            place: "a.yaml".to_owned(),
        });
        let left: Vec<_> = store.rejections().map(|it| it.place.as_str()).collect();
        assert_eq!(left, ["a.yaml2:3", "services n/web"]);
    }
}
