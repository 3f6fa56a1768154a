//! `shunt explain`: what happens to the first packet of a connection, and why.
//!
//! The packet goes through the stages of `proxy_ebpf::pipeline`, called one after the other, over
//! tables that hold what the maps hold ([`World`]). No rule is written down here a second time:
//! this module says where the packet enters, asks each stage, and puts the answers into words.

mod decide;
pub mod live;
mod packet;
pub mod packets;
mod tables;
pub mod text;
mod words;
pub mod world;

use std::net::{IpAddr, SocketAddr};

use proxy_common::FrontendKind;
use proxy_common::protocol;
use serde::{Deserialize, Serialize, Serializer};

pub use self::decide::explain;
pub use self::world::World;

/// Source port of a query that names none: any that is no well-known one.
pub const SOURCE_PORT_DEFAULT: u16 = 40_000;

/// A packet that starts a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    /// Source address.
    pub src: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Destination port.
    pub dport: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Where it enters; absent: told by the source.
    pub from: Option<From>,
    /// The interface that it enters by.
    pub in_interface: Option<String>,
}

/// A protocol with ports.
#[derive(
    clap::ValueEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A SYN.
    #[default]
    #[serde(alias = "TCP")]
    Tcp,
    /// A datagram.
    #[serde(alias = "UDP")]
    Udp,
    /// An INIT.
    #[serde(alias = "SCTP")]
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Sctp => protocol::SCTP,
        }
    }
}

/// Where a packet enters.
#[derive(
    clap::ValueEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize, Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// By a pod's interface.
    Pod,
    /// Sent by a process of this node.
    Node,
    /// By any other interface.
    External,
}

/// What happens to a packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Answer {
    /// The decision.
    pub verdict: Verdict,
    /// Why, in words.
    pub reason: String,
    /// The service port, `ns/name:port`.
    pub service: Option<String>,
    /// What of the Service was dialed.
    #[serde(serialize_with = "kind_name")]
    pub kind: Option<FrontendKind>,
    /// All backends that this packet could get, sorted by their text.
    pub backends: Vec<String>,
    /// The one that it gets.
    pub chosen: Option<String>,
    /// The answer of S-091 for `chosen`.
    pub snat: bool,
    /// The source that the backend sees instead; absent too where S-096 keeps the source.
    pub snat_address: Option<IpAddr>,
    /// The backend is the client.
    pub hairpin: bool,
    /// Every stage's answer, in order.
    pub stages: Vec<Stage>,
    /// Which hook meets the packet first: for whoever sends it.
    #[serde(skip)]
    pub met_by: Option<MetBy>,
}

/// The hook that meets a packet first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetBy {
    /// A socket hook, and no other (P-8).
    Socket,
    /// tc egress, if no socket hook translates.
    Egress,
    /// tc ingress of an interface with these `proxy_common::interface::flags`.
    Ingress(u32),
}

/// The decision on a packet that starts a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// To a backend.
    Dnat,
    /// Refused: a reset or port unreachable.
    Reject,
    /// Discarded.
    Drop,
    /// Left alone.
    None,
}

impl Verdict {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dnat => "dnat",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::None => "none",
        }
    }
}

/// One stage's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stage {
    /// Its name.
    pub stage: &'static str,
    /// What it said, and why.
    pub answer: String,
}

/// As in the API.
pub fn kind_text(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::NodePort => "NodePort",
        FrontendKind::ExternalIp => "ExternalIP",
        FrontendKind::LoadBalancer => "LoadBalancer",
    }
}

fn kind_name<S: Serializer>(kind: &Option<FrontendKind>, to: S) -> Result<S::Ok, S::Error> {
    kind.map(kind_text).serialize(to)
}

/// `address:port`, an IPv6 address in brackets.
fn endpoint_text(addr: IpAddr, port: u16) -> String {
    SocketAddr::new(addr, port).to_string()
}
