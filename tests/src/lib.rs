//! The test harness: everything that tests of more than one crate share.
//!
//! Network namespaces with real sockets are built from four parts, each usable by itself:
//! [`net`] makes namespaces and removes them, [`topology`] builds a small cluster of them,
//! [`traffic`] runs servers and clients inside, `agent` runs the real binary on a node.

pub mod net;
pub mod topology;
pub mod traffic;
