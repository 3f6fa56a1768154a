//! Stage 1 of the object's path: the API objects, from manifest files or from the API server, as
//! one stream of events.
//!
//! Both sources keep the same promises. Every kind is listed completely (`Restarted`, `Applied`,
//! `Listed`) before its first change; an object that cannot be decoded is `Rejected` alone; what
//! the labels of S-002 and S-004 hide is never seen, and what they come to hide is `Deleted`; of
//! the Nodes only this one is passed on (S-001).

pub mod check;
pub mod contact;
pub mod decode;
mod files;
pub mod follow;
mod kube;
pub mod located;
pub mod manifests;

pub use self::kube::decode_object;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use backon::ExponentialBuilder;
use tokio::sync::mpsc;

use self::contact::Contacts;
use crate::objects::{Kind, Object, ObjectEvent};

/// Every watched kind.
pub const KINDS: [Kind; 4] = [
    Kind::ServiceCidr,
    Kind::Node,
    Kind::Service,
    Kind::EndpointSlice,
];

/// A Service with this label belongs to another proxy (S-002).
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// A slice with this label is not for proxies (S-004).
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// A server ends a watch after one of these times, by chance: not those of all nodes at once.
pub const WATCH_SECS: Range<u32> = 300..600;

/// Events that may wait between the source and the store.
const QUEUED_EVENTS_MAX: usize = 1024;

/// Where the objects come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Files and folders.
    Manifests(Vec<PathBuf>),
    /// An API server.
    Api(ApiSource),
}

/// Which API server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ApiSource {
    /// Credentials and server; `None`: those of the pod that the agent runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Servers to try in order instead of the one configured: addresses that need no Service
    /// (S-183).
    pub servers: Vec<String>,
    /// How long a server may keep the agent waiting.
    pub patience: Patience,
}

/// How long a server may be silent before it counts as failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Until a watch begins, and between two objects of a list that is streamed.
    pub answer: Duration,
    /// For a page of a list. A server gives one up by itself after 60 s.
    pub page: Duration,
    /// Between two events of a watch. A server sends a bookmark a minute where nothing happens.
    pub event: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            page: Duration::from_secs(70),
            event: Duration::from_secs(130),
        }
    }
}

/// Which objects are for this agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selection {
    /// Name of this node (S-170): of the Nodes only this one is passed on.
    pub node_name: String,
    /// Services of this proxy (S-003); `None`: those that name none.
    pub proxy_name: Option<String>,
}

/// The source cannot be watched at all.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A given path does not exist or is not readable.
    #[error("manifests: {path} cannot be read; name files or folders that exist by --manifests")]
    Manifests {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No inotify.
    #[error("following the manifests")]
    Notify(#[source] notify::Error),
    /// The kubeconfig cannot be used.
    #[error("reading the kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ::kube::config::KubeconfigError,
    },
    /// Neither files nor a kubeconfig were given, and this is no pod.
    #[error("no --manifests, no --kubeconfig, and this is not a pod with a service account")]
    InCluster(#[source] ::kube::config::InClusterError),
    /// Not a URL.
    #[error("apiserver: {url:?} is no URL (like https://192.0.2.5:6443)")]
    ServerUrl {
        /// What was given.
        url: String,
    },
    /// The client cannot be made.
    #[error("connecting to the API server")]
    Client(#[source] ::kube::Error),
    /// No thread.
    #[error("starting the thread that follows the manifests")]
    Thread(#[source] std::io::Error),
}

/// Waits after each round over all servers that failed: from half a second to 15 s, and stretched
/// by chance up to twice, so that the agents of a cluster do not ask in step.
pub fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(15))
        .without_max_times()
        .with_jitter()
}

/// Starts watching; it ends when the receiver is dropped. Needs a tokio runtime.
pub async fn start(
    source: Source,
    selection: Selection,
) -> Result<mpsc::Receiver<ObjectEvent>, WatchError> {
    start_noting(source, selection, Contacts::default()).await
}

/// As [`start`], and tells `contacts` how the watches stand.
pub async fn start_noting(
    source: Source,
    selection: Selection,
    contacts: Contacts,
) -> Result<mpsc::Receiver<ObjectEvent>, WatchError> {
    let (sender, receiver) = mpsc::channel(QUEUED_EVENTS_MAX);
    match source {
        Source::Manifests(roots) => follow::spawn(roots, selection, sender)?,
        Source::Api(source) => kube::spawn(&source, &selection, (sender, contacts)).await?,
    }
    Ok(receiver)
}

/// Clients of the API servers that objects come from; none for manifests.
pub async fn clients(source: &Source) -> Result<Vec<::kube::Client>, WatchError> {
    match source {
        Source::Manifests(_) => Ok(Vec::new()),
        Source::Api(source) => kube::clients(source).await,
    }
}

/// True for an object that this node's agent must not see: what the API server leaves out by the
/// selectors of the watch.
pub fn hidden(object: &Object, selection: &Selection) -> bool {
    match object {
        Object::Service(service) => {
            service.metadata.labels.get(PROXY_NAME_LABEL) != selection.proxy_name.as_ref()
                || service.spec.cluster_ip.as_deref() == Some("None")
        }
        Object::EndpointSlice(slice) => slice.metadata.labels.contains_key(HEADLESS_LABEL),
        Object::Node(node) => node.metadata.name != selection.node_name,
        Object::ServiceCidr(_) => false,
    }
}
