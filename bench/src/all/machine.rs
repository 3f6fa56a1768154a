//! The machine in words.

use std::fs;

use anyhow::{Context as _, Result};

/// Processor, memory, kernel and load, a line of a table each.
pub fn describe(load: &str) -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let memory = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the release")?;
    let kib: f64 = field(&memory, "MemTotal")
        .and_then(|value| value.trim_end_matches(" kB").parse().ok())
        .context("MemTotal")?;
    let flags = field(&cpus, "flags").unwrap_or_default();
    let kind = match flags.split(' ').any(|flag| flag == "hypervisor") {
        true => ", a virtual machine",
        false => "",
    };
    Ok(format!(
        "| processor | {}{kind} |\n| processors | {} |\n| memory | {:.0} GiB |\n\
         | kernel | Linux {} |\n| load averages before | {load} |\n",
        field(&cpus, "model name").unwrap_or("of a kind that the kernel does not name"),
        std::thread::available_parallelism()?,
        kib / f64::from(1 << 20),
        // What follows a dash is whose build it is.
        kernel.split(['-', '+']).next().unwrap_or_default().trim(),
    ))
}

/// The first value of a field in `NAME : VALUE` lines.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let found = fields.find(|(found, _)| found.trim() == name);
    found.map(|(_, value)| value.trim())
}
