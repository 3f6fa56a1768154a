//! The API server source: four watches, decoded into the trimmed types.
//!
//! An agent is what makes Services work on its node, so it must not need one to reach the API
//! server: the address comes from a kubeconfig or from `--apiserver` (S-183). A server that cannot
//! be reached changes nothing: what is known stays (S-179).

mod list_watch;
mod rounds;
mod watched;

use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::mpsc::Sender;

use self::list_watch::{Query, follow};
pub use self::watched::decode_object;
use super::contact::Contacts;
use super::{ApiSource, HEADLESS_LABEL, PROXY_NAME_LABEL, Selection, WatchError};
use crate::objects::{EndpointSlice, Node, ObjectEvent, Service, ServiceCidr};

/// Who is told of the objects, and who of how the watches stand.
pub type Told = (Sender<ObjectEvent>, Contacts);

/// Starts the four watches. Fails only where the configuration cannot be used: a server that does
/// not answer is tried for ever.
pub async fn spawn(source: &ApiSource, selection: &Selection, to: Told) -> Result<(), WatchError> {
    let servers = servers(source).await?;
    let services = Query {
        labels: Some(match &selection.proxy_name {
            None => format!("!{PROXY_NAME_LABEL}"),
            Some(name) => format!("{PROXY_NAME_LABEL}={name}"),
        }),
        fields: Some("spec.clusterIP!=None".to_owned()),
    };
    let slices = Query {
        labels: Some(format!("!{HEADLESS_LABEL}")),
        fields: None,
    };
    let node = Query {
        labels: None,
        fields: Some(format!("metadata.name={}", selection.node_name)),
    };
    let cidrs = Query::default();
    let patience = source.patience;
    let given = || (servers.clone(), to.clone());
    let (from, told) = given();
    tokio::spawn(follow::<ServiceCidr>(from, cidrs, patience, told));
    let (from, told) = given();
    tokio::spawn(follow::<Node>(from, node, patience, told));
    let (from, told) = given();
    tokio::spawn(follow::<Service>(from, services, patience, told));
    tokio::spawn(follow::<EndpointSlice>(servers, slices, patience, to));
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
        .map(|mut config| {
            // When to try again is decided over all servers.
            config.default_retry = false;
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
