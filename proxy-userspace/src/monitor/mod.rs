//! What `shunt monitor` shows: new flows, refusals and drops as programs tell them, and Services
//! as the agent publishes them (decision 0024).

pub mod changes;
pub mod filter;
#[cfg(test)]
pub mod fixture;
mod text;
pub mod view;

pub use changes::{Count, Published, ServiceChange};
pub use filter::{Filter, Type};
pub use view::{Clock, Occurrence};

use serde::{Deserialize, Serialize};

/// One line of the stream that the agent sends to a monitor; the same for programs that read it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Line {
    /// Sent first: from now on everything is told.
    Started,
    /// Nothing can be told.
    Failed {
        /// Why.
        error: String,
    },
    /// A connection begins.
    NewFlow(Occurrence),
    /// A packet or call is refused, and its sender told.
    Reject(Occurrence),
    /// A packet or call is dropped.
    Drop(Occurrence),
    /// What a service port has in the maps is another.
    ServiceChanged(ServiceChange),
    /// Events that are not told: nobody took them in time.
    Lost {
        /// How many, before any filter.
        events: u64,
    },
}

impl Line {
    /// Its type; `None` for what is no event.
    pub fn kind(&self) -> Option<Type> {
        match self {
            Self::NewFlow(_) => Some(Type::NewFlow),
            Self::Reject(_) => Some(Type::Reject),
            Self::Drop(_) => Some(Type::Drop),
            Self::ServiceChanged(_) => Some(Type::ServiceChanged),
            Self::Started | Self::Failed { .. } | Self::Lost { .. } => None,
        }
    }
}
