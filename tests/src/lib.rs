//! The test harness: everything that tests of more than one crate share.
//!
//! Network namespaces with real sockets are built from five parts, each usable by itself:
//! [`net`] makes namespaces and removes them, [`topology`] builds a small cluster of them,
//! [`traffic`] runs servers and clients inside, [`manifests`] writes Services and
//! [`agent`] runs the real binary on a node. [`rig`] puts all of them together.

pub mod agent;
pub mod cases;
pub mod crossing;
pub mod deployed;
pub mod fake_api;
pub mod fuzz;
pub mod http;
pub mod lab;
pub mod load;
pub mod manifests;
pub mod model;
pub mod net;
pub mod oracle;
pub mod packet_tables;
pub mod promql;
pub mod rig;
pub mod scenarios;
pub mod screen;
pub mod topology;
pub mod traffic;
pub mod verifier;

/// Cites the rules that a test is about: read by `cargo xtask rules`.
pub const fn rules(_rules: &[&str]) {}
