//! A small cluster out of network namespaces, built as users' nodes are.
//!
//! ```text
//!   client ──┐                                  ┌── pod
//!            ├── net (bridge, default gateway)── n1
//!            │                                  └── pod
//!   client2 ─┼── second uplink of n1 (variant)
//!            └────────────────────────────────  n2 ── pods
//! ```
//!
//! What differs between clusters is data: a [`Variant`].

pub mod addresses;
mod cluster;
mod node;
mod pod;

pub use cluster::{Cluster, Outside, set_offloads};
pub use node::{Node, Seen};
pub use pod::Pod;

/// How a cluster is built. The default is the plainest cluster that is realistic: routed veths,
/// routes between the nodes, and the firewall that nodes usually have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Variant {
    /// How pods are attached to their node.
    pub pods: PodNetwork,
    /// How packets get from node to node.
    pub overlay: Overlay,
    /// Uplinks of n1.
    pub uplinks: Uplinks,
    /// What the uplink of each node to the shared network is.
    pub device: Device,
    /// Rules and reverse path filter of the nodes.
    pub firewall: Firewall,
    /// MTU of the pods' links (both ends).
    pub pod_mtu: u32,
    /// Segmentation and checksum offloads of all links.
    pub offloads: Offloads,
}

/// How pods are attached to their node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PodNetwork {
    /// A veth with a host route each; the gateway is 169.254.1.1 and fe80::1.
    Routed,
    /// A bridge `cni0` with the gateway address.
    Bridge(BridgeNetfilter),
}

/// `bridge-nf-call-iptables`: whether netfilter sees bridged packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BridgeNetfilter {
    /// 0.
    Off,
    /// 1, what Kubernetes asks for.
    On,
}

/// How packets get from node to node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overlay {
    /// Routes to the other node's address.
    None,
    /// A vxlan device with an address of its own.
    Vxlan,
    /// A device without a MAC header, with an address of its own.
    Tun,
}

/// Uplinks of n1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Uplinks {
    /// One, to the network that all share.
    One,
    /// Another one to a client of its own, which is in that link's network.
    Two,
    /// As `Two`, with that client behind a router to which only a policy rule for the uplink's
    /// own address leads: replies of a pod go elsewhere.
    TwoWithPolicy,
}

/// The device `up0` of a node. All but the plain one need modules that not every kernel has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// A veth.
    Veth,
    /// A VLAN device on a veth.
    Vlan,
    /// An active-backup bond of two veths.
    Bond,
}

/// Rules and reverse path filter of the nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Firewall {
    /// No rules, no reverse path filter.
    None,
    /// rp_filter 1, MASQUERADE for pods that leave the cluster, INVALID dropped, FORWARD policy
    /// DROP with ESTABLISHED and the pods accepted.
    Strict,
}

/// Segmentation and checksum offloads of all links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offloads {
    /// As veth has them by default.
    On,
    /// All off.
    Off,
}

impl Default for Variant {
    fn default() -> Self {
        Self {
            pods: PodNetwork::Routed,
            overlay: Overlay::None,
            uplinks: Uplinks::One,
            device: Device::Veth,
            firewall: Firewall::Strict,
            pod_mtu: 1500,
            offloads: Offloads::On,
        }
    }
}

impl Variant {
    /// MTU of a pod's link: what was asked for, less what the overlay takes.
    pub fn link_mtu(&self) -> u32 {
        match self.overlay {
            Overlay::None | Overlay::Tun => self.pod_mtu,
            Overlay::Vxlan => self.pod_mtu.min(addresses::VXLAN_MTU),
        }
    }
}
