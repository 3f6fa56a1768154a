//! Real sockets: servers that name themselves, and clients that count who answered.
//!
//! A [`Probe`] is a process of its own in the namespace and cgroup where it is started, because
//! socket hooks see processes by cgroup and a thread cannot be in another one. It is told what to
//! do in one JSON line per [`Request`] and answers each with one [`Response`].

mod client;
mod held;
mod plan;
mod probe;
mod report;
mod serve;
mod server;
mod stream;

pub use client::monotonic_ns;
pub use plan::{Amount, Held, Plan, Request, Response, Server, SocketKind, StreamPlan};
pub use probe::Probe;
pub use report::{Answer, Answers, Report, StreamReport};
pub use serve::serve;
