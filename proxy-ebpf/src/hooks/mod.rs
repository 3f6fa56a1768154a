//! The BPF programs' bodies: context in, hook code out.

mod register;
mod skb_environment;
pub mod sock_addr;
pub mod tc;
