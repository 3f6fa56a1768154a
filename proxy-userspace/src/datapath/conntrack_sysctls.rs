//! The kernel's own connection tracking, where it is loaded (S-184): other programs of the node
//! and packets that no Service is asked for go through it, and upstream's tests read it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// More than this is not asked for by a count per CPU.
const SCALED_MAX: u64 = 1 << 20;
/// Entries per bucket of the hash table.
const ENTRIES_PER_BUCKET: u64 = 4;

/// A value, and whether the operator asked for it: only then is a failure fatal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The value; 0 leaves the kernel's.
    pub value: u64,
    /// Given on the command line or in the file.
    pub is_explicit: bool,
}

impl Wish {
    /// What was given, or `default`.
    pub fn new(given: Option<u64>, default: u64) -> Self {
        Self {
            value: given.unwrap_or(default),
            is_explicit: given.is_some_and(|value| value != 0),
        }
    }
}

/// What kernel connection tracking should be like; times in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConntrackWishes {
    /// Entries per CPU; 0 leaves the size alone.
    pub max_per_core: Wish,
    /// Entries at least.
    pub min: Wish,
    /// Established TCP.
    pub tcp_established: Wish,
    /// TCP whose one side has closed.
    pub tcp_close_wait: Wish,
    /// 1: segments outside of the window are let through.
    pub tcp_be_liberal: Wish,
    /// UDP without a reply.
    pub udp: Wish,
    /// UDP with replies.
    pub udp_stream: Wish,
}

impl Default for ConntrackWishes {
    fn default() -> Self {
        Self {
            max_per_core: Wish::new(None, 32_768),
            min: Wish::new(None, 131_072),
            tcp_established: Wish::new(None, 86_400),
            tcp_close_wait: Wish::new(None, 3_600),
            tcp_be_liberal: Wish::new(None, 0),
            udp: Wish::new(None, 0),
            udp_stream: Wish::new(None, 0),
        }
    }
}

/// A value that was asked for explicitly cannot be set.
#[derive(Debug, thiserror::Error)]
#[error("setting {path} to {value}")]
pub struct SysctlError {
    /// The file.
    pub path: PathBuf,
    /// What it should hold.
    pub value: u64,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Where the kernel's settings lie; tests have their own.
#[derive(Clone, Copy, Debug)]
pub struct Roots<'a> {
    /// `/proc/sys/net/netfilter`.
    pub netfilter: &'a Path,
    /// `/sys/module/nf_conntrack/parameters`.
    pub module: &'a Path,
}

impl Default for Roots<'_> {
    fn default() -> Self {
        Self {
            netfilter: Path::new("/proc/sys/net/netfilter"),
            module: Path::new("/sys/module/nf_conntrack/parameters"),
        }
    }
}

/// Sets what is wished for. Without connection tracking there is nothing to set.
pub fn apply(wishes: &ConntrackWishes, cpus: u32, roots: Roots<'_>) -> Result<(), SysctlError> {
    let max_path = roots.netfilter.join("nf_conntrack_max");
    let Some(max) = read(&max_path) else {
        return Ok(());
    };
    let wanted = wanted_max(wishes, cpus);
    // S-184: only ever raised.
    if wanted > max {
        let is_explicit = wishes.max_per_core.is_explicit || wishes.min.is_explicit;
        let is_set = write(&max_path, wanted, is_explicit)?;
        let buckets = wanted / ENTRIES_PER_BUCKET;
        let path = roots.module.join("hashsize");
        if is_set && read(&path).is_some_and(|now| now < buckets) {
            write(&path, buckets, false)?;
        }
    }
    let values = [
        (
            "nf_conntrack_tcp_timeout_established",
            wishes.tcp_established,
        ),
        ("nf_conntrack_tcp_timeout_close_wait", wishes.tcp_close_wait),
        ("nf_conntrack_tcp_be_liberal", wishes.tcp_be_liberal),
        ("nf_conntrack_udp_timeout", wishes.udp),
        ("nf_conntrack_udp_timeout_stream", wishes.udp_stream),
    ];
    for (name, wish) in values {
        let path = roots.netfilter.join(name);
        if wish.value != 0 && read(&path) != Some(wish.value) {
            write(&path, wish.value, wish.is_explicit)?;
        }
    }
    Ok(())
}

/// Entries that the table should hold at least; 0: whatever it holds.
fn wanted_max(wishes: &ConntrackWishes, cpus: u32) -> u64 {
    if wishes.max_per_core.value == 0 {
        return 0;
    }
    let scaled = wishes.max_per_core.value.saturating_mul(cpus.into());
    match scaled > SCALED_MAX {
        true => SCALED_MAX,
        false => scaled.max(wishes.min.value),
    }
}

fn read(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// True if the value is set.
fn write(path: &Path, value: u64, is_explicit: bool) -> Result<bool, SysctlError> {
    match fs::write(path, value.to_string()) {
        Ok(()) => {
            tracing::info!(path = %path.display(), value, "kernel connection tracking");
            Ok(true)
        }
        Err(source) if is_explicit => Err(SysctlError {
            path: path.to_owned(),
            value,
            source,
        }),
        Err(error) => {
            tracing::warn!(path = %path.display(), value, %error, "not set");
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::rules;

    use std::collections::BTreeMap;

    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn with(files: &[(&str, u64)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, value) in files {
                fs::write(dir.path().join(name), format!("{value}\n")).unwrap();
            }
            Self(dir)
        }

        fn apply(&self, wishes: &ConntrackWishes, cpus: u32) -> Result<(), SysctlError> {
            let (netfilter, module) = (self.0.path(), self.0.path());
            apply(wishes, cpus, Roots { netfilter, module })
        }

        fn values(&self) -> BTreeMap<String, u64> {
            let entries = fs::read_dir(self.0.path()).unwrap().map(Result::unwrap);
            entries
                .map(|entry| {
                    let name = entry.file_name().into_string().unwrap();
                    (name, read(&entry.path()).unwrap())
                })
                .collect()
        }
    }

    const KERNEL: [(&str, u64); 7] = [
        ("hashsize", 65_536),
        ("nf_conntrack_max", 131_072),
        ("nf_conntrack_tcp_be_liberal", 0),
        ("nf_conntrack_tcp_timeout_close_wait", 60),
        ("nf_conntrack_tcp_timeout_established", 432_000),
        ("nf_conntrack_udp_timeout", 30),
        ("nf_conntrack_udp_timeout_stream", 120),
    ];

    #[test]
    fn defaults_raise_the_size_and_set_the_tcp_timeouts() {
        rules(&["S-184", "S-122"]);
        let machine = Machine::with(&KERNEL);
        machine.apply(&ConntrackWishes::default(), 8).unwrap();
        let values = machine.values();
        assert_eq!(values["nf_conntrack_max"], 262_144);
        assert_eq!(values["hashsize"], 65_536);
        assert_eq!(values["nf_conntrack_tcp_timeout_established"], 86_400);
        assert_eq!(values["nf_conntrack_tcp_timeout_close_wait"], 3_600);
        assert_eq!(values["nf_conntrack_udp_timeout"], 30);
        machine.apply(&ConntrackWishes::default(), 16).unwrap();
        assert_eq!(machine.values()["hashsize"], 131_072);
        // Fewer CPUs later: the size is never lowered.
        machine.apply(&ConntrackWishes::default(), 2).unwrap();
        assert_eq!(machine.values()["nf_conntrack_max"], 524_288);
    }

    #[test]
    fn sizes_are_bounded_from_both_sides() {
        rules(&["S-184"]);
        let wanted = |per_core, cpus| {
            let wishes = ConntrackWishes {
                max_per_core: Wish::new(Some(per_core), 0),
                ..ConntrackWishes::default()
            };
            wanted_max(&wishes, cpus)
        };
        assert_eq!(wanted(32_768, 1), 131_072);
        assert_eq!(wanted(32_768, 8), 262_144);
        assert_eq!(wanted(32_768, 128), 1_048_576);
        assert_eq!(wanted(0, 128), 0);
    }

    #[test]
    fn only_what_was_asked_for_is_fatal() {
        rules(&["S-184"]);
        // Without connection tracking nothing is made.
        let machine = Machine::with(&[]);
        machine.apply(&ConntrackWishes::default(), 8).unwrap();
        assert!(machine.values().is_empty());

        let machine = Machine::with(&[("nf_conntrack_max", 1 << 30)]);
        // A folder in the way: the file cannot be written.
        let path = "nf_conntrack_tcp_timeout_close_wait";
        fs::create_dir(machine.0.path().join(path)).unwrap();
        machine.apply(&ConntrackWishes::default(), 8).unwrap();
        let explicit = ConntrackWishes {
            tcp_close_wait: Wish::new(Some(60), 3_600),
            ..ConntrackWishes::default()
        };
        let error = machine.apply(&explicit, 8).unwrap_err();
        assert!(error.path.ends_with(path));
        let off = ConntrackWishes {
            tcp_close_wait: Wish::new(Some(0), 3_600),
            ..ConntrackWishes::default()
        };
        machine.apply(&off, 8).unwrap();
    }
}
