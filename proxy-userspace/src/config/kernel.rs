//! Options about the kernel's own connection tracking, and about the sizes of our maps.

use super::{ConfigError, Given, named, text, wrong};
use crate::datapath::catalog::MapSizes;
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

/// Flows below which connections would be lost in normal use.
const FLOWS_MIN: u32 = 1024;
/// Frontends and backends below which no cluster can be served.
const SERVICES_MIN: u32 = 16;
/// Elements of SLOTS for each frontend: the head of its region, twice while it is replaced.
const SLOTS_PER_FRONTEND: u32 = 8;
/// Elements of SLOTS for each backend: half of one in a region, twice while it is replaced, and
/// that for two frontends.
const SLOTS_PER_BACKEND: u32 = 2;
/// The kernel's own limit is 4 GiB; nobody needs as much.
const SIZE_MAX: u32 = 1 << 24;

/// The sizes of maps.
pub fn sizes(given: &Given, cpus: u32) -> Result<MapSizes, ConfigError> {
    let checked = |option, count: u32, least: u32| match count {
        count if count < least => Err(wrong(option, &format!("at least {least} are needed"))),
        count if count > SIZE_MAX => {
            Err(wrong(option, &format!("at most {SIZE_MAX} are possible")))
        }
        count => Ok(count),
    };
    let default = MapSizes::default();
    let services = given.max_services.unwrap_or(default.frontends);
    let endpoints = given.max_endpoints.unwrap_or(default.backends);
    let frontends = checked("max-services", services, SERVICES_MIN)?;
    let backends = checked("max-endpoints", endpoints, SERVICES_MIN)?;
    Ok(MapSizes {
        frontends,
        backends,
        slots: frontends * SLOTS_PER_FRONTEND + backends * SLOTS_PER_BACKEND,
        flows: checked("max-flows", max_flows(given, cpus), FLOWS_MIN)?,
        cluster_ips: frontends * 2,
        source_ranges: frontends,
        ..default
    })
}

/// The size of the kernel's table is a wish for ours too.
fn max_flows(given: &Given, cpus: u32) -> u32 {
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
