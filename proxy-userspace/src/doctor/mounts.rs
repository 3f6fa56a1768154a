//! The file systems that are needed: a bpffs for the pins, cgroup v2 for the socket programs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Finding, Node, Severity};
use crate::datapath::cgroup::Cgroup;
use crate::datapath::pin::is_bpffs;

/// The kernel's id of the root cgroup.
const ROOT_ID: u64 = 1;
/// Where cgroup v2 is mounted: by itself, or beside v1.
const USUAL: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

pub(super) fn check(node: &Node) -> Vec<Finding> {
    vec![bpffs(&node.bpffs), cgroup(node)]
}

fn bpffs(path: &Path) -> Finding {
    const CHECK: &str = "bpffs";
    // The agent makes the folder.
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let place = path.display().to_string();
    match is_bpffs(existing) {
        true => Finding::ok(CHECK, place, "a bpffs is mounted"),
        false => Finding::new(
            Severity::Problem,
            CHECK,
            &place,
            "no bpffs: nothing can be pinned, and the agent does not start",
        )
        .remedy(format!(
            "mount -t bpf bpf {place}, or name another folder by --bpffs"
        )),
    }
}

/// The one that the socket programs are attached to, else the one that they would be.
fn cgroup(node: &Node) -> Finding {
    const CHECK: &str = "cgroup";
    let ids = node.running.iter().filter_map(|program| program.cgroup_id);
    let used = ids.into_iter().find(|id| *id != 0);
    if let Some(id) = used {
        let path = USUAL.iter().find_map(|root| find(Path::new(root), id));
        let place = path.map_or_else(|| format!("cgroup {id}"), |path| path.display().to_string());
        return match id {
            ROOT_ID => Finding::ok(
                CHECK,
                place,
                "the root: the sockets of all processes are served",
            ),
            _ => Finding::new(
                Severity::Note,
                CHECK,
                place,
                "not the root: sockets of processes outside of it go by the packet path",
            ),
        };
    }
    if let Some(status) = node.status()
        && !status.socket_lb
    {
        let text = "the socket programs are off (--socket-lb off): all goes by the packet path";
        return Finding::new(Severity::Note, CHECK, "socket programs", text);
    }
    let place = node.cgroup.display().to_string();
    match Cgroup::open(&node.cgroup) {
        Ok(_) => Finding::ok(
            CHECK,
            place,
            "cgroup v2 is mounted; no socket program is there",
        ),
        Err(error) => Finding::new(Severity::Problem, CHECK, place, error.to_string())
            .remedy("mount -t cgroup2 cgroup2 DIR, and name it by --cgroup DIR"),
    }
}

/// The folder of a cgroup, whose id is the number of its inode.
fn find(root: &Path, id: u64) -> Option<PathBuf> {
    if fs::metadata(root).ok()?.ino() == id && Cgroup::open(root).is_ok() {
        return Some(root.to_owned());
    }
    let entries = fs::read_dir(root).ok()?.flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .into_iter()
        .find_map(|entry| find(&entry.path(), id))
}
