//! Stage 2: the last seen objects, which of them are complete, and which Services were touched
//! since the last reconcile.

mod lists;
mod summary;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;

use self::lists::Relist;
pub use self::summary::Summary;
use super::packed::{PackedService, Packer, Slice};
use crate::objects::{
    EndpointSlice, Kind, Metadata, Node, Object, ObjectEvent, ObjectName, Service,
};

/// Names the Service of a slice (S-040).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The last seen objects.
#[derive(Debug, Default)]
pub struct Store {
    /// What is known of each Service, or of one that only slices name.
    services: HashMap<Arc<ObjectName>, Entry, RandomState>,
    /// The Service of each slice.
    owners: HashMap<ObjectName, Arc<ObjectName>, RandomState>,
    packer: Packer,
    node: Option<Node>,
    /// It was deleted since it was last seen.
    is_node_gone: bool,
    service_cidrs: BTreeMap<ObjectName, Vec<String>>,
    /// Lists in progress: what was seen in them.
    relists: BTreeMap<Kind, Relist>,
    /// Number of the last list that began.
    list_number: u32,
    /// Kinds whose list was complete at least once.
    listed: BTreeSet<Kind>,
    touched: Touched,
    touched_services: HashSet<Arc<ObjectName>, RandomState>,
    rejections: BTreeMap<String, Rejection>,
}

/// What is known of one Service.
#[derive(Debug, Default)]
struct Entry {
    service: Option<PackedService>,
    /// The last list that it was in.
    list: u32,
    /// Its slices, by name.
    slices: Vec<KnownSlice>,
}

/// A slice of a Service, and the last list that it was in.
#[derive(Debug)]
struct KnownSlice {
    name: Box<str>,
    list: u32,
    slice: Slice,
}

impl Entry {
    fn find(&self, slice: &str) -> Result<usize, usize> {
        self.slices
            .binary_search_by(|known| (*known.name).cmp(slice))
    }
}

/// What changed besides Services since [`Store::take_touched`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Touched {
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

impl Store {
    /// Takes in one event. An unchanged object touches nothing (S-006).
    pub fn handle(&mut self, event: ObjectEvent) {
        match event {
            ObjectEvent::Restarted(kind) => self.begin_list(kind),
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

    /// What changed since the last call, besides Services.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Services that changed themselves, or whose slices did, since the last call; by name.
    pub fn take_touched_services(&mut self) -> Vec<Arc<ObjectName>> {
        let mut services: Vec<_> = std::mem::take(&mut self.touched_services)
            .into_iter()
            .collect();
        services.sort_unstable();
        services
    }

    /// Marks every Service as touched (S-070).
    pub fn touch_all(&mut self) {
        let known = self.services.iter();
        let known = known.filter(|(_, entry)| entry.service.is_some());
        self.touched_services
            .extend(known.map(|(name, _)| name.clone()));
    }

    /// A Service.
    pub fn service(&self, name: &ObjectName) -> Option<Service> {
        let packed = self.services.get(name)?.service.as_ref()?;
        Some(packed.unpack(name))
    }

    /// All slices of a Service, with their names, by name.
    pub fn slices(
        &self,
        service: &ObjectName,
    ) -> impl Iterator<Item = (&str, &Slice)> + Clone + use<'_> {
        let slices = self.services.get(service).map(|entry| &entry.slices);
        let slices = slices.into_iter().flatten();
        slices.map(|known| (&*known.name, &known.slice))
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
                    doubt.services |= !self.knows_service(name);
                }
                Some((Kind::EndpointSlice, name)) => {
                    doubt.slices |= !self.owners.contains_key(name);
                }
                Some((Kind::Node | Kind::ServiceCidr, _)) => {}
            }
        }
        doubt
    }

    fn knows_service(&self, name: &ObjectName) -> bool {
        let known = self.services.get(name);
        known.is_some_and(|entry| entry.service.is_some())
    }

    fn apply(&mut self, object: Object) {
        let kind = object.kind();
        let name = object_name(&object);
        self.forget_rejections(kind, &name);
        match object {
            Object::Service(service) => self.apply_service(name, &service),
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
                self.see(kind, name);
            }
            Object::ServiceCidr(cidr) => {
                self.see(kind, name.clone());
                let old = self.service_cidrs.insert(name, cidr.spec.cidrs.clone());
                self.touched.service_cidrs |= old != Some(cidr.spec.cidrs);
            }
        }
    }

    fn apply_service(&mut self, name: ObjectName, service: &Service) {
        let packed = PackedService::pack(service);
        let list = self.list_of(Kind::Service);
        let (name, entry) = entry(&mut self.services, name);
        entry.list = list;
        if entry.service.as_ref() != Some(&packed) {
            entry.service = Some(packed);
            self.touched_services.insert(name);
        }
    }

    fn apply_slice(&mut self, name: ObjectName, slice: EndpointSlice) {
        let service = service_of(&slice);
        let owner = self.owners.get(&name);
        if owner.is_some() && owner.map(|owner| &**owner) != service.as_ref() {
            self.remove_slice(&name);
        }
        let Some(service) = service else {
            tracing::warn!(
                namespace = name.namespace,
                slice = name.name,
                "slice without a service name is ignored"
            );
            return;
        };
        let list = self.list_of(Kind::EndpointSlice);
        let slice = self.packer.pack(slice);
        let (service, entry) = entry(&mut self.services, service);
        match entry.find(&name.name) {
            Ok(index) => {
                let known = &mut entry.slices[index];
                known.list = list;
                if known.slice == slice {
                    return;
                }
                known.slice = slice;
            }
            Err(index) => {
                entry.slices.reserve_exact(1);
                let known = KnownSlice {
                    name: name.name.as_str().into(),
                    list,
                    slice,
                };
                entry.slices.insert(index, known);
                self.owners.insert(name, service.clone());
            }
        }
        self.touched_services.insert(service);
    }

    /// Takes a slice out of its Service.
    fn remove_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.owners.remove(name) else {
            return;
        };
        if let Some(entry) = self.services.get_mut(&service)
            && let Ok(index) = entry.find(&name.name)
        {
            entry.slices.remove(index);
        }
        self.forget_empty(&service);
        self.touched_services.insert(service);
    }

    fn remove_service(&mut self, name: &ObjectName) {
        let known = self.services.get_mut(name);
        if known.and_then(|entry| entry.service.take()).is_none() {
            return;
        }
        let name = self
            .services
            .get_key_value(name)
            .map(|(name, _)| name.clone());
        self.touched_services.extend(name.clone());
        if let Some(name) = name {
            self.forget_empty(&name);
        }
    }

    fn forget_empty(&mut self, service: &ObjectName) {
        let entry = self.services.get(service);
        if entry.is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.services.remove(service);
        }
    }

    fn delete(&mut self, kind: Kind, name: &ObjectName) {
        self.unsee(kind, name);
        self.forget_rejections(kind, name);
        match kind {
            Kind::Service => self.remove_service(name),
            Kind::EndpointSlice => self.remove_slice(name),
            Kind::Node => self.is_node_gone = true,
            Kind::ServiceCidr => {
                self.touched.service_cidrs |= self.service_cidrs.remove(name).is_some();
            }
        }
    }
}

/// The entry of a Service, and its name as it is kept.
fn entry(
    services: &mut HashMap<Arc<ObjectName>, Entry, RandomState>,
    name: ObjectName,
) -> (Arc<ObjectName>, &mut Entry) {
    let name = match services.get_key_value(&name) {
        Some((known, _)) => known.clone(),
        None => Arc::new(name),
    };
    let entry = services.entry(name.clone()).or_default();
    (name, entry)
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
