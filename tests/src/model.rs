//! The model test: random objects, events, restarts and packets, run through the agent's own code
//! and the pipeline on the one side, and through the [`crate::oracle`] on the other.
//!
//! [`random`] makes a [`plan::Plan`] from a seed, [`run`] executes it and compares every packet,
//! [`node`] is the product on a node, [`explained`] is `shunt explain`, [`wire`] builds packets,
//! [`shrink`] makes a failing plan smaller.

pub mod explained;
pub mod node;
pub mod plan;
pub mod random;
pub mod run;
pub mod shrink;
pub mod wire;
