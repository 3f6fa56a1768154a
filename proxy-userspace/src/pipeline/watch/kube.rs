//! The API server source: four watches, decoded into the trimmed types.
//!
//! An agent is what makes Services work on its node, so it must not need one to reach the API
//! server: the address comes from a kubeconfig or from `--apiserver` (S-183). A server that cannot
//! be reached changes nothing: what is known stays (S-179).

use std::borrow::Cow;
use std::fmt::Debug;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _};
use serde_json::Value as Json;
use serde_json::value::RawValue;
use tokio::sync::mpsc::Sender;

use super::{ApiSource, HEADLESS_LABEL, PROXY_NAME_LABEL, Selection, WatchError};
use crate::objects::{
    EndpointSlice, Kind, Metadata, Node, Object, ObjectEvent, ObjectName, Service, ServiceCidr,
};

/// Pause after every server was tried once without success.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// Starts the four watches. Fails only where the configuration cannot be used: a server that does
/// not answer is tried for ever.
pub async fn spawn(
    source: &ApiSource,
    selection: &Selection,
    sender: Sender<ObjectEvent>,
) -> Result<(), WatchError> {
    let servers = servers(source).await?;
    let services = watcher::Config::default()
        .labels(&match &selection.proxy_name {
            None => format!("!{PROXY_NAME_LABEL}"),
            Some(name) => format!("{PROXY_NAME_LABEL}={name}"),
        })
        .fields("spec.clusterIP!=None");
    let slices = watcher::Config::default().labels(&format!("!{HEADLESS_LABEL}"));
    let node = watcher::Config::default().fields(&format!("metadata.name={}", selection.node_name));
    let cidrs = watcher::Config::default();
    tokio::spawn(follow::<ServiceCidr>(
        servers.clone(),
        cidrs,
        sender.clone(),
    ));
    tokio::spawn(follow::<Node>(servers.clone(), node, sender.clone()));
    tokio::spawn(follow::<Service>(servers.clone(), services, sender.clone()));
    tokio::spawn(follow::<EndpointSlice>(servers, slices, sender));
    Ok(())
}

/// A client of each server, in the order in which they are tried.
pub async fn clients(source: &ApiSource) -> Result<Vec<Client>, WatchError> {
    let servers = servers(source).await?;
    Ok(servers.into_iter().map(|server| server.client).collect())
}

/// One API server.
#[derive(Clone)]
struct Server {
    url: String,
    client: Client,
}

async fn servers(source: &ApiSource) -> Result<Vec<Server>, WatchError> {
    let config = match (&source.kubeconfig, source.servers.is_empty()) {
        (Some(path), _) => from_file(path).await?,
        (None, true) => {
            let config = Config::incluster().map_err(WatchError::InCluster)?;
            tracing::warn!(
                server = %config.cluster_url,
                "no --apiserver is given: the address that pods get is a Service, which somebody \
                 else must serve while this agent starts"
            );
            config
        }
        // Its address is replaced below: only the pod's credentials count.
        (None, false) => Config::incluster_dns().map_err(WatchError::InCluster)?,
    };
    let mut configs = Vec::new();
    for url in &source.servers {
        let cluster_url = url.parse().ok().filter(|_| url.contains("://"));
        let cluster_url = cluster_url.ok_or_else(|| WatchError::ServerUrl { url: url.clone() })?;
        let mut config = config.clone();
        config.cluster_url = cluster_url;
        configs.push(config);
    }
    if configs.is_empty() {
        configs.push(config);
    }
    configs
        .into_iter()
        .map(|config| {
            let url = config.cluster_url.to_string();
            let client = Client::try_from(config).map_err(WatchError::Client)?;
            Ok(Server { url, client })
        })
        .collect()
}

async fn from_file(path: &Path) -> Result<Config, WatchError> {
    let wrong = |source| WatchError::Kubeconfig {
        path: path.to_owned(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(wrong)
}

/// Watches one kind until nobody listens, on the first server that answers.
async fn follow<T: Watch>(
    servers: Vec<Server>,
    config: watcher::Config,
    sender: Sender<ObjectEvent>,
) {
    for round in 0_usize.. {
        let server = &servers[round % servers.len()];
        let watched = watch_on::<T>(server, &config, &sender, servers.len());
        let ended = tokio::select! {
            ended = watched => ended,
            () = sender.closed() => Ended::Unheard,
        };
        match ended {
            Ended::Unheard => return,
            Ended::Unreachable if round % servers.len() + 1 == servers.len() => {
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            Ended::Unreachable => {}
        }
    }
}

/// Why watching one server ended.
enum Ended {
    /// Nobody listens.
    Unheard,
    /// The server does not answer, and there is another one.
    Unreachable,
}

async fn watch_on<T: Watch>(
    server: &Server,
    config: &watcher::Config,
    sender: &Sender<ObjectEvent>,
    server_count: usize,
) -> Ended {
    let api: Api<Watched<T>> = Api::all(server.client.clone());
    let mut events = pin!(watcher(api, config.clone()).default_backoff());
    let mut is_failing = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if is_failing {
                    tracing::info!(kind = T::NAME, server = server.url, "watch goes on");
                }
                is_failing = false;
                if sender.send(translate(event)).await.is_err() {
                    return Ended::Unheard;
                }
            }
            Err(error) => {
                if !is_failing {
                    let error = crate::error_chain(&error);
                    tracing::warn!(kind = T::NAME, server = server.url, error, "watch failed");
                }
                is_failing = true;
                if server_count > 1 && is_unreachable(&error) {
                    return Ended::Unreachable;
                }
            }
        }
    }
    Ended::Unreachable
}

/// True where another server may do better; an answer, even a refusal, would be the same there.
fn is_unreachable(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => match error {
            kube::Error::Api(status) => status.code >= 500,
            _ => true,
        },
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => false,
    }
}

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

fn translate<T: Watch>(event: Event<Watched<T>>) -> ObjectEvent {
    match event {
        Event::Init => ObjectEvent::Restarted(T::KIND),
        Event::InitApply(watched) | Event::Apply(watched) => watched.applied(),
        Event::InitDone => ObjectEvent::Listed(T::KIND),
        Event::Delete(watched) => ObjectEvent::Deleted(T::KIND, watched.name()),
    }
}

/// A kind that is watched.
trait Watch: DeserializeOwned + Clone + Debug + Send + Sync + 'static {
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
struct Watched<T> {
    meta: ObjectMeta,
    object: Result<T, String>,
}

impl<T: Watch> Watched<T> {
    fn name(&self) -> ObjectName {
        ObjectName {
            namespace: self.meta.namespace.clone().unwrap_or_default(),
            name: self.meta.name.clone().unwrap_or_default(),
        }
    }

    fn applied(self) -> ObjectEvent {
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
