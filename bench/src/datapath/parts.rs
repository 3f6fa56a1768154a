//! Where the time of a run went.

use std::fmt;
use std::time::{Duration, Instant};

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Programs are verified, tables made.
    Loading,
    /// Services and flows are written.
    Filling,
    /// Test runs of the wrapper alone.
    Wrapper,
    /// Test runs of the rows.
    Rows,
}

/// Their names, in their order.
const NAMES: [&str; 4] = ["loading", "filling", "wrapper", "rows"];

/// How long each took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Parts([Duration; NAMES.len()]);

impl Parts {
    /// Does something that belongs to `part`.
    pub fn time<T>(&mut self, part: Part, what: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = what();
        self.0[part as usize] += began.elapsed();
        done
    }

    /// What came since an earlier state of these.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = *self;
        for (now, earlier) in since.0.iter_mut().zip(earlier.0) {
            *now -= earlier;
        }
        since
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum: Duration = self.0.iter().sum();
        write!(f, "{:.1} s", sum.as_secs_f64())?;
        for (index, (name, time)) in NAMES.iter().zip(self.0).enumerate() {
            let before = if index == 0 { ": " } else { ", " };
            write!(f, "{before}{name} {:.1}", time.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_with_their_sum_and_by_what_came_since() {
        let secs = |all: [u64; 4]| Parts(all.map(Duration::from_secs));
        let (before, after) = (secs([1, 2, 3, 4]), secs([2, 2, 5, 10]));
        assert_eq!(after.since(&before), secs([1, 0, 2, 6]));
        let text = "9.0 s: loading 1.0, filling 0.0, wrapper 2.0, rows 6.0";
        assert_eq!(after.since(&before).to_string(), text);
    }
}
