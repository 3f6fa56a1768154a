//! The parent's side of the conversation with a probe.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::plan::{Amount, Held, Plan, Request, Response, Server, StreamPlan};
use super::report::{Answer, Report, StreamReport};
use crate::net::Place;

/// A helper process. Dropping it ends the process, with all servers and connections in it.
#[derive(Debug)]
pub struct Probe {
    child: Option<Child>,
    requests: ChildStdin,
    responses: BufReader<ChildStdout>,
}

impl Probe {
    /// Starts a probe in `place`.
    pub fn start(place: &Place) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = place.spawn(&mut command)?;
        let requests = child.stdin.take().context("standard input was asked for")?;
        let responses = child
            .stdout
            .take()
            .context("standard output was asked for")?;
        Ok(Self {
            child: Some(child),
            requests,
            responses: BufReader::new(responses),
        })
    }

    /// Starts a probe that runs `server`.
    pub fn serving(place: &Place, server: Server) -> Result<Self> {
        let mut probe = Self::start(place)?;
        probe.serve(server)?;
        Ok(probe)
    }

    /// Adds a server; it listens when this returns.
    pub fn serve(&mut self, server: Server) -> Result<()> {
        let shown = format!("{server:?}");
        match self.ask_probe(&Request::Serve(server))? {
            Response::Ready => Ok(()),
            other => bail!("{shown}: {other:?}"),
        }
    }

    /// Follows `plan` to its end.
    pub fn connect(&mut self, plan: Plan) -> Result<Report> {
        self.begin(plan)?;
        self.report()
    }

    /// Begins to follow `plan`; other requests have to wait until [`Self::report`] or
    /// [`Self::finish`] was called. A plan without an end is under way when this returns: some
    /// connections were made.
    pub fn begin(&mut self, plan: Plan) -> Result<()> {
        let amount = plan.amount;
        self.send(&Request::Connect(plan))?;
        match amount {
            Amount::Times(_) => Ok(()),
            Amount::UntilFinish => match self.receive()? {
                Response::Ready => Ok(()),
                other => bail!("not under way but {other:?}"),
            },
        }
    }

    /// Ends a plan that goes on until it is finished.
    pub fn finish(&mut self) -> Result<Report> {
        self.send(&Request::Finish)?;
        self.report()
    }

    /// Waits for the end of a plan that was begun.
    pub fn report(&mut self) -> Result<Report> {
        match self.receive()? {
            Response::Report(report) => Ok(report),
            other => bail!("no report but {other:?}"),
        }
    }

    /// Follows `plan`; an error names what went wrong.
    pub fn stream(&mut self, plan: StreamPlan) -> Result<StreamReport> {
        match self.ask_probe(&Request::Stream(plan))? {
            Response::Stream(report) => Ok(report),
            other => bail!("no stream but {other:?}"),
        }
    }

    /// Opens a connection and holds it; returns its number and what the server said.
    pub fn open(&mut self, held: Held) -> Result<(usize, Answer)> {
        match self.ask_probe(&Request::Open(held))? {
            Response::Opened(number, answer) => Ok((number, answer)),
            other => bail!("not opened but {other:?}"),
        }
    }

    /// Opens a connection without a word to its server, and returns its number.
    pub fn prepare(&mut self, held: Held) -> Result<usize> {
        match self.ask_probe(&Request::Prepare(held))? {
            Response::Prepared(number) => Ok(number),
            other => bail!("not prepared but {other:?}"),
        }
    }

    /// Has `payload` bytes echoed over a held connection.
    pub fn ask(&mut self, connection: usize, payload: usize) -> Result<Answer> {
        match self.ask_probe(&Request::Ask {
            connection,
            payload,
        })? {
            Response::Answer(answer) => Ok(answer),
            other => bail!("no answer but {other:?}"),
        }
    }

    /// Lets the process go on when this value, and the whole parent, is gone.
    pub fn detach(mut self) -> Result<()> {
        self.ask_probe(&Request::Detach)?;
        self.child = None;
        Ok(())
    }

    fn ask_probe(&mut self, request: &Request) -> Result<Response> {
        self.send(request)?;
        self.receive()
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.requests.write_all(&line).context("the probe is gone")
    }

    fn receive(&mut self) -> Result<Response> {
        let mut line = String::new();
        self.responses
            .read_line(&mut line)
            .context("reading from the probe")?;
        serde_json::from_str(&line).with_context(|| format!("the probe said {line:?}"))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // Both fail only when it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The probe's binary: `SHUNT_PROBE`, or `probe` beside the running program or one folder up
/// (test binaries are in `deps`).
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHUNT_PROBE") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("asking for the own path")?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("probe"))
        .find(|p| p.is_file());
    found.with_context(|| {
        format!(
            "no probe beside {}: run cargo build -p tests --bin probe",
            own.display()
        )
    })
}
