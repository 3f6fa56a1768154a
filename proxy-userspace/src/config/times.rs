//! How long things may take: texts with units, checked.

use std::time::Duration;

use proxy_common::config::Timeouts;

use super::{ConfigError, Given, named, text, wrong};

/// Idle lifetimes of flows (S-122).
pub fn timeouts(given: &Given) -> Result<Timeouts, ConfigError> {
    let secs = |text: &Option<String>, option, default| match text {
        None => Ok(default),
        Some(text) => {
            let time = text::duration(text).map_err(named(option))?;
            match u32::try_from(time.as_secs()) {
                Ok(secs) if secs > 0 => Ok(secs),
                Ok(_) | Err(_) => Err(wrong(option, "must be at least a second")),
            }
        }
    };
    let default = Timeouts::default();
    Ok(Timeouts {
        tcp_established_secs: secs(
            &given.tcp_established_timeout,
            "tcp-established-timeout",
            default.tcp_established_secs,
        )?,
        udp_unreplied_secs: secs(
            &given.udp_timeout,
            "udp-timeout",
            default.udp_unreplied_secs,
        )?,
        udp_stream_secs: secs(
            &given.udp_stream_timeout,
            "udp-stream-timeout",
            default.udp_stream_secs,
        )?,
        ..default
    })
}

/// The time until a failed update is tried again, and the least time between updates.
pub fn sync_periods(given: &Given) -> Result<(Duration, Duration), ConfigError> {
    let period = given.sync_period.as_deref().unwrap_or("30s");
    let period = text::duration(period).map_err(named("sync-period"))?;
    let least = given.min_sync_period.as_deref().unwrap_or("0s");
    let least = text::duration(least).map_err(named("min-sync-period"))?;
    if period.is_zero() {
        return Err(wrong("sync-period", "must be longer than 0"));
    }
    if least > period {
        return Err(wrong(
            "min-sync-period",
            "must not be longer than sync-period",
        ));
    }
    Ok((period, least))
}

/// The time between two audits of what is in the kernel.
pub fn audit_period(given: &Given) -> Result<Duration, ConfigError> {
    let period = given.audit_period.as_deref().unwrap_or("5m");
    let period = text::duration(period).map_err(named("audit-period"))?;
    if period.is_zero() {
        return Err(wrong("audit-period", "must be longer than 0"));
    }
    Ok(period)
}
