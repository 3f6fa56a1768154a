//! Network namespaces, cgroups and bpffs mounts that a test or the demo makes, and that are gone
//! when it ends, however it ends.
//!
//! [`Sandbox`] owns all of them; [`Netns`] is a name inside it. What a killed process left behind
//! is removed by the next sandbox anyone makes.

mod command;
mod frames;
mod hooks;
mod netns;
mod sandbox;
mod tun;
mod wait;

pub use command::{installed, run};
pub use hooks::{cgroup_programs, tcx_programs};
pub use netns::{Netns, Place};
pub use sandbox::{Sandbox, remove, sweep};
pub use tun::Tunnel;
pub use wait::eventually;
