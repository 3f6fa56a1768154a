//! The table itself, by subject.

mod affinity;
mod bytes;
mod icmp;
mod inside;
mod paths;
mod refusals;
mod rows;
mod tracking;

use proxy_ebpf::Verdict;

use super::packets::{PacketSpec, sctp, syn, udp};
use super::world::*;
use super::{Case, Out};

/// A pod.
const POD_AT: At = (Role::Pod, CLIENT_PORT);
/// A client outside.
const CLIENT_AT: At = (Role::Client, CLIENT_PORT);
/// The Service by its ClusterIP.
const VIP: At = (Role::ClusterIp, PORT);
/// The Service by its NodePort.
const NODE_AT: At = (Role::Node, NODE_PORT);
/// A backend on this node.
const LOCAL_AT: At = (Role::LocalBackend, TARGET);
/// A backend on another node.
const REMOTE_AT: At = (Role::RemoteBackend, TARGET);
/// What a backend behind the uplink sees of a SNATed flow.
const SNAT_AT: At = (Role::Node, SNAT_PORT);
/// What a backend of this node sees of a SNATed flow.
const SNAT_LOCAL_AT: At = (Role::PodGateway, SNAT_PORT);

/// Every case.
pub fn table() -> Vec<Case> {
    [
        paths::cases(),
        inside::cases(),
        affinity::cases(),
        refusals::cases(),
        rows::cases(),
        tracking::cases(),
        icmp::cases(),
        bytes::cases(),
    ]
    .concat()
}

/// The first packet of a flow, over TCP and over UDP.
fn first_packets(src: At, dst: At) -> [(&'static str, PacketSpec); 3] {
    [
        ("TCP", syn(src, dst)),
        ("UDP", udp(src, dst)),
        ("SCTP", sctp(src, dst)),
    ]
}
