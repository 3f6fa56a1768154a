//! The owner of everything a test makes outside its own process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::netns::{NETNS_DIR, Netns};
use super::{command, eventually};

/// Names of sandboxes are `PREFIX-<pid>-<number>`.
const PREFIX: &str = "shunt";
/// One folder per sandbox, with its bpffs mounts and files.
const RUN_DIR: &str = "/run/shunt-sandboxes";
/// A file that tells the sweep to leave a sandbox of a finished process alone.
const KEEP: &str = "keep";

/// A set of namespaces, cgroups and bpffs mounts with a unique name. Dropping it ends every
/// process in its cgroups and removes them all, unless it was kept.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    cgroup: PathBuf,
    kept: bool,
}

impl Sandbox {
    /// Makes an empty sandbox, after a [`sweep`].
    ///
    /// Fails without root, without cgroup v2, or without the program `ip`.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep()?;
        if !nix::unistd::geteuid().is_root() {
            bail!("network namespaces need root");
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}", std::process::id());
        let cgroup = cgroup_root()?.join(&name);
        let sandbox = Self {
            name,
            cgroup,
            kept: false,
        };
        make_dir(&sandbox.dir())?;
        make_dir(&sandbox.cgroup)?;
        Ok(sandbox)
    }

    /// Its unique name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A folder for files, removed with the sandbox.
    pub fn dir(&self) -> PathBuf {
        Path::new(RUN_DIR).join(&self.name)
    }

    /// Adds a network namespace; its name is the sandbox's with `label` appended.
    pub fn netns(&self, label: &str) -> Result<Netns> {
        Netns::add(format!("{}-{label}", self.name))
    }

    /// Adds a child cgroup.
    pub fn cgroup(&self, label: &str) -> Result<PathBuf> {
        let path = self.cgroup.join(label);
        make_dir(&path)?;
        Ok(path)
    }

    /// Mounts a bpffs of its own, so that unmounting it removes every pin.
    pub fn bpffs(&self, label: &str) -> Result<PathBuf> {
        let path = self.dir().join(format!("bpf-{label}"));
        make_dir(&path)?;
        mount(
            Some("bpf"),
            &path,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .with_context(|| format!("mounting a bpffs on {}", path.display()))?;
        Ok(path)
    }

    /// Leaves everything in place when this value is dropped, and for later sweeps too: [`remove`]
    /// with the sandbox's name ends it.
    pub fn keep(&mut self) -> Result<()> {
        fs::write(self.dir().join(KEEP), "").context("marking the sandbox as kept")?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = remove(&self.name) {
            eprintln!("removing sandbox {}: {error:#}", self.name);
        }
    }
}

/// Removes what sandboxes of processes that are gone left behind, unless they were kept.
pub fn sweep() -> Result<()> {
    for name in names()? {
        let alive = owner(&name).is_none_or(|pid| Path::new("/proc").join(pid).exists());
        let kept = Path::new(RUN_DIR).join(&name).join(KEEP).exists();
        if !alive && !kept {
            // Several processes may sweep at once; who comes second finds parts gone.
            let _ = remove(&name);
        }
    }
    Ok(())
}

/// Ends every process in the cgroups of the sandbox `name` and removes all it consists of.
/// Goes on after a failure and reports the first.
pub fn remove(name: &str) -> Result<()> {
    if owner(name).is_none() {
        bail!("{name} is not the name of a sandbox");
    }
    let results = [
        remove_cgroup(name),
        remove_namespaces(name),
        remove_dir(name),
    ];
    results.into_iter().collect()
}

/// All sandboxes on this machine: a name may be left in any of three places.
fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for dir in [Path::new(RUN_DIR), Path::new(NETNS_DIR), &cgroup_root()?] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let parts: Vec<&str> = file.splitn(4, '-').take(3).collect();
            let name = parts.join("-");
            if owner(&name).is_some() {
                names.push(name);
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The process id in a sandbox's name; `None` when it is no such name.
fn owner(name: &str) -> Option<&str> {
    let (pid, number) = name
        .strip_prefix(PREFIX)?
        .strip_prefix('-')?
        .split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(pid) && digits(number)).then_some(pid)
}

fn remove_cgroup(name: &str) -> Result<()> {
    let path = cgroup_root()?.join(name);
    if !path.exists() {
        return Ok(());
    }
    end_processes(&path)?;
    eventually(Duration::from_secs(5), || remove_tree(&path))
}

/// Ends every process below `cgroup` at once, or one by one where cgroup.kill (5.14) is missing.
fn end_processes(cgroup: &Path) -> Result<()> {
    if fs::write(cgroup.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    for child in folders(cgroup) {
        end_processes(&child)?;
    }
    for pid in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
        let pid = nix::unistd::Pid::from_raw(pid.parse()?);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    Ok(())
}

fn remove_tree(cgroup: &Path) -> Result<()> {
    for child in folders(cgroup) {
        remove_tree(&child)?;
    }
    fs::remove_dir(cgroup).with_context(|| format!("removing {}", cgroup.display()))
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

fn remove_namespaces(name: &str) -> Result<()> {
    let prefix = format!("{name}-");
    let mut result = Ok(());
    for entry in fs::read_dir(NETNS_DIR).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with(&prefix) {
            result = result.and(command::run(&["ip", "netns", "del", &file]).map(drop));
        }
    }
    result
}

fn remove_dir(name: &str) -> Result<()> {
    let dir = Path::new(RUN_DIR).join(name);
    for folder in folders(&dir) {
        // Fails on a folder that is no mount point.
        let _ = umount2(&folder, MntFlags::MNT_DETACH);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

/// The mount point of cgroup v2, which hybrid systems have beside version 1.
fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let mut fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.find(|fields| fields.get(2) == Some(&"cgroup2"));
    match found {
        Some(fields) => Ok(PathBuf::from(fields[1])),
        None => bail!("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))
}
