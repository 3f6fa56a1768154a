//! What a process and its maps take.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// CPU time of all threads of this process.
pub fn cpu_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("reading the clock")?;
    Ok(time.into())
}

/// A line of `/proc/PID/status`, in MiB.
fn status_mib(pid: u32, name: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib: f64 = line
        .context("no such line")?
        .trim()
        .trim_end_matches(" kB")
        .parse()?;
    Ok(kib / 1024.0)
}

/// Resident memory at this moment, and its peak, in MiB.
pub fn rss_mib(pid: u32) -> Result<[f64; 2]> {
    Ok([status_mib(pid, "VmRSS:")?, status_mib(pid, "VmHWM:")?])
}

/// Kernel memory of pinned maps in MiB: those that hold Services and nodes, and the flow tables.
pub fn maps_mib(bpffs: &Path) -> Result<[f64; 2]> {
    const FLOW_TABLES: [&str; 5] = ["HANDSHAKES", "FLOWS", "AFFINITY", "FRAGMENTS", "SOCKETS"];
    let mut sums = [0.0; 2];
    for entry in std::fs::read_dir(bpffs.join("shunt/maps"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_flows = FLOW_TABLES.iter().any(|table| name.starts_with(table));
        sums[usize::from(is_flows)] += map_mib(&entry.path())?;
    }
    Ok(sums)
}

/// What the kernel charges for a pinned map.
fn map_mib(path: &Path) -> Result<f64> {
    use std::os::fd::AsRawFd as _;
    let map = proxy_userspace::datapath::sys::open_pinned(path)?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes: f64 = line.context("no memlock")?.trim().parse()?;
    Ok(bytes / f64::from(1 << 20))
}

/// How busy the machine is: the load averages as the kernel writes them.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
