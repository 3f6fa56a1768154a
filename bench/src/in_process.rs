//! The agent's own path without an API server: this process makes the objects, one after the
//! other, and a second one takes them in.

use std::io::{BufRead as _, BufReader, BufWriter, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::net::{Place, Sandbox};

use crate::control_plane::{Figures, Options, Percentiles};
use crate::objects::{self, Size};
use crate::process;
use crate::state::State;

/// The interface that packets of the probes enter by.
const IFINDEX: u32 = 7;
/// How long the agent may be silent: far beyond any bar.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs everything.
pub fn measure(size: Size, options: &Options) -> Result<Figures> {
    let sandbox = Sandbox::new()?;
    let mut agent = Fed::start(&sandbox, size)?;
    let mut figures = Figures::default();
    agent.fill(size)?;
    let cold = agent.answer("cold_cpu_ms")?;
    figures.cold_start_s = agent.started.elapsed().as_secs_f64();
    figures.cold_cpu_ms = number(&cold, "cold_cpu_ms")?;
    println!(
        "all programmed {:.2} s after the start, {:.1} ms of CPU behind the lists, {} writes",
        figures.cold_start_s, figures.cold_cpu_ms, cold["writes"]
    );
    let mut rounds = vec![0; size.services as usize];
    let (mut times, mut writes) = (Vec::new(), 0.0);
    for change in 0..options.changes {
        let (time, count) = agent.change(size, size.spread(change), &mut rounds)?;
        times.push(time);
        writes += count;
    }
    figures.change_us = Percentiles::of(times);
    figures.writes_per_change = writes / f64::from(options.changes.max(1));
    println!(
        "{} changes: p50 {:.0} us, p99 {:.0} us, {:.1} writes each",
        options.changes, figures.change_us.p50, figures.change_us.p99, figures.writes_per_change
    );
    // Before the storm, whose flows of the kernel's memory would be counted otherwise.
    agent.storm(size, options, &mut rounds)?;
    State::open(&agent.bpffs)?.check(size, &rounds)?;
    println!(
        "exact state: {} Services lead to their backends alone",
        rounds.len()
    );
    let memory = agent.ask("memory", "rss_mib")?;
    figures.rss_mib = number(&memory, "rss_mib")?;
    println!(
        "resident {:.1} MiB, peak {} MiB",
        figures.rss_mib, memory["peak_mib"]
    );
    [figures.maps_mib, figures.flow_maps_mib] = process::maps_mib(&agent.bpffs)?;
    Ok(figures)
}

fn number(answer: &Value, field: &str) -> Result<f64> {
    let value = answer[field].as_f64();
    value.with_context(|| format!("no {field} in {answer}"))
}

/// The second process.
struct Fed {
    child: Child,
    input: BufWriter<ChildStdin>,
    answers: Receiver<Value>,
    bpffs: PathBuf,
    started: Instant,
    /// Events that were written.
    sent: u64,
    version: u64,
}

impl Fed {
    fn start(sandbox: &Sandbox, size: Size) -> Result<Self> {
        let netns = sandbox.netns("agent")?;
        netns.ip(&format!(
            "link add name pod0 index {IFINDEX} type veth peer name pod1\n\
             link set pod0 up\nlink set pod1 up\naddr add 10.64.0.1/24 dev pod0\n\
             route add default via 10.64.0.2\n"
        ))?;
        let place = Place {
            netns,
            cgroup: sandbox.cgroup("agent")?,
        };
        let bpffs = sandbox.bpffs("agent")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("fed-agent").arg("--bpffs").arg(&bpffs);
        command.args(["--ifindex", &IFINDEX.to_string()]);
        command.args(["--services", &size.services.to_string()]);
        command.args(["--endpoints", &size.endpoints.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let started = Instant::now();
        let mut child = place.spawn(&mut command)?;
        let input = BufWriter::new(child.stdin.take().context("its input")?);
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let sent = serde_json::from_str(&line).map(|answer| sender.send(answer));
                if !matches!(sent, Ok(Ok(()))) {
                    eprintln!("{line}");
                }
            }
        });
        Ok(Self {
            child,
            input,
            answers,
            bpffs,
            started,
            sent: 0,
            version: 0,
        })
    }

    /// Writes both lists.
    fn fill(&mut self, size: Size) -> Result<()> {
        for kind in ["nodes", "services", "slices"] {
            writeln!(self.input, "begin {kind}")?;
            if kind == "nodes" {
                writeln!(self.input, "end nodes")?;
            }
        }
        for number in 0..size.services {
            self.event("service", objects::service(number))?;
        }
        writeln!(self.input, "end services")?;
        for number in 0..size.services {
            for slice in size.slices(number) {
                self.event("slice", slice)?;
            }
        }
        writeln!(self.input, "end slices")?;
        self.sent += 6;
        self.input.flush().context("the agent ended")
    }

    fn event(&mut self, word: &str, object: Value) -> Result<()> {
        self.version += 1;
        self.sent += 1;
        let object = objects::stored(object, self.version);
        writeln!(self.input, "{word} {object}").context("the agent ended")
    }

    /// Moves the first endpoint of a Service.
    fn move_endpoint(&mut self, size: Size, service: u32, rounds: &mut [u32]) -> Result<Ipv4Addr> {
        let round = &mut rounds[service as usize];
        *round += 1;
        self.event("slice", objects::slice(size, service, 0, *round))?;
        Ok(objects::endpoint(service, 0, *round))
    }

    /// Changes one endpoint and waits until it is visible: microseconds and writes.
    fn change(&mut self, size: Size, service: u32, rounds: &mut [u32]) -> Result<(f64, f64)> {
        let backend = self.move_endpoint(size, service, rounds)?;
        let frontend = objects::cluster_ip(service);
        let answer = self.ask(&format!("await {frontend} {backend}"), "change_us")?;
        Ok((number(&answer, "change_us")?, number(&answer, "writes")?))
    }

    /// Changes at a steady rate; what was sent and not taken in yet is printed every second.
    fn storm(&mut self, size: Size, options: &Options, rounds: &mut [u32]) -> Result<()> {
        let start = Instant::now();
        let (mut next_report, mut done, mut worst) = (1, 0, 0);
        for change in 0..options.storm_rate * options.storm_secs {
            let due = Duration::from_secs_f64(f64::from(change) / f64::from(options.storm_rate));
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            self.move_endpoint(size, size.spread(change), rounds)?;
            self.input.flush().context("the agent ended")?;
            while let Ok(answer) = self.answers.try_recv() {
                done = answer["done"].as_u64().unwrap_or(done);
            }
            if start.elapsed().as_secs() >= next_report {
                next_report += 1;
                let backlog = self.sent.saturating_sub(done);
                worst = worst.max(backlog);
                println!("storm: {change} changes sent, backlog {backlog}");
            }
        }
        let last = self.ask("memory", "rss_mib")?;
        ensure!(
            last["done"].as_u64() == Some(self.sent),
            "events were lost: {last}"
        );
        let took = start.elapsed().as_secs_f64();
        println!("storm: over after {took:.2} s, greatest backlog {worst}");
        Ok(())
    }

    fn ask(&mut self, command: &str, field: &str) -> Result<Value> {
        writeln!(self.input, "{command}").context("the agent ended")?;
        self.input.flush().context("the agent ended")?;
        self.answer(field)
    }

    /// The next answer that has this field.
    fn answer(&mut self, field: &str) -> Result<Value> {
        loop {
            match self.answers.recv_timeout(PATIENCE) {
                Ok(answer) if !answer[field].is_null() => return Ok(answer),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("no {field} within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the agent ended: {:?}", self.child.wait()?)
                }
            }
        }
    }
}
