//! What is measured: which packet, which program, and what must come of it.

use proxy_common::{Counter, protocol};
use proxy_ebpf::Hook;
use tests::cases::packets::{self, ACK, PacketSpec, SYN};
use tests::cases::world::{At, CLIENT_PORT, PORT, Role, TARGET};

use super::programs::Program;

/// One kind of row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum What {
    /// The least that a packet of a flow can cost.
    Yardstick,
    /// The least that a new flow can cost.
    YardstickNew,
    /// A client's packet of an established flow.
    EstablishedOriginal,
    /// A backend's.
    EstablishedReply,
    /// The first packet of a flow.
    NewFlow,
    /// A packet that is none of ours; the port filter says so.
    Foreign,
    /// The same, and its port could be a frontend's.
    ForeignFilterHit,
    /// The first packet to a Service without endpoints.
    Reject,
}

/// All of them, the yardsticks first.
pub const ALL: [What; 8] = [
    What::Yardstick,
    What::YardstickNew,
    What::EstablishedOriginal,
    What::EstablishedReply,
    What::NewFlow,
    What::Foreign,
    What::ForeignFilterHit,
    What::Reject,
];

/// Which address and port of the packet are those of the varied client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Varied {
    /// The source's.
    Source,
    /// The destination's.
    Destination,
}

/// The address of a Service without endpoints.
pub const WITHOUT_ENDPOINTS: Role = Role::OtherClusterIp;
/// A port that is in no filter.
const FOREIGN_PORT: u16 = 9999;
/// Bytes behind the transport header: enough for every packet to be as long as the wrapper needs.
const PAYLOAD: usize = 64;

impl What {
    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            What::Yardstick => "yardstick",
            What::YardstickNew => "yardstick_new",
            What::EstablishedOriginal => "established_original",
            What::EstablishedReply => "established_reply",
            What::NewFlow => "new_flow",
            What::Foreign => "foreign",
            What::ForeignFilterHit => "foreign_filter_hit",
            What::Reject => "reject",
        }
    }

    /// True for what the others are compared with.
    pub fn is_yardstick(self) -> bool {
        matches!(self, What::Yardstick | What::YardstickNew)
    }

    /// What its ratio is to.
    pub fn yardstick(self) -> What {
        match self {
            What::NewFlow => What::YardstickNew,
            _ => What::Yardstick,
        }
    }

    /// The highest ratio that is good enough, where there is one.
    pub fn bar(self) -> Option<f64> {
        match self {
            What::EstablishedOriginal | What::EstablishedReply | What::NewFlow => Some(1.5),
            What::Foreign => Some(0.5),
            What::ForeignFilterHit => Some(1.2),
            What::Yardstick | What::YardstickNew | What::Reject => None,
        }
    }

    /// The hook.
    pub fn hook(self, program: Program) -> Hook {
        match (program, self) {
            (Program::Xdp, _) => Hook::Xdp,
            (Program::Tc, What::EstablishedReply) => Hook::Egress,
            (Program::Tc, _) => Hook::Ingress,
        }
    }

    /// True where each packet is the first of its flow.
    pub fn is_new(self) -> bool {
        matches!(self, What::YardstickNew | What::NewFlow)
    }

    /// True where each packet is one of a flow that is known.
    pub fn is_established(self) -> bool {
        matches!(self, What::EstablishedOriginal | What::EstablishedReply)
    }

    /// Whose address varies.
    pub fn varied(self) -> Varied {
        match self {
            What::EstablishedReply => Varied::Destination,
            _ => Varied::Source,
        }
    }

    /// The reason that our programs count for each packet.
    pub fn reason(self, program: Program) -> Counter {
        match (program, self) {
            (_, What::Reject) => Counter::RejectNoEndpoint,
            // tc, behind it, says why.
            (Program::Xdp, What::Foreign | What::ForeignFilterHit) => Counter::XdpPassed,
            (Program::Xdp, What::EstablishedReply) => Counter::ReplyRedirect,
            (Program::Xdp, _) => Counter::OriginalRedirect,
            (Program::Tc, What::EstablishedReply) => Counter::ReplyStack,
            (Program::Tc, What::Foreign | What::ForeignFilterHit) => Counter::Foreign,
            (Program::Tc, _) => Counter::OriginalStack,
        }
    }

    /// The packet, of whichever flow.
    pub fn packet(self, program: Program, ip_protocol: u8) -> PacketSpec {
        let client = (program.client(), CLIENT_PORT);
        let (src, dst): (At, At) = match self {
            What::EstablishedReply => ((Role::RemoteBackend, TARGET), client),
            What::Foreign => (client, (Role::Foreign, FOREIGN_PORT)),
            What::ForeignFilterHit => (client, (Role::Foreign, PORT)),
            What::Reject => (client, (WITHOUT_ENDPOINTS, PORT)),
            _ => (client, (program.dialed(), PORT)),
        };
        let mut packet = if ip_protocol == protocol::UDP {
            packets::udp(src, dst)
        } else {
            let is_first = self.is_new() || self == What::Reject;
            packets::tcp(src, dst, if is_first { SYN } else { ACK })
        };
        packet.payload = vec![0x5a; PAYLOAD];
        packet
    }
}
