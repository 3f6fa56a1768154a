//! The BPF programs' bodies: context in, hook code out.

pub mod skb_environment;
pub mod sock_addr;
pub mod tc;
