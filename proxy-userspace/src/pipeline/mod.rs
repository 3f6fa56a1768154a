//! The object's path: watch, store, desired, diff, apply.

pub mod watch;
