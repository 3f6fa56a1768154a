//! An API server that misbehaves: as much of the API as a watch needs, without TLS, and faults
//! that a real one shows too rarely to be tested with.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Between two pieces of a slow list.
const TRICKLE: Duration = Duration::from_millis(5);
/// Bytes of one piece.
const PIECE: usize = 200;

/// What goes wrong with the next request for a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A list or watch is refused with this status.
    Status(u16),
    /// A list arrives in small pieces.
    SlowList,
    /// The connection ends in the middle of a list.
    CutList,
    /// A watch ends with 410 Gone: what happened since is lost.
    Gone,
    /// A watch ends in the middle of its next event.
    CutWatch,
    /// Every event of a watch is told twice.
    Twice,
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
                std::thread::spawn(move || drop(answer(&server, stream)));
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
        self.change(|state| state.epoch += 1);
    }

    /// From here on every connection is refused, or none is.
    pub fn set_down(&self, is_down: bool) {
        self.change(|state| {
            state.is_down = is_down;
            state.epoch += 1;
        });
    }

    /// Requests for a kind so far.
    pub fn requests(&self, plural: &str) -> u64 {
        let state = self.shared.lock();
        state.requests.get(plural).copied().unwrap_or_default()
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

fn answer(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let target = request.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let plural = path.rsplit('/').next().unwrap_or_default().to_owned();
    let is_watch = query
        .split('&')
        .any(|it| it == "watch=true" || it == "watch=1");
    let version = query
        .split('&')
        .find_map(|it| it.strip_prefix("resourceVersion="));
    let version = version.and_then(|text| text.parse().ok()).unwrap_or(0);
    let (fault, list, epoch) = {
        let mut state = shared.lock();
        if state.is_down {
            return Ok(());
        }
        *state.requests.entry(plural.clone()).or_default() += 1;
        (
            take_fault(&mut state, &plural, is_watch),
            list(&state, &plural),
            state.epoch,
        )
    };
    match fault {
        Some(Fault::Status(status)) => refuse(stream, status),
        _ if is_watch => watch(shared, stream, &plural, (version, epoch), fault),
        _ => send_list(stream, &list, fault),
    }
}

/// The next fault, if this request can show it.
fn take_fault(state: &mut State, plural: &str, is_watch: bool) -> Option<Fault> {
    let faults = state.faults.get_mut(plural)?;
    let is_for_watch = match faults.front()? {
        Fault::Status(_) => is_watch,
        Fault::SlowList | Fault::CutList => false,
        Fault::Gone | Fault::CutWatch | Fault::Twice => true,
    };
    (is_for_watch == is_watch).then(|| faults.pop_front())?
}

fn list(state: &State, plural: &str) -> String {
    let objects = state.objects.get(plural).into_iter().flatten();
    let items: Vec<&Value> = objects.map(|(_, object)| object).collect();
    json!({
        "kind": "List", "apiVersion": "v1",
        "metadata": {"resourceVersion": state.version.to_string()},
        "items": items,
    })
    .to_string()
}

fn refuse(mut stream: TcpStream, status: u16) -> io::Result<()> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status,
        "reason": "Fault", "message": "a fault", "metadata": {},
    })
    .to_string();
    write!(
        stream,
        "HTTP/1.1 {status} Fault\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn send_list(mut stream: TcpStream, list: &str, fault: Option<Fault>) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        list.len()
    )?;
    match fault {
        Some(Fault::CutList) => stream.write_all(&list.as_bytes()[..list.len() / 2]),
        Some(Fault::SlowList) => {
            for piece in list.as_bytes().chunks(PIECE) {
                stream.write_all(piece)?;
                std::thread::sleep(TRICKLE);
            }
            Ok(())
        }
        _ => stream.write_all(list.as_bytes()),
    }
}

fn watch(
    shared: &Shared,
    mut stream: TcpStream,
    plural: &str,
    (mut version, epoch): (u64, u64),
    fault: Option<Fault>,
) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )?;
    stream.flush()?;
    if fault == Some(Fault::Gone) {
        let gone = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
            "reason": "Expired", "message": "too old resource version", "metadata": {},
        });
        send_chunk(&mut stream, &event_text("ERROR", &gone))?;
        return stream.write_all(b"0\r\n\r\n");
    }
    loop {
        let mut state = shared.lock();
        let events = loop {
            if state.epoch != epoch {
                // As a server that ends: properly, or not at all.
                return match state.is_down {
                    true => Ok(()),
                    false => stream.write_all(b"0\r\n\r\n"),
                };
            }
            let changes = state.changes.iter();
            let news: Vec<_> = changes
                .filter(|(at, of, _, _)| *at > version && of == plural)
                .map(|(at, _, kind, object)| (*at, event_text(kind, object)))
                .collect();
            if !news.is_empty() {
                break news;
            }
            let waited = shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        for (at, event) in events {
            match fault {
                Some(Fault::CutWatch) => {
                    return send_chunk(&mut stream, &event[..event.len() / 2]);
                }
                Some(Fault::Twice) => {
                    send_chunk(&mut stream, &event)?;
                    send_chunk(&mut stream, &event)?;
                }
                _ => send_chunk(&mut stream, &event)?,
            }
            version = at;
        }
    }
}

/// One event of a watch: its type first, as every API server writes it (the order of the fields of
/// `metav1.WatchEvent`); the client decodes the object without holding it as a tree only so.
fn event_text(kind: &str, object: &Value) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn send_chunk(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    write!(stream, "{:x}\r\n{text}\r\n", text.len())?;
    stream.flush()
}
