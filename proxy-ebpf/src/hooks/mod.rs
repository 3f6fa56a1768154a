//! The BPF programs' bodies: context in, hook code out.

mod environment;
mod kernel;
mod log;
mod register;
pub mod sock_addr;
mod steps;
mod subprograms;
pub mod tc;
pub mod xdp;
