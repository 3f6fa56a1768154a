//! Which server is tried next, and when. A server that fails is left for the next one at once; when
//! all have failed one after the other, time passes first, more each round and not the same on
//! every node.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff};

use crate::pipeline::watch::backoff;

/// A session that was served shorter counts as a failure, however it ended.
const SHORT: Duration = Duration::from_secs(1);

/// How a session with a server ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Properly, by the server.
    Over,
    /// All must be listed again, which the servers are given time for.
    Gone,
    /// Anything else.
    Failed,
}

/// How the servers have done.
#[derive(Debug)]
pub(super) struct Rounds {
    servers: usize,
    current: usize,
    /// Failures one after the other; each round of all servers takes that many.
    failures: usize,
    waits: ExponentialBackoff,
    /// The last of the waits; zero: the next one is the first.
    waited: Duration,
}

impl Rounds {
    /// Of so many servers, of which none has been tried.
    pub(super) fn new(servers: usize) -> Self {
        Self {
            servers,
            current: 0,
            failures: 0,
            waits: backoff().build(),
            waited: Duration::ZERO,
        }
    }

    /// The server that is to be tried, by its position.
    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// Takes in a session that has ended and of which the server had served for so long: zero if
    /// it never answered. Returns how long the next one has to wait.
    ///
    /// Where a server served for no less than was waited for it, it has nothing to do with the
    /// failures before: of a server that cannot keep a watch for long, at most half is lost.
    pub(super) fn after(&mut self, end: End, served: Duration) -> Duration {
        if served >= SHORT.max(self.waited) {
            *self = Self {
                current: self.current,
                ..Self::new(self.servers)
            };
        }
        match end {
            End::Over if served >= SHORT => {}
            End::Over | End::Gone => self.failures = self.servers,
            End::Failed => {
                self.current = (self.current + 1) % self.servers;
                self.failures += 1;
            }
        }
        if self.failures < self.servers {
            return Duration::ZERO;
        }
        self.failures = 0;
        // They never end.
        self.waited = self.waits.next().unwrap_or(SHORT);
        self.waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;
    /// The first wait is half a second, stretched by chance up to twice.
    const FIRST_MAX: Duration = Duration::from_secs(1);
    const LAST_MIN: Duration = Duration::from_secs(15);
    const LAST_MAX: Duration = Duration::from_secs(30);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Servers that have failed until waits no longer grow.
    fn failed(servers: usize) -> Rounds {
        let mut rounds = Rounds::new(servers);
        for _ in 0..10 * servers {
            rounds.after(End::Failed, NONE);
        }
        rounds
    }

    #[test]
    fn servers_that_never_answer_are_tried_in_rounds_further_and_further_apart() {
        let mut rounds = Rounds::new(3);
        let mut waits = Vec::new();
        for tried in 0..30 {
            assert_eq!(rounds.current(), tried % 3);
            let wait = rounds.after(End::Failed, NONE);
            assert_eq!(wait > NONE, tried % 3 == 2, "after try {tried}: {wait:?}");
            waits.extend((wait > NONE).then_some(wait));
        }
        // Each is twice the one before, by up to twice.
        for (round, wait) in (0..).zip(&waits) {
            let least = (Duration::from_millis(500) * 2_u32.pow(round)).min(LAST_MIN);
            assert!((least..=2 * least).contains(wait), "{round}: {wait:?}");
        }
        assert_eq!(waits.len(), 10);
    }

    #[test]
    fn watch_that_its_server_ends_goes_on_there_at_once() {
        let mut rounds = failed(2);
        let current = rounds.current();
        for served in [secs(1), secs(5), secs(300)] {
            assert_eq!(rounds.after(End::Over, served), NONE, "{served:?}");
            assert_eq!(rounds.current(), current);
        }
        let wait = rounds.after(End::Over, Duration::from_millis(900));
        assert!(wait > NONE, "a watch that ends at once is a failure");
    }

    #[test]
    fn server_that_serves_no_less_than_it_was_waited_for_begins_anew() {
        let mut rounds = failed(1);
        let wait = rounds.after(End::Failed, LAST_MIN / 2);
        assert!((LAST_MIN..=LAST_MAX).contains(&wait), "{wait:?}");
        for served in [LAST_MAX, secs(1), secs(5), secs(1)] {
            let wait = rounds.after(End::Failed, served);
            assert!(wait > NONE && wait <= FIRST_MAX, "{served:?}: {wait:?}");
        }
    }

    #[test]
    fn watches_that_are_too_old_wait_before_they_list_whatever_served_them() {
        let mut rounds = Rounds::new(3);
        for _ in 0..5 {
            let wait = rounds.after(End::Gone, secs(60));
            assert!(wait > NONE && wait <= FIRST_MAX, "{wait:?}");
        }
        let waits: Vec<_> = (0..10).map(|_| rounds.after(End::Gone, NONE)).collect();
        assert!(waits[9] >= LAST_MIN, "{waits:?}");
        assert_eq!(rounds.current(), 0);
    }
}
