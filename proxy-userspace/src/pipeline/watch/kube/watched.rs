//! What the client decodes: API objects cut down to what we read, and never an error that would end
//! a watch.

use std::borrow::Cow;
use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::DynamicResourceScope;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _};
use serde_json::Value as Json;
use serde_json::value::RawValue;

use crate::objects::{
    EndpointSlice, Kind, Metadata, Node, Object, ObjectEvent, ObjectName, Service, ServiceCidr,
};

/// Decodes one object as the watch does.
pub fn decode_object(kind: Kind, json: &str) -> Result<ObjectEvent, serde_json::Error> {
    fn applied<T: Watch>(json: &str) -> Result<ObjectEvent, serde_json::Error> {
        serde_json::from_str::<Watched<T>>(json).map(Watched::applied)
    }
    match kind {
        Kind::Service => applied::<Service>(json),
        Kind::EndpointSlice => applied::<EndpointSlice>(json),
        Kind::Node => applied::<Node>(json),
        Kind::ServiceCidr => applied::<ServiceCidr>(json),
    }
}

/// A kind that is watched.
pub(super) trait Watch: DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    const KIND: Kind;
    const GROUP: &'static str;
    const NAME: &'static str;
    const PLURAL: &'static str;

    fn into_object(self) -> Object;
    fn metadata(&self) -> &Metadata;
}

macro_rules! watch {
    ($type:ident, $kind:ident, $group:literal, $name:literal, $plural:literal) => {
        impl Watch for $type {
            const KIND: Kind = Kind::$kind;
            const GROUP: &'static str = $group;
            const NAME: &'static str = $name;
            const PLURAL: &'static str = $plural;

            fn into_object(self) -> Object {
                Object::$kind(self)
            }

            fn metadata(&self) -> &Metadata {
                &self.metadata
            }
        }
    };
}

watch!(Service, Service, "", "Service", "services");
watch!(
    EndpointSlice,
    EndpointSlice,
    "discovery.k8s.io",
    "EndpointSlice",
    "endpointslices"
);
watch!(Node, Node, "", "Node", "nodes");
watch!(
    ServiceCidr,
    ServiceCidr,
    "networking.k8s.io",
    "ServiceCIDR",
    "servicecidrs"
);

/// What the client decodes: the trimmed object, or why it could not be, and the little metadata
/// that a watch needs. So one bad object never stops the watch.
#[derive(Clone, Debug)]
pub(super) struct Watched<T> {
    meta: ObjectMeta,
    object: Result<T, String>,
}

impl<T: Watch> Watched<T> {
    pub(super) fn name(&self) -> ObjectName {
        ObjectName {
            namespace: self.meta.namespace.clone().unwrap_or_default(),
            name: self.meta.name.clone().unwrap_or_default(),
        }
    }

    /// Where a watch stands behind this object; empty where it does not say.
    pub(super) fn version(&self) -> &str {
        self.meta.resource_version.as_deref().unwrap_or_default()
    }

    pub(super) fn applied(self) -> ObjectEvent {
        let name = self.name();
        match self.object {
            Ok(object) => ObjectEvent::Applied(object.into_object()),
            Err(error) => ObjectEvent::Rejected {
                place: format!("{} {}/{}", T::PLURAL, name.namespace, name.name),
                object: Some((T::KIND, name)),
                error,
            },
        }
    }
}

impl<'de, T: Watch> Deserialize<'de> for Watched<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Taken as text before it is decoded, because the stream must be left behind the object
        // whether it can be decoded or not.
        let raw = <Box<RawValue>>::deserialize(deserializer)?;
        // Nearly every object decodes as it is, without a tree of all that is not read.
        let object = match serde_json::from_str::<T>(raw.get()) {
            Ok(object) => object,
            Err(_) => return Self::with_nulls(&raw).map_err(D::Error::custom),
        };
        let metadata = object.metadata();
        let meta = ObjectMeta {
            name: Some(metadata.name.clone()),
            namespace: Some(metadata.namespace.clone()),
            resource_version: metadata.resource_version.clone(),
            ..ObjectMeta::default()
        };
        let object = Ok(object);
        Ok(Self { meta, object })
    }
}

impl<T: Watch> Watched<T> {
    /// Decodes an object that has nulls where the trimmed types know only absence, or is wrong.
    fn with_nulls(raw: &RawValue) -> Result<Self, serde_json::Error> {
        let mut json: Json = serde_json::from_str(raw.get())?;
        drop_nulls(&mut json);
        let text = |key: &str| json["metadata"][key].as_str().map(str::to_owned);
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        let object = serde_path_to_error::deserialize(&json).map_err(|error| error.to_string());
        Ok(Self { meta, object })
    }
}

/// Absent and null mean the same in the API; the trimmed types know the first only.
fn drop_nulls(json: &mut Json) {
    match json {
        Json::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Json::Array(items) => items.iter_mut().for_each(drop_nulls),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

impl<T: Watch> Resource for Watched<T> {
    type DynamicType = ();
    type Scope = DynamicResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        T::NAME.into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        T::GROUP.into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        T::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rules;

    fn applied<T: Watch>(json: Json) -> ObjectEvent {
        serde_json::from_value::<Watched<T>>(json)
            .expect("decodes whatever is in it")
            .applied()
    }

    #[test]
    fn fields_of_old_versions_are_not_read() {
        rules(&["S-221"]);
        let object = |more: Json| {
            let mut service = json!({
                "metadata": {"namespace": "shop", "name": "web"},
                "spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 80}]},
            });
            for (key, value) in more.as_object().expect("an object") {
                service["spec"][key] = value.clone();
            }
            let ObjectEvent::Applied(Object::Service(service)) = applied::<Service>(service) else {
                panic!("rejected")
            };
            service
        };
        let old = json!({"topologyKeys": ["kubernetes.io/hostname"], "ipFamily": "IPv6"});
        assert_eq!(object(old), object(json!({})));
    }

    #[test]
    fn object_is_trimmed_and_nulls_are_absent() {
        let event = applied::<EndpointSlice>(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "s", "namespace": "n", "managedFields": [{"manager": "m"}]},
            "addressType": "IPv4", "endpoints": null, "ports": [{"name": null, "port": 80}],
            "fieldFromTheFuture": {"a": 1},
        }));
        let ObjectEvent::Applied(Object::EndpointSlice(slice)) = event else {
            panic!("{event:?}")
        };
        assert_eq!((slice.endpoints.len(), slice.ports[0].port), (0, Some(80)));
    }

    #[test]
    fn object_that_cannot_be_decoded_is_rejected_by_name() {
        let event = applied::<Service>(json!({
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"},
            "spec": {"ports": [{"port": "eighty"}]},
        }));
        let ObjectEvent::Rejected {
            object: Some((Kind::Service, name)),
            place,
            error,
        } = event
        else {
            panic!("{event:?}")
        };
        assert_eq!(
            (name.namespace.as_str(), name.name.as_str()),
            ("shop", "web")
        );
        assert_eq!(place, "services shop/web");
        assert!(
            error.starts_with("spec.ports[0].port: invalid type"),
            "{error}"
        );
    }

    #[test]
    fn things_that_are_no_objects_are_rejected() {
        for json in [
            json!(null),
            json!([1]),
            json!({"metadata": 1}),
            json!({"metadata": {}}),
        ] {
            serde_json::from_value::<Watched<Node>>(json)
                .expect("decodes")
                .applied();
        }
    }
}
