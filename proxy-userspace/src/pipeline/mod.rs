//! The object's path: watch, store, desired, diff, apply.

pub mod watch;

pub mod packed;
pub mod store;

pub mod desired;

pub mod actual;
pub mod diff;

pub mod apply;

pub mod reconciler;
pub mod status;

pub use desired::node::LocalAddress;
pub use reconciler::{Reconciler, Report};

#[cfg(test)]
mod tests;
