//! A place of its own for one kernel test: network and mount namespace of the thread, a bpffs, a
//! child cgroup. All of it goes with the thread and the guard, also when the test fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Cites the rules that a test is about: read by `cargo xtask rules`.
pub const fn rules(_rules: &[&str]) {}

/// The guard.
pub struct Place {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
}

impl Place {
    /// Moves this thread into namespaces of its own.
    pub fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("run as root");
        let all_private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, all_private, None::<&str>).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kind = Some("bpf");
        mount(kind, folder.path(), kind, MsFlags::empty(), None::<&str>).unwrap();
        let name = folder
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let cgroup = cgroup2_mount().join(format!("shunt-test{name}"));
        fs::create_dir(&cgroup).unwrap();
        Self { folder, cgroup }
    }

    /// The bpffs.
    pub fn bpffs(&self) -> &Path {
        self.folder.path()
    }

    /// The child cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = umount2(self.folder.path(), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    PathBuf::from(line.expect("cgroup2 is mounted").split(' ').nth(1).unwrap())
}

/// Runs a command in the namespaces of this thread and returns what it prints.
pub fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
