//! What goes wrong with an agent while traffic runs through its node: not one connection fails.

mod http;
mod kills;
mod links;
mod others;
mod room;
mod server;
mod upgrade;
mod watch;
mod world;

use std::time::Duration;

/// Far longer than anything here takes, with all processors busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A number that somebody who runs a test by hand may give.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse().ok();
    Some(number.unwrap_or_else(|| panic!("{name} is no number")))
}
