//! What `--profiling` adds to the status server (S-148): a profile of the agent's CPU time in
//! pprof's format, and the verbosity of its log.

use std::time::Duration;

use hyper::{Method, StatusCode};
use pprof::protos::Message as _;

use super::http::{Answer, Asked};
use crate::config;
use crate::logging;

/// Samples a second: no divisor of what happens once in some milliseconds.
const FREQUENCY: i32 = 99;
/// Seconds of a profile, as Go's net/http/pprof has them.
const SECONDS_DEFAULT: u64 = 30;
/// Longer ones are refused.
const SECONDS_MAX: u64 = 600;

/// Where a profile is taken.
pub const PROFILE: &str = "/debug/pprof/profile";
/// Where the verbosity is set.
pub const VERBOSITY: &str = "/debug/flags/v";

/// Answers what is below `/debug/`, or does not know it.
pub async fn answer(asked: &Asked) -> Option<Answer> {
    match asked.path.as_str() {
        PROFILE => Some(profile(&asked.query).await),
        VERBOSITY => Some(verbosity(asked)),
        _ => None,
    }
}

/// Samples every thread of the agent for `?seconds=N`.
async fn profile(query: &str) -> Answer {
    let secs = match seconds(query) {
        Ok(secs) => secs,
        Err(problem) => return Answer::plain(StatusCode::BAD_REQUEST, problem),
    };
    match sample(Duration::from_secs(secs)).await {
        Ok(body) => Answer {
            content_type: "application/octet-stream",
            body: body.into(),
            ..Answer::text("")
        },
        // Another one is being taken.
        Err(error) => Answer::plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

async fn sample(time: Duration) -> Result<Vec<u8>, pprof::Error> {
    // Their stacks cannot be walked from within a signal.
    let blocked = ["libc", "libgcc", "pthread", "vdso"];
    let guard = pprof::ProfilerGuardBuilder::default()
        .frequency(FREQUENCY)
        .blocklist(&blocked)
        .build()?;
    tokio::time::sleep(time).await;
    Ok(guard.report().build()?.pprof()?.encode_to_vec())
}

fn seconds(query: &str) -> Result<u64, String> {
    let given = query.split('&').find_map(|it| it.strip_prefix("seconds="));
    let Some(given) = given else {
        return Ok(SECONDS_DEFAULT);
    };
    match given.parse() {
        Ok(secs @ 1..=SECONDS_MAX) => Ok(secs),
        Ok(_) | Err(_) => Err(format!("seconds: {given:?} is not 1 to {SECONDS_MAX}\n")),
    }
}

/// Sets the level of the log as `-v` does, until the agent ends, or shows it.
fn verbosity(asked: &Asked) -> Answer {
    let level = match (&asked.method, asked.body.trim()) {
        (&Method::PUT, text) => match text.parse() {
            Ok(verbosity) => config::level_of(verbosity),
            Err(_) => {
                let problem = format!("{text:?} is no verbosity (0 to 255)\n");
                return Answer::plain(StatusCode::BAD_REQUEST, problem);
            }
        },
        _ => "",
    };
    let answer = logging::answer(level);
    match answer.error {
        None => Answer::text(format!("log level: {}\n", answer.level)),
        Some(error) => Answer::plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn a_profile_takes_as_long_as_is_asked_for() {
        assert_eq!(seconds(""), Ok(30));
        assert_eq!(seconds("a=b&seconds=5"), Ok(5));
        for bad in ["seconds=", "seconds=0", "seconds=601", "seconds=x"] {
            let problem = seconds(bad).expect_err(bad);
            assert!(problem.starts_with("seconds: "), "{problem}");
        }
    }
}
