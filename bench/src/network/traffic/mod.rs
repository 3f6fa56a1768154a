//! The processes that make traffic: servers, and clients that are told in one JSON line what to
//! do and answer with one. They are processes because socket hooks see them by cgroup. Each stays
//! on one processor, so that no figure depends on where the scheduler puts it.

mod client;
mod process;
mod server;

use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub use process::{Driver, Listener};

/// Bytes of a request, of a response, and of a datagram.
const SMALL: usize = 64;
/// Datagrams of which the last one is answered.
const BURST: u64 = 32;
/// First byte of a connection that is closed after one byte.
const ONE_BYTE: u8 = b'C';
/// First byte of a connection that echoes.
const ECHO: u8 = b'E';
/// First byte of a connection whose bytes are counted.
const COUNT: u8 = b'S';

/// What a traffic process is: hidden from users.
#[derive(clap::Args)]
pub struct Options {
    /// Listen here; without it, do what standard input says
    #[arg(long)]
    serve: Option<SocketAddr>,
    /// The processor to stay on
    #[arg(long)]
    cpu: usize,
}

/// What is measured by one call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Task {
    /// One TCP connection that sends as much as it can: bits a second.
    Stream,
    /// 64 bytes there and 64 back over one connection, again and again: microseconds, the median
    /// and the 99th percentile.
    Latency,
    /// Connections with one byte each way, of several threads: a second.
    Connects,
    /// Datagrams of 64 bytes, with a window so that none is lost: a second.
    Datagrams,
    /// The call connect() alone: nanoseconds, each of them.
    ConnectCalls,
}

/// One line to a client.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub task: Task,
    /// Where to.
    pub to: SocketAddr,
    /// For how long.
    pub millis: u64,
}

/// One line from a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    /// What was measured.
    Done(Outcome),
    /// What went wrong.
    Failed(String),
}

/// What was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// As the task says.
    pub values: Vec<f64>,
    /// Calls that a socket hook sees: connect() of TCP, and sendto().
    pub calls: u64,
}

/// Serves, or does what it is told, until standard input ends.
pub fn run(options: &Options) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(options.cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    if let Some(listen) = options.serve {
        server::start(listen).with_context(|| format!("listening at {listen}"))?;
        say("ready")?;
    }
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let response = match client::run(&request) {
            Ok(outcome) => Response::Done(outcome),
            Err(error) => Response::Failed(error.to_string()),
        };
        say(&serde_json::to_string(&response)?)?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}
