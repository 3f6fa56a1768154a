//! A small HTTP/1 server: one address, one function that answers.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Connections of one server at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// Connections that may wait.
const BACKLOG: i32 = 128;
/// Bytes of a question's body that are read.
const BODY_MAX: usize = 4096;
/// How long a client may take to ask; also how long an idle connection is kept.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Content type.
    pub content_type: &'static str,
    /// Other headers.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// 200 with plain text.
    pub fn text(body: impl Into<String>) -> Self {
        Self::plain(StatusCode::OK, body)
    }

    /// Plain text.
    pub fn plain(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            headers: Vec::new(),
            body: body.into().into(),
        }
    }

    /// JSON that no browser takes for anything else (S-141).
    pub fn json(status: StatusCode, body: String) -> Self {
        Self {
            status,
            content_type: "application/json",
            headers: vec![("x-content-type-options", "nosniff".to_owned())],
            body: body.into(),
        }
    }
}

/// A question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Its method; probes may use any.
    pub method: Method,
    /// Path.
    pub path: String,
    /// What stands behind the path's question mark.
    pub query: String,
    /// Body, if it is a little text, and else nothing.
    pub body: String,
}

/// What answers.
pub type Handler = Arc<dyn Fn(Asked) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// Whether a socket on `[::]` takes IPv4 too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ipv6Only {
    /// It does not.
    Yes,
    /// It does.
    No,
}

/// Listens. Needs a tokio runtime.
pub fn bind(addr: SocketAddr, ipv6_only: Ipv6Only) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if addr.is_ipv6() {
        socket.set_only_v6(ipv6_only == Ipv6Only::Yes)?;
    }
    // Connections of the last run may still be closing.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A running server. Dropping it ends it, and its connections, soon.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
}

impl Server {
    /// Ends the server and its connections; its address is free when this returns.
    pub async fn close(mut self) {
        self.task.abort();
        // An aborted task ends with an error: that is what is waited for.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves on `listener`. Needs a tokio runtime.
pub fn serve(listener: TcpListener, handler: Handler) -> Server {
    Server {
        task: tokio::spawn(accept(listener, handler)),
    }
}

async fn accept(listener: TcpListener, handler: Handler) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&handler)));
                }
                // Of this connection, or for want of descriptors: neither ends the server.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, handler: Handler) {
    let service = service_fn(|request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move {
            let answer = handler(asked(request).await).await;
            Ok::<_, Infallible>(response(answer))
        }
    });
    let served = http1::Builder::new()
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(ASK_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off, or talks no HTTP, is its own affair.
    let _ = served.await;
}

async fn asked(request: Request<Incoming>) -> Asked {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await;
    let body = body.map(|body| String::from_utf8(body.to_bytes().into()));
    Asked {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        body: body.ok().and_then(Result::ok).unwrap_or_default(),
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}
