//! One request and its answer.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Fault, Shared, State, Streams};

/// Between two pieces of a slow list.
const TRICKLE: Duration = Duration::from_millis(5);
/// Bytes of one piece.
const PIECE: usize = 200;

/// What is asked for.
struct Request {
    plural: String,
    is_watch: bool,
    /// It is a watch that begins with a list.
    is_stream: bool,
    version: u64,
}

impl Request {
    fn read(stream: &TcpStream) -> io::Result<Self> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let target = request.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let has = |wanted: &[&str]| query.split('&').any(|it| wanted.contains(&it));
        let version = query
            .split('&')
            .find_map(|it| it.strip_prefix("resourceVersion="));
        Ok(Self {
            plural: path.rsplit('/').next().unwrap_or_default().to_owned(),
            is_watch: has(&["watch=true", "watch=1"]),
            is_stream: has(&["sendInitialEvents=true"]),
            version: version.and_then(|text| text.parse().ok()).unwrap_or(0),
        })
    }

    /// It asks for everything there is.
    fn is_list(&self) -> bool {
        !self.is_watch || self.is_stream
    }
}

pub(super) fn answer(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    let request = Request::read(&stream)?;
    let plural = &request.plural;
    let (fault, streams, list, version, epoch) = {
        let mut state = shared.lock();
        if state.is_down {
            return Ok(());
        }
        *state.requests.entry(plural.clone()).or_default() += 1;
        if request.is_stream && state.streams == Streams::Refused {
            return refuse(stream, 422);
        }
        (
            take_fault(&mut state, &request),
            state.streams,
            items(&state, plural),
            state.version,
            state.epoch,
        )
    };
    match fault {
        Some(Fault::Status(status)) => return refuse(stream, status),
        Some(Fault::Hang) => return hang(shared),
        _ => {}
    }
    let mut from = request.version;
    if request.is_stream {
        head(&stream, "Transfer-Encoding: chunked")?;
        let list = streamed(&list, version, streams);
        send_list(&list, fault, |piece| send_chunk(&stream, piece))?;
        from = version;
    } else if !request.is_watch {
        let list = paged(&list, version);
        head(&stream, &format!("Content-Length: {}", list.len()))?;
        send_list(&list, fault, |piece| (&stream).write_all(piece.as_bytes()))?;
    } else {
        head(&stream, "Transfer-Encoding: chunked")?;
    }
    if request.is_list() {
        *shared.lock().lists.entry(plural.clone()).or_default() += 1;
    }
    match request.is_watch {
        true => watch(shared, stream, plural, (from, epoch), fault),
        false => Ok(()),
    }
}

/// The next fault, if this request can show it.
fn take_fault(state: &mut State, request: &Request) -> Option<Fault> {
    let faults = state.faults.get_mut(&request.plural)?;
    let is_shown = match faults.front()? {
        Fault::Hang => true,
        Fault::SlowList | Fault::CutList => request.is_list(),
        Fault::Status(_) | Fault::Gone | Fault::CutWatch | Fault::Twice | Fault::Silence => {
            !request.is_list()
        }
    };
    is_shown.then(|| faults.pop_front())?
}

/// Waits until the server ends.
fn hang(shared: &Shared) -> io::Result<()> {
    let mut state = shared.lock();
    while !state.is_down {
        let waited = shared.changed.wait(state);
        state = waited.unwrap_or_else(PoisonError::into_inner);
    }
    Ok(())
}

fn items(state: &State, plural: &str) -> Vec<Value> {
    let objects = state.objects.get(plural).into_iter().flatten();
    objects.map(|(_, object)| object.clone()).collect()
}

fn paged(items: &[Value], version: u64) -> String {
    json!({
        "kind": "List", "apiVersion": "v1",
        "metadata": {"resourceVersion": version.to_string()},
        "items": items,
    })
    .to_string()
}

/// A list as the beginning of a watch; what tells its end is left out where it is not known.
fn streamed(items: &[Value], version: u64, streams: Streams) -> String {
    let mut events: String = items.iter().map(|item| event_text("ADDED", item)).collect();
    if streams == Streams::Served {
        let end = json!({
            "kind": "Bookmark", "apiVersion": "v1",
            "metadata": {
                "resourceVersion": version.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"},
            },
        });
        events += &event_text("BOOKMARK", &end);
    }
    events
}

fn head(mut stream: &TcpStream, framing: &str) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{framing}\r\n\
         Connection: close\r\n\r\n"
    )?;
    stream.flush()
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

/// An error where the list is cut: the connection ends with it.
fn send_list(
    list: &str,
    fault: Option<Fault>,
    mut send: impl FnMut(&str) -> io::Result<()>,
) -> io::Result<()> {
    match fault {
        Some(Fault::CutList) => {
            send(&list[..list.len() / 2])?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Some(Fault::SlowList) => {
            for piece in list.as_bytes().chunks(PIECE) {
                send(&String::from_utf8_lossy(piece))?;
                std::thread::sleep(TRICKLE);
            }
            Ok(())
        }
        _ if list.is_empty() => Ok(()),
        _ => send(list),
    }
}

fn watch(
    shared: &Shared,
    mut stream: TcpStream,
    plural: &str,
    (mut version, epoch): (u64, u64),
    fault: Option<Fault>,
) -> io::Result<()> {
    match fault {
        Some(Fault::Silence) => return hang(shared),
        Some(Fault::Gone) => {
            let gone = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                "reason": "Expired", "message": "too old resource version", "metadata": {},
            });
            send_chunk(&stream, &event_text("ERROR", &gone))?;
            return stream.write_all(b"0\r\n\r\n");
        }
        _ => {}
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
                    return send_chunk(&stream, &event[..event.len() / 2]);
                }
                Some(Fault::Twice) => {
                    send_chunk(&stream, &event)?;
                    send_chunk(&stream, &event)?;
                }
                _ => send_chunk(&stream, &event)?,
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

fn send_chunk(mut stream: &TcpStream, text: &str) -> io::Result<()> {
    write!(stream, "{:x}\r\n{text}\r\n", text.len())?;
    stream.flush()
}
