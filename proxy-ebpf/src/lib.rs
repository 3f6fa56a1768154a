//! The packet's path.
//!
//! One library, built twice: into the BPF object (`main.rs`), and for the host, where it is tested,
//! fuzzed and run by `shunt explain`. [`pipeline`] is the way of a packet, top to bottom;
//! [`socket`] is the same decision on a socket address. Both reach the world only through three
//! traits: [`Packet`], [`Tables`] and [`Environment`].
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod answer;
pub mod environment;
pub mod family;
#[cfg(target_arch = "bpf")]
pub mod hooks;
pub mod packet;
pub mod pipeline;
pub mod socket;
pub mod stop;
pub mod tables;
pub mod tell;
pub mod wire;

pub use environment::{Environment, Hook};
pub use family::{Family, V4, V6};
pub use packet::Packet;
pub use stop::{Answer, Stop, Verdict};
pub use tables::{FlowTable, Insert, Sighting, Tables};
