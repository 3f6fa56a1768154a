//! What happens in one run, as data: any part may be left out, and the rest still means something.

use std::net::{IpAddr, SocketAddr};

use proxy_userspace::objects::{Kind, Object, ObjectName};
use proxy_userspace::settings::Settings;

use crate::oracle::decide::From;
use crate::oracle::{Family, Protocol};

/// The choices of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the operator decided.
    pub settings: Settings,
    /// What happens, in order.
    pub actions: Vec<Action>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Action {
    /// An object is created or replaced in the API.
    Apply(Object),
    /// An object is deleted from the API.
    Delete(Kind, ObjectName),
    /// Everything is listed again.
    Relist,
    /// The watch tells this state of an object, late, and then the one that it is in.
    Stale(Object),
    /// Somebody writes into the maps, by this seed, and an audit finds out.
    Meddle(u64),
    /// The flow tables are needed for others: what they hold is forgotten.
    Evict,
    /// The addresses of this node change: beside its own ones it has these.
    Addresses(Vec<IpAddr>),
    /// The agent reconciles until it is at rest.
    Sync(Trouble),
    /// The agent ends and is started again, perhaps with other settings.
    Restart(Option<Box<Settings>>),
    /// Time passes.
    Advance(u32),
    /// Somebody sends a packet that may start a flow.
    Send(Sent),
    /// The client of the n-th live flow sends.
    Again(usize, Tcp),
    /// The backend of the n-th live flow sends.
    Reply(usize, Tcp),
}

/// What goes wrong during a sync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nothing.
    None,
    /// A tenth of all writes fail, by this seed.
    Failing(u64),
    /// The agent is killed after so many writes, and started again.
    Killed(u64),
}

/// A packet of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Flags where it is TCP.
    pub tcp: Tcp,
    /// Where it enters.
    pub from: From,
    /// The interface that it enters by; of no meaning for a process of this node.
    pub ifindex: u32,
}

/// A TCP segment by its flags; of no meaning for other protocols.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tcp {
    /// SYN; SYN and ACK from a backend.
    Syn,
    /// ACK with data.
    Data,
    /// FIN and ACK.
    Fin,
    /// RST.
    Rst,
}

impl Sent {
    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.src.ip())
    }
}
