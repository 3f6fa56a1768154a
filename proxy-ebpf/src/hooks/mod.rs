//! The BPF programs' bodies: context in, hook code out.

mod kernel;
mod register;
mod skb_environment;
pub mod sock_addr;
mod steps;
pub mod tc;
pub mod xdp;
mod xdp_environment;
