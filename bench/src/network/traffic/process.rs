//! Traffic processes as their parent sees them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use tests::net::Place;

use super::{Outcome, Request, Response};

/// A client; dropping it ends the process.
pub struct Driver(Process);

/// A server; dropping it ends the process.
pub struct Listener {
    /// Held for its end.
    _process: Process,
}

struct Process {
    child: Child,
    requests: ChildStdin,
    responses: BufReader<ChildStdout>,
}

impl Listener {
    /// Starts it and waits until it listens.
    pub fn start(place: &Place, listen: SocketAddr) -> Result<Self> {
        let [server, _] = processors()?;
        let mut process = Process::start(place, server, &["--serve", &listen.to_string()])?;
        let line = process.receive()?;
        ensure!(line == "ready\n", "the server at {listen} said {line:?}");
        Ok(Self { _process: process })
    }
}

impl Driver {
    /// Starts it.
    pub fn start(place: &Place) -> Result<Self> {
        // What is lost is to be seen soon.
        place.netns.sysctl("net/ipv4/tcp_syn_retries", "2")?;
        let [_, client] = processors()?;
        Process::start(place, client, &[]).map(Self)
    }

    /// Measures. A single connection that fails is an error.
    pub fn ask(&mut self, request: &Request) -> Result<Outcome> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let written = self.0.requests.write_all(&line);
        written.context("the traffic process is gone")?;
        let answer = self.0.receive()?;
        match serde_json::from_str(&answer) {
            Ok(Response::Done(outcome)) => Ok(outcome),
            Ok(Response::Failed(error)) => bail!("{:?} to {}: {error}", request.task, request.to),
            Err(_) => bail!("{:?} to {}: it said {answer:?}", request.task, request.to),
        }
    }
}

impl Process {
    fn start(place: &Place, cpu: usize, words: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["traffic", "--cpu", &cpu.to_string()]);
        command.args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = place.spawn(&mut command)?;
        let requests = child.stdin.take().context("standard input")?;
        let responses = child.stdout.take().context("standard output")?;
        Ok(Self {
            child,
            requests,
            responses: BufReader::new(responses),
        })
    }

    fn receive(&mut self) -> Result<String> {
        let mut line = String::new();
        self.responses.read_line(&mut line)?;
        if line.is_empty() {
            bail!("a traffic process ended ({})", self.child.wait()?);
        }
        Ok(line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processors of servers and of clients: two, where there are two.
fn processors() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu) == Ok(true);
    let mut last = (0..CpuSet::count()).rev().filter(is_allowed);
    let server = last.next().context("no processor")?;
    Ok([server, last.next().unwrap_or(server)])
}
