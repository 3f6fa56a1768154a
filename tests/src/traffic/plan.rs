//! What a probe is asked to do.

use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Answer, Report, StreamReport};

/// How long one connection may take, unless a plan says otherwise.
const TIMEOUT_MS: u64 = 5_000;
/// Limit of a wait on a held connection: what is lost never comes, what is late on a machine whose
/// cores are busy does.
const HELD_TIMEOUT_MS: u64 = 60_000;

/// One line to a probe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Listen.
    Serve(Server),
    /// Connect again and again.
    Connect(Plan),
    /// Send a long stream and verify its echo.
    Stream(StreamPlan),
    /// Open one connection and hold it.
    Open(Held),
    /// As `Open`, and ask nothing yet: of a UDP server, which may not be there.
    Prepare(Held),
    /// Send `payload` bytes over the held connection with this number, and verify the echo.
    Ask {
        /// As returned by `Open`.
        connection: usize,
        /// How many bytes.
        payload: usize,
    },
    /// End a running `Connect`: its report is the only response.
    Finish,
    /// Go on when the parent is gone.
    Detach,
}

/// One line from a probe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// Done; a server listens.
    Ready,
    /// To `Connect` and `Finish`.
    Report(Report),
    /// To `Stream`.
    Stream(StreamReport),
    /// To `Open`: the connection's number, and what the server said.
    Opened(usize, Answer),
    /// To `Prepare`: the connection's number.
    Prepared(usize),
    /// To `Ask`.
    Answer(Answer),
    /// It did not work: the error's name (`ECONNREFUSED`, `TIMEOUT`).
    Failed(String),
}

/// A server that echoes, and first says its name and what it sees of the client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Server {
    /// What it calls itself.
    pub name: String,
    /// Tcp, Sctp, or any other kind for UDP.
    pub socket: SocketKind,
    /// Where it listens.
    pub listen: SocketAddr,
}

/// Which calls a client makes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum SocketKind {
    /// Non-blocking connect().
    Tcp,
    /// Blocking connect().
    TcpBlocking,
    /// sendto() and recvfrom(): every answer has to come from the address that was asked.
    Udp,
    /// connect(), send() and recv().
    UdpConnected,
    /// A one-to-one socket of SCTP: a module that not every kernel has.
    Sctp,
}

/// Many connections, one after the other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Where to.
    pub to: SocketAddr,
    /// How.
    pub socket: SocketKind,
    /// How many.
    pub amount: Amount,
    /// Bytes that each connection has echoed.
    pub payload: usize,
    /// Limit of every single wait.
    pub timeout_ms: u64,
    /// After this many failures the rest is not tried.
    pub max_failures: u32,
    /// Pause after each connection.
    pub pause_ms: u64,
    /// The address to bind first. With a port only one connection at a time can exist.
    pub source: Option<SocketAddr>,
}

/// How many connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Amount {
    /// This many.
    Times(u32),
    /// Until `Request::Finish`.
    UntilFinish,
}

/// One connection that stays open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Where to.
    pub to: SocketAddr,
    /// How.
    pub socket: SocketKind,
    /// Limit of every single wait.
    pub timeout_ms: u64,
    /// The address to bind first.
    pub source: Option<SocketAddr>,
}

/// A long TCP stream, sent and received at once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StreamPlan {
    /// Where to.
    pub to: SocketAddr,
    /// How many bytes each way.
    pub bytes: u64,
    /// Limit of every single wait.
    pub timeout_ms: u64,
}

impl SocketKind {
    /// Whether it is a TCP socket.
    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::TcpBlocking)
    }

    /// Whether it is a stream, of TCP or of SCTP.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Tcp | Self::TcpBlocking | Self::Sctp)
    }

    /// A socket of this kind.
    pub(super) fn socket(self, to: SocketAddr) -> io::Result<Socket> {
        let kind = match self.is_stream() {
            true => Type::STREAM,
            false => Type::DGRAM,
        };
        let protocol = match self {
            Self::Sctp => Some(Protocol::from(libc::IPPROTO_SCTP)),
            _ => None,
        };
        Socket::new(Domain::for_address(to), kind, protocol)
    }
}

impl Plan {
    /// One connection without payload.
    pub fn new(socket: SocketKind, to: SocketAddr) -> Self {
        Self {
            to,
            socket,
            amount: Amount::Times(1),
            payload: 0,
            timeout_ms: TIMEOUT_MS,
            max_failures: u32::MAX,
            pause_ms: 0,
            source: None,
        }
    }

    /// This many connections.
    pub fn times(self, count: u32) -> Self {
        Self {
            amount: Amount::Times(count),
            ..self
        }
    }

    /// Connections until the parent asks for the report.
    pub fn until_finish(self) -> Self {
        Self {
            amount: Amount::UntilFinish,
            ..self
        }
    }

    /// Bytes that each connection has echoed.
    pub fn payload(self, bytes: usize) -> Self {
        Self {
            payload: bytes,
            ..self
        }
    }

    /// Limit of every single wait.
    pub fn timeout_ms(self, timeout_ms: u64) -> Self {
        Self { timeout_ms, ..self }
    }

    /// A pace: the pause after each connection.
    pub fn pause_ms(self, pause_ms: u64) -> Self {
        Self { pause_ms, ..self }
    }

    /// Gives up after this many failures.
    pub fn max_failures(self, max_failures: u32) -> Self {
        Self {
            max_failures,
            ..self
        }
    }

    /// The address to bind first.
    pub fn from(self, source: SocketAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }
}

impl Held {
    /// With the usual limit.
    pub fn new(socket: SocketKind, to: SocketAddr) -> Self {
        Self {
            to,
            socket,
            timeout_ms: HELD_TIMEOUT_MS,
            source: None,
        }
    }

    /// Limit of every single wait.
    pub fn timeout_ms(self, timeout_ms: u64) -> Self {
        Self { timeout_ms, ..self }
    }

    /// The address to bind first.
    pub fn from(self, source: SocketAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }
}

impl StreamPlan {
    /// With the usual limit.
    pub fn new(to: SocketAddr, bytes: u64) -> Self {
        Self {
            to,
            bytes,
            timeout_ms: TIMEOUT_MS,
        }
    }
}
