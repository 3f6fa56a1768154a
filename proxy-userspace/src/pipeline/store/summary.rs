//! The store in numbers, for `shunt status`.

use serde::{Deserialize, Serialize};

use super::Store;

/// What the source has told.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Services for this proxy.
    pub services: usize,
    /// EndpointSlices.
    pub endpoint_slices: usize,
    /// Endpoints in them, ready or not.
    pub endpoints: usize,
    /// Services of type LoadBalancer that nobody has given an address yet: `namespace/name`.
    pub without_address: Vec<String>,
}

impl Store {
    /// Counts everything.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for (name, entry) in &self.services {
            summary.endpoint_slices += entry.slices.len();
            let slices = entry.slices.iter();
            summary.endpoints += slices
                .map(|known| known.slice.endpoints.len())
                .sum::<usize>();
            let Some(packed) = &entry.service else {
                continue;
            };
            summary.services += 1;
            let service = packed.unpack(name);
            let is_balanced = service.spec.type_.as_deref() == Some("LoadBalancer");
            // A load balancer may have a name instead of an address.
            if is_balanced && service.status.load_balancer.ingress.is_empty() {
                let text = format!("{}/{}", name.namespace, name.name);
                summary.without_address.push(text);
            }
        }
        summary.without_address.sort();
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::Store;
    use crate::objects::{
        LoadBalancerIngress, Metadata, Object, ObjectEvent, Service, ServiceSpec,
    };

    fn service(name: &str, kind: &str) -> Service {
        Service {
            metadata: Metadata {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                ..Metadata::default()
            },
            spec: ServiceSpec {
                type_: Some(kind.to_owned()),
                ..ServiceSpec::default()
            },
            ..Service::default()
        }
    }

    #[test]
    fn load_balancers_wait_until_they_have_an_address() {
        let mut store = Store::default();
        let mut served = service("served", "LoadBalancer");
        served.status.load_balancer.ingress = vec![LoadBalancerIngress::default()];
        for object in [
            service("web", "ClusterIP"),
            service("waits", "LoadBalancer"),
            served,
        ] {
            store.handle(ObjectEvent::Applied(Object::Service(object)));
        }
        let summary = store.summary();
        assert_eq!(summary.services, 3);
        assert_eq!(summary.without_address, ["shop/waits"]);
    }
}
