//! A failing plan made smaller: whatever may be left out while something still fails, is.

use super::plan::Plan;
use super::run::{Failure, run};

/// The smallest failing plan that leaving out runs of actions finds, and its failure.
pub fn shrink(plan: &Plan, seed: u32, failure: Failure) -> (Plan, Failure) {
    let (mut plan, mut failure) = (plan.clone(), failure);
    plan.actions.truncate(failure.at + 1);
    let mut len = plan.actions.len() / 2;
    while len > 0 {
        let mut start = 0;
        let mut is_smaller = false;
        while start < plan.actions.len() {
            let mut candidate = plan.clone();
            let end = (start + len).min(candidate.actions.len());
            candidate.actions.drain(start..end);
            match run(&candidate, seed) {
                Err(found) => {
                    candidate.actions.truncate(found.at + 1);
                    (plan, failure) = (candidate, found);
                    is_smaller = true;
                }
                Ok(_) => start += len,
            }
        }
        if !is_smaller || len > 1 {
            len /= 2;
        }
    }
    (plan, failure)
}
