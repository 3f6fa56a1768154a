//! The real binary on a node of a cluster.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_userspace::datapath::maps::KernelMaps;
use proxy_userspace::datapath::pin::Pins;
use serde_json::Value;

use crate::manifests::Manifests;
use crate::net::{Place, eventually};
use crate::topology::addresses::{PODS4, PODS6};
use crate::topology::{Cluster, Node, Seen};

/// How long an agent may take to be ready, with both cores busy.
const READY: Duration = Duration::from_secs(300);
/// How much of the log is shown after a failure.
const LOG_LINES: usize = 60;

/// What became of an agent that was started.
enum State {
    Synced,
    Ended(ExitStatus),
}

/// An agent. Dropping it ends the process; what it pinned goes with the cluster, whose sandbox
/// owns the bpffs. After a panic its log is printed.
#[derive(Debug)]
pub struct Agent {
    child: Option<Child>,
    node: Node,
    log: PathBuf,
    /// Made by the agent when everything is programmed.
    ready: PathBuf,
    arguments: Vec<String>,
    pod: Option<Pod>,
    build: Build,
}

/// Which binary an agent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Build {
    /// This build.
    Own,
    /// That of another version of the map ABI, which has other programs too.
    OtherAbi,
}

/// What an agent finds that runs in a pod.
#[derive(Clone, Debug)]
struct Pod {
    credentials: PathBuf,
    server: (String, String),
}

/// Where pods find the credentials of their service account.
const CREDENTIALS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

impl Agent {
    /// Starts an agent on `node` and waits until it serves what `manifests` say. `arguments` are
    /// added to those that every agent here needs.
    pub fn start(
        cluster: &Cluster,
        node: &Node,
        manifests: &Manifests,
        arguments: &[&str],
    ) -> Result<Self> {
        let source = ("--manifests", manifests.dir());
        Self::start_with(cluster, node, source, arguments)
    }

    /// As [`Self::start`], with the objects of the API server that `kubeconfig` names.
    pub fn watching(
        cluster: &Cluster,
        node: &Node,
        kubeconfig: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        Self::start_with(cluster, node, ("--kubeconfig", kubeconfig), arguments)
    }

    fn start_with(
        cluster: &Cluster,
        node: &Node,
        source: (&'static str, &Path),
        arguments: &[&str],
    ) -> Result<Self> {
        let mut agent = Self::with_source(cluster, node, source, arguments);
        agent.run()?;
        Ok(agent)
    }

    /// An agent that does not run yet, with the objects of the API server that `kubeconfig` names.
    pub fn to_watch(cluster: &Cluster, node: &Node, kubeconfig: &Path, arguments: &[&str]) -> Self {
        Self::with_source(cluster, node, ("--kubeconfig", kubeconfig), arguments)
    }

    fn with_source(
        cluster: &Cluster,
        node: &Node,
        source: (&'static str, &Path),
        arguments: &[&str],
    ) -> Self {
        let common = [
            ("--node-name", node.name.clone()),
            (source.0, source.1.display().to_string()),
            ("--bpffs", node.bpffs.display().to_string()),
            ("--cgroup", node.cgroup.display().to_string()),
            ("--cluster-cidr", format!("{PODS4},{PODS6}")),
        ];
        let common = common
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
        let own = arguments.iter().map(|&argument| argument.to_owned());
        let file = |kind| {
            cluster
                .sandbox()
                .dir()
                .join(format!("{}.{kind}", node.name))
        };
        Self {
            child: None,
            node: node.clone(),
            log: file("log"),
            ready: file("ready"),
            arguments: common.chain(own).collect(),
            pod: None,
            build: Build::Own,
        }
    }

    /// From the next start on another binary runs.
    pub fn set_build(&mut self, build: Build) {
        self.build = build;
    }

    /// From the next start on the agent finds its API server as a pod does: by the mounted
    /// `credentials` and by KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.
    pub fn set_pod(&mut self, credentials: PathBuf, host: &str, port: u16) {
        if let Some(at) = self.arguments.iter().position(|it| it == "--kubeconfig") {
            self.arguments.drain(at..at + 2);
        }
        let server = (host.to_owned(), port.to_string());
        self.pod = Some(Pod {
            credentials,
            server,
        });
    }

    /// Starts the agent again, after [`Self::stop`] or [`Self::kill`], and waits for it.
    pub fn run(&mut self) -> Result<()> {
        self.run_with(&[])
    }

    /// As [`Self::run`], this once with further arguments.
    pub fn run_with(&mut self, more: &[&str]) -> Result<()> {
        self.begin(more)?;
        self.await_ready()
    }

    /// Starts the agent again, and does not wait for it.
    pub fn begin(&mut self, more: &[&str]) -> Result<()> {
        self.kill()?;
        if self.ready.exists() {
            fs::remove_file(&self.ready)?;
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let mut command = match &self.pod {
            None => Command::new(self.build.binary()?),
            Some(pod) => pod.command(&self.build.binary()?),
        };
        command.arg("agent").args(&self.arguments).args(more);
        command.arg("--ready-file").arg(&self.ready);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(self.place().spawn(&mut command)?);
        Ok(())
    }

    /// Waits until everything is programmed.
    pub fn await_ready(&mut self) -> Result<()> {
        let ready = eventually(READY, || self.ready());
        ready
            .and_then(|state| match state {
                State::Synced => Ok(()),
                State::Ended(status) => bail!("it ended ({status})"),
            })
            .with_context(|| format!("agent of {}:\n{}", self.node.name, self.log_tail()))
    }

    /// Waits until everything is programmed, or the agent has been killed: true if it lives.
    pub fn await_ready_or_end(&mut self) -> Result<bool> {
        let State::Ended(status) =
            eventually(READY, || self.ready()).with_context(|| self.log_tail())?
        else {
            return Ok(true);
        };
        self.child = None;
        let is_killed = status.signal() == Some(Signal::SIGKILL as i32);
        ensure!(is_killed, "it ended ({status}):\n{}", self.log_tail());
        Ok(false)
    }

    /// Asks the agent to end, and waits for it. Maps and programs stay.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.end(Signal::SIGTERM)?;
        ensure!(status.success(), "{status} after SIGTERM");
        Ok(())
    }

    /// Ends the agent without asking.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Gives one of its flags another value, from the next start on.
    pub fn set(&mut self, flag: &str, value: &str) -> Result<()> {
        let at = self.arguments.iter().position(|it| it == flag);
        let at = at.with_context(|| format!("{flag} is not given"))?;
        value.clone_into(&mut self.arguments[at + 1]);
        Ok(())
    }

    /// What another agent with the same arguments says, which ends by itself with an error.
    pub fn refusal(&self) -> Result<String> {
        let words: Vec<&str> = ["agent"]
            .into_iter()
            .chain(self.arguments.iter().map(String::as_str))
            .collect();
        match self.shunt(&words) {
            Ok(output) => bail!("it ended well: {output}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// Waits until the agent ends by itself, and says how.
    pub fn await_end(&mut self) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("it was not started")?;
        let ended = eventually(READY, || child.try_wait()?.context("the agent still runs"));
        let status = ended.with_context(|| self.log_tail())?;
        self.child = None;
        Ok(status)
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The release that it found: major and minor number.
    pub fn kernel(&self) -> Result<(u32, u32)> {
        let status = self.status()?;
        let release = status["features"]["kernel"].as_str().context("a release")?;
        let mut numbers = release.split(['.', '-']).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
            _ => bail!("release {release}"),
        }
    }

    /// What `shunt status` says, be it healthy or not.
    pub fn status(&self) -> Result<Value> {
        let bpffs = self.bpffs();
        let words = ["status", "-o", "json", "--bpffs", &bpffs];
        let (_, output) = self.shunt_answer(&words)?;
        serde_json::from_str(&output).with_context(|| format!("reading {output}"))
    }

    /// Runs `shunt cleanup` on the node.
    pub fn cleanup(&self) -> Result<()> {
        self.shunt(&["cleanup", "--bpffs", &self.bpffs()]).map(drop)
    }

    /// The maps that it pinned, as they are.
    pub fn maps(&self) -> Result<KernelMaps> {
        Ok(KernelMaps::open(&Pins::at(&self.node.bpffs))?)
    }

    /// The folder that its agent was told to pin below.
    pub fn bpffs(&self) -> String {
        self.node.bpffs.display().to_string()
    }

    /// Lets the agent go on when this value, and the whole parent, is gone.
    pub fn detach(mut self) {
        self.child = None;
    }

    /// Runs `shunt` on the node and returns its standard output.
    pub fn shunt(&self, arguments: &[&str]) -> Result<String> {
        let binary = self.build.binary()?.display().to_string();
        let words: Vec<&str> = [binary.as_str()]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        self.node.netns.run(&words)
    }

    /// As [`Self::shunt`], for a command whose code is an answer.
    pub fn shunt_answer(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let mut command = Command::new(self.build.binary()?);
        command.args(arguments);
        let output = self.node.netns.enter(|| command.output())??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = output.status.code().context("it was killed")?;
        ensure!(
            !text.is_empty(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok((code, text))
    }

    /// Its log, of all its lives.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn place(&self) -> Place {
        self.node.place(Seen::BySocketHooks)
    }

    /// Fails while there is something to wait for.
    fn ready(&mut self) -> Result<State> {
        let child = self.child.as_mut().context("it was not started")?;
        if let Some(status) = child.try_wait()? {
            return Ok(State::Ended(status));
        }
        ensure!(self.ready.exists(), "it is not synced");
        Ok(State::Synced)
    }

    /// Success where none runs.
    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let Some(mut child) = self.child.take() else {
            return Ok(ExitStatus::default());
        };
        kill(Pid::from_raw(child.id().try_into()?), signal)?;
        Ok(child.wait()?)
    }
}

impl Pod {
    /// Runs `binary` with a mount namespace of its own, as the same process.
    fn command(&self, binary: &Path) -> Command {
        let script = format!(
            "mkdir -p /var/run/secrets && mount -t tmpfs secrets /var/run/secrets && \
             mkdir -p {CREDENTIALS} && cp \"$0\"/* {CREDENTIALS}/ && exec \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        command.arg(&self.credentials).arg(binary);
        command.env("KUBERNETES_SERVICE_HOST", &self.server.0);
        command.env("KUBERNETES_SERVICE_PORT", &self.server.1);
        command
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent of {}\n{}", self.node.name, self.log_tail());
        }
        // Fails only when it has ended already.
        let _ = self.kill();
    }
}

/// The binary of this build.
pub fn binary() -> Result<PathBuf> {
    Build::Own.binary()
}

impl Build {
    /// The file that a variable names, or what xtask leaves.
    fn binary(self) -> Result<PathBuf> {
        let (variable, file, verb) = match self {
            Self::Own => ("SHUNT_BIN", "release/shunt", "build"),
            Self::OtherAbi => ("SHUNT_OTHER_BIN", "other-abi/shunt", "build-other-abi"),
        };
        if let Some(path) = std::env::var_os(variable) {
            return Ok(path.into());
        }
        let built = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target")
            .join(file);
        built
            .canonicalize()
            .with_context(|| format!("no target/{file}: run cargo xtask {verb}"))
    }
}
