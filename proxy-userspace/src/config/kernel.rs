//! Options about the kernel's own connection tracking, which also size ours.

use super::{ConfigError, Given, named, text};
use crate::datapath::conntrack_sysctls::{ConntrackWishes, Wish};

/// S-184.
pub fn conntrack(given: &Given) -> Result<ConntrackWishes, ConfigError> {
    let default = ConntrackWishes::default();
    let secs = |text: &Option<String>, option, default: Wish| match text {
        Some(text) => text::duration(text)
            .map(|time| Wish::new(Some(time.as_secs()), default.value))
            .map_err(named(option)),
        None => Ok(default),
    };
    let count = |given: Option<u32>, default: Wish| Wish::new(given.map(u64::from), default.value);
    Ok(ConntrackWishes {
        max_per_core: count(given.conntrack_max_per_core, default.max_per_core),
        min: count(given.conntrack_min, default.min),
        tcp_established: secs(
            &given.tcp_established_timeout,
            "tcp-established-timeout",
            default.tcp_established,
        )?,
        tcp_close_wait: secs(
            &given.tcp_close_wait_timeout,
            "tcp-close-wait-timeout",
            default.tcp_close_wait,
        )?,
        tcp_be_liberal: Wish::new(given.conntrack_tcp_be_liberal.map(u64::from), 0),
        udp: secs(&given.udp_timeout, "udp-timeout", default.udp)?,
        udp_stream: secs(
            &given.udp_stream_timeout,
            "udp-stream-timeout",
            default.udp_stream,
        )?,
    })
}

/// The size of the kernel's table is a wish for ours too.
pub fn max_flows(given: &Given, cpus: u32) -> u32 {
    let scaled = given
        .conntrack_max_per_core
        .unwrap_or(0)
        .saturating_mul(cpus);
    let wished = scaled.max(given.conntrack_min.unwrap_or(0));
    match (given.max_flows, wished) {
        (Some(count), _) => count,
        (None, 0) => proxy_common::FLOWS_DEFAULT,
        (None, wished) => wished,
    }
}
