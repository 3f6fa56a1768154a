//! What the operator decided: one plain struct, filled from flags and file by `config`.

use std::net::IpAddr;

use clap::ValueEnum;
use ipnet::IpNet;
use proxy_common::config::Timeouts;
use serde::{Deserialize, Serialize};

/// Bit of `skb->mark` that redirected packets carry by default: outside of what kube-proxy
/// (bits 14 and 15) and Calico (the upper half) use.
pub const REDIRECT_MARK_DEFAULT: u32 = 1 << 13;

/// Everything that configures an agent and ends in maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Name of the own Node object, trimmed and lower-cased (S-170); empty: nothing is local.
    pub node_name: String,
    /// Overrides the primary address of its family (S-171); unspecified counts as absent.
    pub bind_address: Option<IpAddr>,
    /// Addresses that NodePorts are served on (S-118); empty: like `[Primary]`.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// When external traffic is masqueraded (S-091).
    pub masquerade: Masquerade,
    /// Masquerade all ClusterIP traffic (S-092).
    pub masquerade_all: bool,
    /// Who counts as a pod (S-083).
    pub detect_local: DetectLocalMode,
    /// Pod networks, for [`DetectLocalMode::ClusterCidr`]; the first of each family counts.
    pub cluster_cidrs: Vec<IpNet>,
    /// What becomes of `spec.externalIPs` (S-025).
    pub external_ips: ExternalIps,
    /// Leave unallocated ServiceCIDR addresses alone (the exemption of S-078).
    pub keep_unallocated: bool,
    /// Which sockets are translated at connect and sendmsg (S-206).
    pub socket_lb: SocketLb,
    /// Which UDP sockets are translated (P-11).
    pub socket_udp: SocketUdp,
    /// First and last port of two SNAT ranges (P-13).
    pub snat_ports: [[u16; 2]; 2],
    /// New flows that each CPU enters in a second; 0: no limit.
    pub new_flows_per_sec: u32,
    /// Kernel ticks per second, as measured.
    pub hz: u32,
    /// Cookie of the node's own network namespace.
    pub host_netns_cookie: u64,
    /// Whether IPv6 is served (S-175).
    pub ipv6: Ipv6,
    /// Bit of `skb->mark` that redirected packets carry.
    pub redirect_mark: u32,
    /// Idle lifetimes of flows.
    pub timeouts: Timeouts,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            bind_address: None,
            node_port_addresses: Vec::new(),
            masquerade: Masquerade::Needed,
            masquerade_all: false,
            detect_local: DetectLocalMode::ClusterCidr,
            cluster_cidrs: Vec::new(),
            external_ips: ExternalIps::Serve,
            keep_unallocated: false,
            socket_lb: SocketLb::On,
            socket_udp: SocketUdp::Unconnected,
            snat_ports: [[10_000, 29_999], [61_000, 65_535]],
            new_flows_per_sec: 0,
            hz: 1000,
            host_netns_cookie: 0,
            ipv6: Ipv6::Served,
            redirect_mark: REDIRECT_MARK_DEFAULT,
            timeouts: Timeouts::default(),
        }
    }
}

/// Whether the kernel has IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ipv6 {
    /// It has, and both families are served.
    Served,
    /// It has not, or it is disabled.
    Absent,
}

/// One entry of `nodePortAddresses` (S-118).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodePortAddress {
    /// The node's primary addresses (S-171).
    Primary,
    /// 127.0.0.0/8 and ::1/128.
    Localhost,
    /// Every local address but loopback.
    All,
    /// Local addresses inside a CIDR.
    Cidr(IpNet),
}

/// `--masquerade`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Masquerade {
    /// Only where replies would not come back by this node (P-4).
    Needed,
    /// The rows of S-091 exactly.
    Always,
}

/// `detectLocalMode` (S-083).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DetectLocalMode {
    /// Nobody counts as a pod.
    None,
    /// Source in [`Settings::cluster_cidrs`]; without one of the family: no detector there.
    ClusterCidr,
    /// Source in the own Node's `podCIDRs`.
    NodeCidr,
    /// Entered by exactly this interface.
    BridgeInterface(String),
    /// Entered by an interface with this prefix.
    InterfaceNamePrefix(String),
}

/// What becomes of `spec.externalIPs`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExternalIps {
    /// They are frontends.
    Serve,
    /// They are not.
    Ignore,
}

/// `--socket-lb`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketLb {
    /// All sockets below the cgroup.
    On,
    /// None: the packet path does all.
    Off,
    /// Sockets of the node's own network namespace.
    Host,
}

/// `--socket-udp`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketUdp {
    /// Only unconnected ones.
    Unconnected,
    /// Connected ones too.
    Connected,
}
