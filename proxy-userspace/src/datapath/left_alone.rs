//! Why an interface gets no programs.

/// What an interface lacks that would give it a role.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LeftAlone {
    /// The operator names interfaces, and not this one.
    #[error("--interfaces does not name it")]
    NotNamed,
    /// The bridge sees its packets, and it leads to no pod.
    #[error("a port of the bridge {0} that leads to no pod: the bridge is served")]
    BridgePort(String),
    /// A bond or the like is the interface that routes know.
    #[error("a part of {0}, which is served if it has a role")]
    Controlled(String),
    /// Nothing is sent over it.
    #[error("it has neither a global address nor a route")]
    NoAddressOrRoute,
}
