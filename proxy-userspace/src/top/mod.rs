//! `shunt top`: Services and their backends by rate.
//!
//! [`sample`] reads the counters once a tick, [`state`] turns two readings into rates and keeps
//! what the keys have chosen, [`screen`] draws what fits. The latter two are pure.

pub mod columns;
pub mod sample;
pub mod screen;
pub mod state;

#[cfg(test)]
mod tests;
