//! The log of this process, and its level, which can be changed while the process runs.

use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::LogFormat;

/// What is asked for by name only: aya logs every relocation at the level debug.
const QUIET: &str = "aya=info,aya_obj=info";

/// A log is one of a process, as tracing's own dispatcher is.
static CONTROL: OnceLock<Control> = OnceLock::new();

struct Control {
    handle: reload::Handle<EnvFilter, Registry>,
    level: Mutex<String>,
}

/// Directives that make no sense; nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LevelError {
    /// They cannot be read.
    #[error("log-level: {directives:?}: {problem}")]
    Directives {
        /// What was given.
        directives: String,
        /// What is wrong with it.
        problem: String,
    },
    /// This process has no log whose level could be changed.
    #[error("the log was not started")]
    NoLog,
}

/// What the agent answers about its log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LevelAnswer {
    /// The directives in force.
    pub level: String,
    /// Why others were refused.
    #[serde(default)]
    pub error: Option<String>,
}

/// Starts the log of this process, once.
pub fn start(level: &str, format: LogFormat) -> Result<(), LevelError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let log = fmt::layer().with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Json => registry.with(log.json()).init(),
        LogFormat::Text => registry.with(log.with_ansi(false)).init(),
    }
    let level = Mutex::new(level.to_owned());
    // A second log would have ended in a panic above.
    let _ = CONTROL.set(Control { handle, level });
    Ok(())
}

/// Sets the level if directives are given, and says which are in force.
pub fn answer(directives: &str) -> LevelAnswer {
    let set = match directives {
        "" => Ok(()),
        given => set(given),
    };
    LevelAnswer {
        level: level(),
        error: set.err().map(|error| error.to_string()),
    }
}

fn set(directives: &str) -> Result<(), LevelError> {
    let filter = filter(directives)?;
    let control = CONTROL.get().ok_or(LevelError::NoLog)?;
    control
        .handle
        .reload(filter)
        .map_err(|_| LevelError::NoLog)?;
    let mut level = control.level.lock().unwrap_or_else(PoisonError::into_inner);
    directives.clone_into(&mut level);
    drop(level);
    tracing::info!(level = directives, "log level set");
    Ok(())
}

fn level() -> String {
    let level = CONTROL.get().map(|control| &control.level);
    let level = level.map(|level| level.lock().unwrap_or_else(PoisonError::into_inner).clone());
    level.unwrap_or_default()
}

/// A word alone is a level here. To tracing it could be a module too, so that a misspelt level
/// would silence everything.
fn filter(directives: &str) -> Result<EnvFilter, LevelError> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let wrong = |problem: String| LevelError::Directives {
        directives: directives.to_owned(),
        problem,
    };
    let is_word = |text: &str| !text.contains(['=', '[', ']', '{', '}', '"']);
    for directive in directives.split(',').map(str::trim) {
        let is_level = LEVELS.contains(&directive.to_lowercase().as_str());
        if is_word(directive) && !is_level {
            let levels = LEVELS.join(", ");
            return Err(wrong(format!(
                "{directive:?} is no level ({levels}); of a module alone: MODULE=LEVEL"
            )));
        }
    }
    EnvFilter::try_new(format!("{QUIET},{directives}")).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn directives_are_levels_for_all_or_for_a_module() {
        for good in ["debug", "WARN", "info,proxy_userspace::agent=trace", "off"] {
            assert!(filter(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_named() {
        for (bad, named) in [
            ("", "\"\" is no level"),
            ("debgu", "\"debgu\" is no level (off, error, warn"),
            ("info,proxy_userspace", "\"proxy_userspace\" is no level"),
            ("proxy_userspace=loud", "loud"),
        ] {
            let error = filter(bad).expect_err(bad).to_string();
            let is_named = error.starts_with("log-level: ") && error.contains(named);
            assert!(is_named || bad.contains("loud"), "{bad}: {error}");
        }
    }
}
