//! An API server that misbehaves: as much of the API as a watch needs, without TLS, and faults
//! that a real one shows too rarely to be tested with.

mod answer;

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What goes wrong with the next request for a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A watch is refused with this status.
    Status(u16),
    /// A request is read and never answered.
    Hang,
    /// A list arrives in small pieces.
    SlowList,
    /// The connection ends in the middle of a list.
    CutList,
    /// A watch begins and tells nothing.
    Silence,
    /// A watch ends with 410 Gone: what happened since is lost.
    Gone,
    /// A watch ends in the middle of its next event.
    CutWatch,
    /// Every event of a watch is told twice.
    Twice,
}

/// What becomes of a list that is asked for by a watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Streams {
    /// It is refused, as by a server that has them turned off.
    #[default]
    Refused,
    /// The parameter is ignored, as by a server of before: a watch of what is there, without end.
    Ignored,
    /// It is served.
    Served,
}

/// The server. Dropping it ends it, and every connection to it.
#[derive(Debug)]
pub struct FakeApi {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// By plural, then by namespace and name.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    /// Version, plural, type and object of every change.
    changes: Vec<(u64, String, &'static str, Value)>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    /// Requests that were answered, faults included, by plural.
    requests: BTreeMap<String, u64>,
    /// Lists that were answered completely, by plural.
    lists: BTreeMap<String, u64>,
    streams: Streams,
    is_down: bool,
    /// Watches of earlier epochs end.
    epoch: u64,
}

impl FakeApi {
    /// Starts a server on a free port of the loopback address.
    pub fn start() -> Result<Self> {
        Self::listen("127.0.0.1:0".parse()?)
    }

    /// Starts a server at `address`, in the network namespace of this thread.
    pub fn listen(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).context("listening")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let server = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&server);
                // A client that goes away is no reason to stop.
                std::thread::spawn(move || drop(answer::answer(&server, stream)));
            }
        });
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that names it.
    pub fn kubeconfig(&self, path: &Path) -> Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.url()}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(path, config.to_string())?;
        Ok(())
    }

    /// Makes or replaces an object.
    pub fn apply(&self, object: &Value) {
        let plural = plural(object);
        self.change(|state| {
            let objects = state.objects.entry(plural.clone()).or_default();
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let known = objects.insert(key(&object), object.clone());
            let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
            state.changes.push((state.version, plural, kind, object));
        });
    }

    /// Deletes an object.
    pub fn delete(&self, object: &Value) {
        let plural = plural(object);
        self.change(|state| {
            let objects = state.objects.entry(plural.clone()).or_default();
            if let Some(mut object) = objects.remove(&key(object)) {
                object["metadata"]["resourceVersion"] = json!(state.version.to_string());
                state
                    .changes
                    .push((state.version, plural, "DELETED", object));
            }
        });
    }

    /// Tells a watch of something that is not so: an event that no change stands behind.
    pub fn tell(&self, kind: &'static str, object: &Value) {
        let plural = plural(object);
        self.change(|state| {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            state.changes.push((state.version, plural, kind, object));
        });
    }

    /// The next requests for a kind go wrong, one after the other.
    pub fn fault(&self, plural: &str, fault: Fault) {
        let mut state = self.shared.lock();
        state
            .faults
            .entry(plural.to_owned())
            .or_default()
            .push_back(fault);
    }

    /// True when every fault has happened.
    pub fn has_no_faults_left(&self) -> bool {
        self.shared.lock().faults.values().all(VecDeque::is_empty)
    }

    /// Ends every watch.
    pub fn end_watches(&self) {
        self.shared.lock().epoch += 1;
        self.shared.changed.notify_all();
    }

    /// From here on every connection is refused, or none is.
    pub fn set_down(&self, is_down: bool) {
        let mut state = self.shared.lock();
        state.is_down = is_down;
        state.epoch += 1;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Requests for a kind so far.
    pub fn requests(&self, plural: &str) -> u64 {
        let state = self.shared.lock();
        state.requests.get(plural).copied().unwrap_or_default()
    }

    /// Lists of a kind that were answered to their end so far.
    pub fn lists(&self, plural: &str) -> u64 {
        let state = self.shared.lock();
        state.lists.get(plural).copied().unwrap_or_default()
    }

    /// What becomes of lists that are asked for by a watch.
    pub fn set_streams(&self, streams: Streams) {
        self.shared.lock().streams = streams;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.shared.lock();
        state.version += 1;
        change(&mut state);
        self.shared.changed.notify_all();
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.set_down(true);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn plural(object: &Value) -> String {
    match object["kind"].as_str() {
        Some("Service") => "services",
        Some("EndpointSlice") => "endpointslices",
        Some("Node") => "nodes",
        _ => "servicecidrs",
    }
    .to_owned()
}

fn key(object: &Value) -> String {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}
