//! The agent's process beside the API server.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::net::Place;

use super::PATIENCE;
use super::server::Server;

/// What the agent tells of its start and of its writes.
const LOG_LEVEL: &str = "info,proxy_userspace::agent=debug,proxy_userspace::datapath::load=debug,\
                         proxy_userspace::pipeline::watch=debug";
/// Its messages that say how far the start has come.
const MILESTONES: [&str; 4] = ["listed", "datapath loaded", "tc_ingress", "ready"];

/// The agent's process.
pub struct Process {
    pub child: Child,
    pub bpffs: PathBuf,
    log: PathBuf,
    ready: PathBuf,
    started: Instant,
}

impl Process {
    pub fn start(server: &Server) -> Result<Self> {
        let binary = std::env::var_os("SHUNT_BIN").context("SHUNT_BIN is not set")?;
        let cgroup = server.sandbox.cgroup("agent")?;
        let bpffs = server.sandbox.bpffs("agent")?;
        let log = server.sandbox.dir().join("agent.log");
        let ready = server.sandbox.dir().join("agent.ready");
        let output = std::fs::File::create(&log)?;
        let mut command = Command::new(binary);
        command.args(["agent", "--node-name", "node-1", "--kubeconfig"]);
        command.arg(server.lab.kubeconfig());
        command.arg("--bpffs").arg(&bpffs);
        command
            .arg("--cgroup")
            .arg(server.sandbox.cgroup("sockets")?);
        command.args(["--cluster-cidr", "10.64.0.0/16", "--interfaces", "pod0"]);
        command.arg("--ready-file").arg(&ready);
        command.args(["--log-level", LOG_LEVEL]);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let place = Place {
            netns: server.netns.clone(),
            cgroup,
        };
        let started = Instant::now();
        let child = place.spawn(&mut command)?;
        Ok(Self {
            child,
            bpffs,
            log,
            ready,
            started,
        })
    }

    /// Seconds from the start until everything is programmed.
    pub fn wait_until_ready(&mut self) -> Result<f64> {
        while !self.ready.exists() {
            ensure!(
                self.child.try_wait()?.is_none(),
                "the agent ended:\n{}",
                self.log()?
            );
            ensure!(
                self.started.elapsed() < PATIENCE,
                "not ready:\n{}",
                self.log()?
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(self.started.elapsed().as_secs_f64())
    }

    /// What the log says of the start, with the agent's own times.
    pub fn milestones(&self) -> Result<Vec<String>> {
        let log = self.log()?;
        let is_one = |line: &&str| MILESTONES.iter().any(|word| line.contains(word));
        Ok(log.lines().filter(is_one).map(str::to_owned).collect())
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// All values of a field in the log.
    pub fn logged(&self, field: &str) -> Result<Vec<f64>> {
        let log = self.log()?;
        let before = format!("{field}=");
        let values = log.split(&before).skip(1).filter_map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            rest[..end.unwrap_or(rest.len())].parse().ok()
        });
        Ok(values.collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
