//! What a probe found out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What a server says first on every connection, and with every datagram.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Its name.
    pub server: String,
    /// The client as the server sees it.
    pub peer: SocketAddr,
    /// The server as the client sees it: getpeername(), or recvfrom()'s address. Set by the client.
    pub from: Option<SocketAddr>,
}

/// What one server answered.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Answers {
    /// How many connections it answered.
    pub count: u32,
    /// When the last of them began, in nanoseconds of CLOCK_MONOTONIC.
    pub last_start_ns: u64,
}

/// Outcome of a [`super::Plan`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Connections tried.
    pub connections: u32,
    /// By server.
    pub answers: BTreeMap<String, Answers>,
    /// By error name.
    pub failures: BTreeMap<String, u32>,
    /// The client's address, as servers saw it.
    pub seen_as: BTreeMap<IpAddr, u32>,
    /// The server's address, as the client saw it.
    pub from: BTreeMap<SocketAddr, u32>,
}

/// Outcome of a [`super::StreamPlan`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StreamReport {
    /// Who echoed.
    pub answer: Answer,
    /// Bytes that came back as they were sent.
    pub bytes: u64,
    /// How long it took.
    pub milliseconds: u64,
}

impl Report {
    /// Connections that were answered.
    pub fn answered(&self) -> u32 {
        self.answers.values().map(|answers| answers.count).sum()
    }

    /// Connections that failed.
    pub fn failed(&self) -> u32 {
        self.failures.values().sum()
    }

    /// Connections that `server` answered.
    pub fn count(&self, server: &str) -> u32 {
        self.answers.get(server).map_or(0, |answers| answers.count)
    }

    /// Names of the servers that answered, in order.
    pub fn servers(&self) -> Vec<&str> {
        self.answers.keys().map(String::as_str).collect()
    }

    /// Counts one answered connection that began at `start_ns`.
    pub(super) fn add_answer(&mut self, answer: &Answer, start_ns: u64) {
        let answers = self.answers.entry(answer.server.clone()).or_default();
        answers.count += 1;
        answers.last_start_ns = start_ns;
        *self.seen_as.entry(answer.peer.ip()).or_default() += 1;
        if let Some(from) = answer.from {
            *self.from.entry(from).or_default() += 1;
        }
    }

    /// Counts one that failed.
    pub(super) fn add_failure(&mut self, error: &std::io::Error) {
        *self.failures.entry(error_name(error)).or_default() += 1;
    }
}

/// The name of an error: `ECONNREFUSED`; `TIMEOUT` when nothing came in time.
pub(super) fn error_name(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match (error.raw_os_error(), error.kind()) {
        // A blocking socket with a limit reports the limit as one of these two.
        (Some(libc::EAGAIN | libc::EINPROGRESS), _) => "TIMEOUT".into(),
        (Some(number), _) => format!("{:?}", nix::errno::Errno::from_raw(number)),
        (None, ErrorKind::TimedOut | ErrorKind::WouldBlock) => "TIMEOUT".into(),
        (None, ErrorKind::UnexpectedEof) => "EOF".into(),
        (None, _) => error.to_string(),
    }
}
