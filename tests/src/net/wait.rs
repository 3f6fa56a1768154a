//! Waiting for a condition instead of for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Calls `condition` until it returns `Ok`, at most for `limit`; then fails with its last error.
pub fn eventually<T>(limit: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                bail!("not within {limit:?}: {error:#}");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
