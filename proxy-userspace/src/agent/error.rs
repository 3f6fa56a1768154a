//! Why an agent ends.

use super::health::HealthError;
use super::node_wait::NodeError;
use crate::datapath::DatapathError;
use crate::datapath::conntrack_sysctls::SysctlError;
use crate::datapath::netlink::NetlinkError;
use crate::pipeline::watch::WatchError;

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The datapath could not be started.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Objects could not be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// Interfaces could not be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A server of this node.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// Kernel settings that were asked for.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The Node lacks what the options need.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The configuration file is another one: whoever watches the agent starts it again (S-182).
    #[error("the configuration file has changed: ending, to be started with it")]
    ConfigChanged,
    /// The source of objects ended by itself.
    #[error("the source of objects ended")]
    SourceEnded,
    /// Something of the machine that must work.
    #[error("{what}")]
    Machine {
        /// What was done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
