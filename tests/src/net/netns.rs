//! One network namespace: running things inside it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::command;

/// Where `ip netns` keeps its names.
pub(super) const NETNS_DIR: &str = "/run/netns";

/// A named network namespace of a [`super::Sandbox`], which removes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Netns {
    name: String,
}

/// Where a process runs: its network namespace, and the cgroup whose socket hooks see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Network namespace.
    pub netns: Netns,
    /// A cgroup v2 folder.
    pub cgroup: PathBuf,
}

impl Netns {
    /// Makes the namespace, with loopback up and duplicate address detection off, so that IPv6
    /// addresses can be used at once.
    pub(super) fn add(name: String) -> Result<Self> {
        command::run(&["ip", "netns", "add", &name])?;
        let netns = Self { name };
        for setting in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{setting}/accept_dad"), "0")?;
            netns.sysctl(&format!("net/ipv6/conf/{setting}/accept_ra"), "0")?;
        }
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file to give to `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Runs `inside` on a thread that is in this namespace; the calling thread stays where it is.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok::<_, nix::Error>(inside())
            });
            match thread.join() {
                Ok(result) => result.with_context(|| format!("entering {}", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a command inside and returns its standard output.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        self.enter(|| command::run(words))?
            .with_context(|| format!("in {}", self.name))
    }

    /// Runs a command inside, with `input` on its standard input.
    pub fn run_with_input(&self, words: &[&str], input: &str) -> Result<String> {
        self.enter(|| command::run_with_input(words, input))?
            .with_context(|| format!("in {}", self.name))
    }

    /// Runs `ip` commands inside, one a line, each without the word `ip`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.run_with_input(&["ip", "-batch", "-"], lines).map(drop)
    }

    /// Loads an nftables script inside.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.run_with_input(&["nft", "-f", "-"], script).map(drop)
    }

    /// Writes a sysctl of this namespace; `key` is its path below `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| std::fs::write(&path, value))?
            .with_context(|| format!("writing {value} to sysctl {key} in {}", self.name))
    }

    /// Reads a sysctl of this namespace.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(key);
        let value = self
            .enter(|| std::fs::read_to_string(&path))?
            .with_context(|| format!("reading sysctl {key} in {}", self.name))?;
        Ok(value.trim().to_owned())
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("opening namespace {}", self.name))
    }
}

impl Place {
    /// Starts `command` in this place.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let netns = self.netns.open()?;
        let processes = self.cgroup.join("cgroup.procs");
        let cgroup = File::options()
            .write(true)
            .open(&processes)
            .with_context(|| format!("opening {}", processes.display()))?;
        let enter = move || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            // SAFETY: the descriptor is open and the buffer has one byte.
            let written = unsafe { libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            if written == 1 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        };
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe { command.pre_exec(enter) };
        let program = command.get_program().to_owned();
        command
            .spawn()
            .with_context(|| format!("starting {} in {}", program.display(), self.netns.name))
    }
}
