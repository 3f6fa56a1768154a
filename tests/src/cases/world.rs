//! The world of a case: who is who, what is configured, and which flows are known.
//!
//! Everything is said with roles, so that one text serves both address families.

use proxy_common::node::{address_flags, cluster_ip};
use proxy_common::{Addr4, Addr6, interface};
use proxy_ebpf::{Family, V4, V6};

use super::flows::Flow;

/// Interface of the uplink.
pub const UPLINK: u32 = 10;
/// Interface of [`Role::Pod`].
pub const POD: u32 = 20;
/// Interface of [`Role::LocalBackend`].
pub const LOCAL: u32 = 21;
/// An overlay device with a smaller MTU.
pub const OVERLAY: u32 = 30;
/// A bridge with pods.
pub const BRIDGE: u32 = 40;
/// The port of [`Role::BridgedPod`].
pub const BRIDGE_POD: u32 = 41;
/// The port of [`Role::BridgedBackend`].
pub const BRIDGE_BACKEND: u32 = 42;
/// An interface without our programs.
pub const DARK: u32 = 50;
/// An interface without an address.
pub const BARE: u32 = 60;
/// MTU of all interfaces but [`OVERLAY`].
pub const MTU: u32 = 1500;
/// MTU of [`OVERLAY`].
pub const OVERLAY_MTU: u32 = 1450;

/// Who an address belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// A client outside of the cluster, behind the uplink's router.
    Client,
    /// A client whose route leaves by an interface without our programs.
    DarkClient,
    /// A pod of this node.
    Pod,
    /// A pod of this node with a backend.
    LocalBackend,
    /// A pod of another node with a backend, behind the uplink.
    RemoteBackend,
    /// A pod of another node with a backend, behind the overlay.
    OverlayBackend,
    /// A pod with a backend behind an interface that has no address.
    BareBackend,
    /// A pod with a backend that no route leads to.
    LostBackend,
    /// A pod on the bridge.
    BridgedPod,
    /// A pod on the bridge with a backend.
    BridgedBackend,
    /// This node's address: NodePorts are served on it.
    Node,
    /// This node's address towards its pods.
    PodGateway,
    /// This node's address on the overlay.
    OverlayGateway,
    /// This node's address on the bridge.
    BridgeGateway,
    /// The Service's ClusterIP.
    ClusterIp,
    /// A load balancer's address for the Service, on this node's uplink.
    Vip,
    /// A ClusterIP outside of the ServiceCIDR; none of its ports is served.
    OtherClusterIp,
    /// An address of the ServiceCIDR that no Service has.
    Unallocated,
    /// A router on the way to a backend.
    Router,
    /// A host that has nothing to do with Services.
    Foreign,
    /// A multicast group.
    Multicast,
    /// The unspecified address.
    Unspecified,
}

/// An address and a port.
pub type At = (Role, u16);

/// A family with the addresses of the roles.
pub trait CaseFamily: Family {
    /// For messages.
    const NAME: &'static str;
    /// The address of a role.
    fn address(role: Role) -> Self::Addr;
    /// As in a packet.
    fn octets(addr: Self::Addr) -> Vec<u8>;
    /// Its part of a configuration, to be changed.
    fn config_mut(config: &mut proxy_common::Config)
    -> &mut proxy_common::FamilyConfig<Self::Addr>;
    /// Sets the address that masquerading uses.
    fn set_masquerade(interface: &mut proxy_common::Interface, addr: Self::Addr);
}

impl CaseFamily for V4 {
    const NAME: &'static str = "IPv4";

    fn address(role: Role) -> Addr4 {
        Addr4::from_octets(match role {
            Role::Client => [192, 0, 2, 10],
            Role::DarkClient => [192, 0, 2, 66],
            Role::Pod => [10, 1, 1, 2],
            Role::LocalBackend => [10, 1, 1, 3],
            Role::RemoteBackend => [10, 1, 2, 2],
            Role::OverlayBackend => [10, 1, 4, 2],
            Role::BareBackend => [10, 1, 6, 2],
            Role::LostBackend => [10, 1, 9, 9],
            Role::BridgedPod => [10, 1, 3, 2],
            Role::BridgedBackend => [10, 1, 3, 3],
            Role::Node => [198, 51, 100, 1],
            Role::PodGateway => [10, 1, 1, 1],
            Role::OverlayGateway => [10, 1, 5, 1],
            Role::BridgeGateway => [10, 1, 3, 1],
            Role::ClusterIp => [10, 96, 0, 10],
            Role::Vip => [203, 0, 113, 80],
            Role::OtherClusterIp => [10, 97, 0, 10],
            Role::Unallocated => [10, 96, 7, 7],
            Role::Router => [198, 51, 100, 254],
            Role::Foreign => [192, 0, 2, 77],
            Role::Multicast => [224, 0, 0, 5],
            Role::Unspecified => [0; 4],
        })
    }

    fn octets(addr: Addr4) -> Vec<u8> {
        addr.octets().to_vec()
    }

    fn config_mut(config: &mut proxy_common::Config) -> &mut proxy_common::FamilyConfig<Addr4> {
        &mut config.v4
    }

    fn set_masquerade(interface: &mut proxy_common::Interface, addr: Addr4) {
        interface.addr4 = addr;
    }
}

impl CaseFamily for V6 {
    const NAME: &'static str = "IPv6";

    fn address(role: Role) -> Addr6 {
        let text = match role {
            Role::Client => "2001:db8:c::10",
            Role::DarkClient => "2001:db8:c::66",
            Role::Pod => "fd00:10:1:1::2",
            Role::LocalBackend => "fd00:10:1:1::3",
            Role::RemoteBackend => "fd00:10:1:2::2",
            Role::OverlayBackend => "fd00:10:1:4::2",
            Role::BareBackend => "fd00:10:1:6::2",
            Role::LostBackend => "fd00:10:1:9::9",
            Role::BridgedPod => "fd00:10:1:3::2",
            Role::BridgedBackend => "fd00:10:1:3::3",
            Role::Node => "2001:db8:1::1",
            Role::PodGateway => "fd00:10:1:1::1",
            Role::OverlayGateway => "fd00:10:1:5::1",
            Role::BridgeGateway => "fd00:10:1:3::1",
            Role::ClusterIp => "fd00:10:96::10",
            Role::Vip => "2001:db8:80::80",
            Role::OtherClusterIp => "fd00:10:97::10",
            Role::Unallocated => "fd00:10:96::77:7",
            Role::Router => "2001:db8:1::fe",
            Role::Foreign => "2001:db8:c::77",
            Role::Multicast => "ff02::5",
            Role::Unspecified => "::",
        };
        let addr: std::net::Ipv6Addr = text.parse().expect("an address of the table");
        addr.into()
    }

    fn octets(addr: Addr6) -> Vec<u8> {
        addr.octets().to_vec()
    }

    fn config_mut(config: &mut proxy_common::Config) -> &mut proxy_common::FamilyConfig<Addr6> {
        &mut config.v6
    }

    fn set_masquerade(interface: &mut proxy_common::Interface, addr: Addr6) {
        interface.addr6 = addr;
    }
}

/// This node's addresses, and what NODE_ADDRESSES says of them.
pub const OWN: [(Role, u32); 5] = [
    (Role::Node, address_flags::OWN | address_flags::NODE_PORT),
    (Role::Vip, address_flags::OWN),
    (Role::PodGateway, address_flags::OWN),
    (Role::OverlayGateway, address_flags::OWN),
    (Role::BridgeGateway, address_flags::OWN),
];

/// Routes that differ from the default route by the uplink.
pub const ROUTES: [(Role, u32); 7] = [
    (Role::Pod, POD),
    (Role::LocalBackend, LOCAL),
    (Role::OverlayBackend, OVERLAY),
    (Role::BridgedPod, BRIDGE),
    (Role::BridgedBackend, BRIDGE),
    (Role::DarkClient, DARK),
    (Role::BareBackend, BARE),
];

/// Addresses that no route leads to.
pub const UNREACHABLE: [Role; 1] = [Role::LostBackend];

/// What INTERFACES says of one interface.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// ifindex.
    pub ifindex: u32,
    /// Bits of `interface::flags`.
    pub flags: u32,
    /// MTU.
    pub mtu: u32,
    /// Its bridge or 0.
    pub bridge: u32,
    /// The address that masquerading uses, if it has one.
    pub address: Option<Role>,
}

const ATTACHED: u32 = interface::flags::ATTACHED;
const POD_SIDE: u32 = ATTACHED | interface::flags::POD_SIDE;
const BRIDGE_PORT: u32 = POD_SIDE | interface::flags::BRIDGE_REDIRECT;

const fn device(ifindex: u32, flags: u32, mtu: u32, bridge: u32, address: Option<Role>) -> Device {
    Device {
        ifindex,
        flags,
        mtu,
        bridge,
        address,
    }
}

/// The interfaces of the node.
pub const DEVICES: [Device; 9] = [
    device(
        UPLINK,
        ATTACHED | interface::flags::XDP,
        MTU,
        0,
        Some(Role::Node),
    ),
    device(POD, POD_SIDE, MTU, 0, Some(Role::PodGateway)),
    device(LOCAL, POD_SIDE, MTU, 0, Some(Role::PodGateway)),
    device(
        OVERLAY,
        ATTACHED | interface::flags::TAKES_LARGER,
        OVERLAY_MTU,
        0,
        Some(Role::OverlayGateway),
    ),
    device(
        BRIDGE,
        POD_SIDE | interface::flags::BRIDGE,
        MTU,
        0,
        Some(Role::BridgeGateway),
    ),
    device(BRIDGE_POD, BRIDGE_PORT, MTU, BRIDGE, None),
    device(BRIDGE_BACKEND, BRIDGE_PORT, MTU, BRIDGE, None),
    device(DARK, 0, MTU, 0, Some(Role::Node)),
    device(BARE, ATTACHED, MTU, 0, None),
];

/// The MAC of [`Role::Router`], the neighbour on [`UPLINK`].
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// The mark of redirected packets.
pub const MARK: u32 = 0x0800_0000;
/// The Service's port.
pub const PORT: u16 = 80;
/// Its nodePort.
pub const NODE_PORT: u16 = 30080;
/// Its targetPort.
pub const TARGET: u16 = 8080;
/// The client's port.
pub const CLIENT_PORT: u16 = 50123;
/// The only SNAT port of the default world.
pub const SNAT_PORT: u16 = 40000;
/// The generation of every backend.
pub const GENERATION: u32 = 7;

/// What is configured: one Service with TCP and UDP on the same numbers, and what is around it.
#[derive(Clone, Debug)]
pub struct World {
    /// False before the agent has written CONFIG.
    pub is_configured: Configured,
    /// Bits of `config::flags`.
    pub config_flags: u32,
    /// SNAT port ranges.
    pub snat_ports: [[u16; 2]; 2],
    /// Whether pods are told by their addresses.
    pub detector: Detector,
    /// The Service's backends, in the order of their slots.
    pub backends: Vec<BackendSpec>,
    /// Bits of `frontend::flags` of both frontends.
    pub frontend_flags: u16,
    /// Sources that may use the Service, as roles with whole prefixes.
    pub source_ranges: Vec<Role>,
    /// What CLUSTER_IPS says of the ClusterIP.
    pub cluster_ip: u32,
    /// Known connections.
    pub flows: Vec<Flow>,
    /// Affinity timeout of the Service; 0: none.
    pub affinity_secs: u32,
    /// Who is bound to what.
    pub bindings: Vec<Binding>,
    /// Answers that each CPU may give in a second; 0: any number.
    pub answers_per_sec: u32,
    /// Answers that were given in this second.
    pub answers_given: u32,
    /// [`Config::new_flows_per_sec`](proxy_common::Config::new_flows_per_sec).
    pub new_flows_per_sec: u32,
    /// NEW_FLOWS: how many this CPU has entered in this second.
    pub new_flows_begun: u32,
    /// First fragments that were seen: source, destination, identification, protocol.
    pub fragments: Vec<(At, At, u16, u8)>,
    /// Connected sockets of this node: own address, peer, IP protocol.
    pub sockets: Vec<(At, At, u8)>,
}

/// Whether CONFIG is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Configured {
    /// It is.
    Yes,
    /// Programs run before the agent.
    No,
}

/// The local-traffic detector (S-083).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detector {
    /// None.
    None,
    /// ClusterCIDR: 10.1.0.0/16 or fd00:10:1::/48.
    Cidr,
    /// By the interfaces that lead to pods.
    Interface,
}

/// One backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendSpec {
    /// Its address.
    pub role: Role,
    /// A `BackendState` as number.
    pub state: u8,
    /// In the Cluster set.
    pub in_cluster: Membership,
    /// How often it has left the sets.
    pub departures: u8,
}

/// A client that is bound to a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// The client.
    pub client: Role,
    /// IP protocol.
    pub protocol: u8,
    /// Position of the backend.
    pub position: usize,
    /// Its generation when it was bound.
    pub generation: u32,
    /// Its departures when it was bound.
    pub departures: u8,
    /// Seconds since the last new flow.
    pub idle_secs: u32,
}

/// A client bound to the backend in a position, over TCP.
pub fn binding(client: Role, position: usize) -> Binding {
    Binding {
        client,
        protocol: proxy_common::protocol::TCP,
        position,
        generation: GENERATION,
        departures: 0,
        idle_secs: 0,
    }
}

/// Whether a backend is in a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Membership {
    /// In the set.
    In,
    /// Only an array element.
    Out,
}

impl Default for World {
    fn default() -> Self {
        Self {
            is_configured: Configured::Yes,
            config_flags: 0,
            snat_ports: [[SNAT_PORT, SNAT_PORT], [1, 0]],
            detector: Detector::Cidr,
            backends: vec![backend(Role::LocalBackend)],
            frontend_flags: proxy_common::frontend::flags::HAS_ENDPOINTS,
            source_ranges: Vec::new(),
            cluster_ip: cluster_ip::ACTIVE,
            flows: Vec::new(),
            affinity_secs: 0,
            bindings: Vec::new(),
            answers_per_sec: 0,
            answers_given: 0,
            new_flows_per_sec: 0,
            new_flows_begun: 0,
            fragments: Vec::new(),
            sockets: Vec::new(),
        }
    }
}

/// A usable backend at `role`.
pub fn backend(role: Role) -> BackendSpec {
    BackendSpec {
        role,
        state: proxy_common::BackendState::Active as u8,
        in_cluster: Membership::In,
        departures: 0,
    }
}

/// A world with one backend.
pub fn with_backend(role: Role) -> World {
    World {
        backends: vec![backend(role)],
        ..World::default()
    }
}

/// True for a backend on this node.
pub fn is_local(role: Role) -> bool {
    !matches!(
        role,
        Role::RemoteBackend | Role::OverlayBackend | Role::BareBackend | Role::LostBackend
    )
}

/// The route to an address, as the namespace of the kernel runs has it.
pub fn route<F: CaseFamily>(dst: &F::Addr) -> Option<u32> {
    if OWN.iter().any(|(role, _)| F::address(*role) == *dst) {
        return None;
    }
    let unroutable = [Role::Multicast, Role::Unspecified, UNREACHABLE[0]];
    if unroutable.iter().any(|role| F::address(*role) == *dst) {
        return None;
    }
    let found = ROUTES.iter().find(|(role, _)| F::address(*role) == *dst);
    Some(found.map_or(UPLINK, |(_, ifindex)| *ifindex))
}
