//! Random plans over small pools, so that everything meets everything.

use std::net::{IpAddr, SocketAddr};

use proxy_ebpf::{V4, V6};
use proxy_userspace::family::IpFamily;
use proxy_userspace::objects::*;
use proxy_userspace::settings::*;

use super::plan::{Action, Plan, Sent, Tcp, Trouble};
use crate::cases::world::{CaseFamily, LOCAL, OVERLAY, POD, Role, UPLINK};
use crate::oracle::Protocol;
use crate::oracle::decide::From;

const NAMESPACES: [&str; 2] = ["a", "b"];
const NAMES: [&str; 3] = ["x", "y", "3z"];
const CLUSTER_IPS: u8 = 4;
const NODE_PORTS: [u16; 4] = [0, 30080, 30081, 80];
const NUMBERS: [u16; 5] = [80, 80, 80, 81, 30080];
const TARGETS: [u16; 3] = [8080, 9090, 80];
const PORT_NAMES: [&str; 3] = ["http", "dns", ""];
const PROTOCOLS: [&str; 6] = ["TCP", "TCP", "TCP", "UDP", "UDP", "SCTP"];
const STAMPS: [&str; 3] = [
    "2026-01-01T00:00:00Z",
    "2026-01-02T00:00:00Z",
    "2026-01-03T00:00:00Z",
];
const ACTIONS: usize = 90;
/// Targets that are dialed again and again.
const TARGETS_MAX: usize = 40;
/// Services with session affinity, of a hundred.
const AFFINITY_PERCENT: usize = 0;

/// A sequence of numbers that a seed determines (SplitMix64, Steele and others 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True so many times of a hundred.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// What may be dialed.
type Target = (IpAddr, u16, Protocol);

/// The plan of a seed.
pub fn plan(seed: u64) -> Plan {
    let random = &mut Random(seed);
    let settings = settings(random);
    let mut targets = Vec::new();
    let mut actions = vec![Action::Apply(node(random)), Action::Apply(service_cidr(0))];
    for _ in 0..5 {
        let (namespace, name) = (random.pick(&NAMESPACES), random.pick(&NAMES));
        let service = Action::Apply(service(random, namespace, name));
        note_targets(&service, &mut targets);
        actions.push(service);
        actions.push(Action::Apply(slice(random, namespace, name)));
        actions.push(Action::Apply(slice(random, namespace, name)));
    }
    actions.push(Action::Sync(Trouble::None));
    for _ in 0..ACTIONS {
        let action = action(random, &targets);
        note_targets(&action, &mut targets);
        actions.push(action);
        if random.chance(15) {
            actions.push(Action::Sync(trouble(random)));
        }
    }
    Plan { settings, actions }
}

/// Remembers what an applied Service offers, or may offer.
fn note_targets(action: &Action, targets: &mut Vec<Target>) {
    let Action::Apply(Object::Service(service)) = action else {
        return;
    };
    let ingress = service.status.load_balancer.ingress.iter();
    let ingress = ingress.filter_map(|entry| entry.ip.as_ref());
    let texts = service.spec.cluster_ips.iter().chain(ingress);
    let texts = texts.chain(&service.spec.external_ips);
    let addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    for port in &service.spec.ports {
        let protocol = Protocol::from_api(port.protocol.as_deref()).unwrap_or(Protocol::Tcp);
        targets.extend(addresses.iter().map(|addr| (*addr, port.port, protocol)));
        if port.node_port != 0 {
            let nodes = [true, false].map(|is_v4| addr(Role::Node, is_v4));
            targets.extend(nodes.map(|addr| (addr, port.node_port, protocol)));
        }
    }
    let surplus = targets.len().saturating_sub(TARGETS_MAX);
    targets.drain(..surplus);
}

fn action(random: &mut Random, targets: &[Target]) -> Action {
    let tcp = random.pick(&[Tcp::Data, Tcp::Data, Tcp::Syn, Tcp::Fin, Tcp::Rst]);
    let tcp_reply = random.pick(&[Tcp::Syn, Tcp::Data, Tcp::Data, Tcp::Fin, Tcp::Rst]);
    match random.below(100) {
        0..45 => Action::Send(sent(random, targets)),
        45..58 => Action::Again(random.below(64), tcp),
        58..72 => Action::Reply(random.below(64), tcp_reply),
        72..76 => Action::Advance(random.pick(&[1, 5, 40, 40, 130, 200, 3600, 100_000])),
        76..80 => Action::Restart(random.chance(30).then(|| Box::new(settings(random)))),
        _ => change(random),
    }
}

fn change(random: &mut Random) -> Action {
    let (namespace, name) = (random.pick(&NAMESPACES), random.pick(&NAMES));
    match random.below(20) {
        0..6 => Action::Apply(service(random, namespace, name)),
        6..14 => Action::Apply(slice(random, namespace, name)),
        14 => Action::Delete(Kind::Service, object_name(namespace, name)),
        15 => {
            let name = slice_name(name, random.below(4));
            Action::Delete(Kind::EndpointSlice, object_name(namespace, &name))
        }
        16 => Action::Apply(node(random)),
        17 => {
            let index = random.below(3);
            if random.chance(50) {
                Action::Apply(service_cidr(index))
            } else {
                Action::Delete(Kind::ServiceCidr, object_name("", &format!("cidr{index}")))
            }
        }
        18 => Action::Relist,
        _ => {
            let vips = vips(random);
            Action::Addresses(vips)
        }
    }
}

fn trouble(random: &mut Random) -> Trouble {
    match random.below(4) {
        0 => Trouble::Failing(random.next()),
        1 => Trouble::Killed(random.below(20) as u64),
        _ => Trouble::None,
    }
}

/// Load balancers' addresses that are bound on this node's loopback interface.
fn vips(random: &mut Random) -> Vec<IpAddr> {
    let count = random.below(3);
    (0..count).map(|_| vip(random.below(2))).collect()
}

fn vip(index: usize) -> IpAddr {
    let texts = [
        "203.0.113.80",
        "2001:db8:f::80",
        "203.0.113.81",
        "2001:db8:f::81",
    ];
    texts[index % 4].parse().expect("a constant")
}

fn object_name(namespace: &str, name: &str) -> ObjectName {
    ObjectName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn slice_name(service: &str, index: usize) -> String {
    format!("{service}-{index}")
}

fn settings(random: &mut Random) -> Settings {
    let cidr = |text: &str| text.parse().expect("a constant");
    let (v4, v6) = (cidr("10.1.0.0/16"), cidr("fd00:10:1::/48"));
    let interfaces = [
        DetectLocalMode::BridgeInterface("dev20".into()),
        DetectLocalMode::InterfaceNamePrefix("dev2".into()),
    ];
    let detect_local = match random.below(8) {
        0 => DetectLocalMode::None,
        1 => DetectLocalMode::NodeCidr,
        2 => random.pick(&interfaces),
        _ => DetectLocalMode::ClusterCidr,
    };
    let entry = [
        NodePortAddress::Primary,
        NodePortAddress::All,
        NodePortAddress::Localhost,
        NodePortAddress::Cidr(cidr("198.51.100.0/24")),
        NodePortAddress::Cidr(cidr("10.1.1.0/24")),
        NodePortAddress::Cidr(cidr("2001:db8:1::/48")),
        NodePortAddress::Cidr(cidr("0.0.0.0/0")),
    ];
    let count = random.below(3);
    Settings {
        node_name: if random.chance(95) { "n1" } else { "" }.into(),
        node_port_addresses: (0..count).map(|_| random.pick(&entry)).collect(),
        masquerade: random.pick(&[Masquerade::Needed, Masquerade::Always]),
        masquerade_all: random.chance(15),
        detect_local,
        cluster_cidrs: random.pick(&[vec![v4, v6], vec![v4, v6], vec![v4], vec![v6], vec![]]),
        external_ips: random.pick(&[ExternalIps::Serve, ExternalIps::Serve, ExternalIps::Ignore]),
        keep_unallocated: random.chance(10),
        hz: 1,
        ..Settings::default()
    }
}

fn node(random: &mut Random) -> Object {
    let mut node = Node::default();
    node.metadata.name = "n1".into();
    if let Some(zone) = random.pick(&[None, Some("z1"), Some("z1"), Some("z2")]) {
        let label = "topology.kubernetes.io/zone".to_owned();
        node.metadata.labels.insert(label, zone.into());
    }
    let cidrs = [
        vec!["10.1.1.0/24", "fd00:10:1:1::/64"],
        vec!["10.1.1.0/24"],
        vec![],
    ];
    node.spec.pod_cidrs = random.pick(&cidrs).into_iter().map(String::from).collect();
    let address = |type_: &str, address: String| NodeAddress {
        type_: type_.into(),
        address,
    };
    let all = [
        address("ExternalIP", text(Role::PodGateway, random.chance(50))),
        address("InternalIP", text(Role::Node, true)),
        address("InternalIP", text(Role::Node, false)),
        address("Hostname", "n1".into()),
    ];
    node.status.addresses = all.into_iter().filter(|_| random.chance(80)).collect();
    Object::Node(node)
}

fn service_cidr(index: usize) -> Object {
    let cidrs = match index {
        0 => vec!["10.96.0.0/16", "fd00:10:96::/112"],
        1 => vec!["10.97.0.0/24"],
        _ => vec!["10.96.0.0/16"],
    };
    let mut object = ServiceCidr::default();
    object.metadata.name = format!("cidr{index}");
    object.spec.cidrs = cidrs.into_iter().map(String::from).collect();
    Object::ServiceCidr(object)
}

fn text(role: Role, is_v4: bool) -> String {
    addr(role, is_v4).to_string()
}

fn addr(role: Role, is_v4: bool) -> IpAddr {
    if is_v4 {
        V4::address(role).to_ip()
    } else {
        V6::address(role).to_ip()
    }
}

fn cluster_ip(index: u8, is_v4: bool) -> String {
    // One is outside of every ServiceCIDR (S-079).
    match (index, is_v4) {
        (0, true) => "10.99.0.10".into(),
        (0, false) => "fd00:10:99::10".into(),
        (_, true) => format!("10.96.0.{}", 10 + index),
        (_, false) => format!("fd00:10:96::{:x}", 16 + index),
    }
}

fn service(random: &mut Random, namespace: &str, name: &str) -> Object {
    let mut service = Service::default();
    service.metadata = Metadata {
        namespace: namespace.into(),
        name: name.into(),
        creation_timestamp: Some(random.pick(&STAMPS).into()),
        ..Metadata::default()
    };
    if random.chance(4) {
        let label = "service.kubernetes.io/service-proxy-name".to_owned();
        service.metadata.labels.insert(label, String::new());
    }
    let types = ["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"];
    let type_ = match random.chance(3) {
        true => "ExternalName",
        false => random.pick(&types),
    };
    // Mostly an address of its own, sometimes another Service's (S-034).
    let own = NAMES.iter().position(|found| *found == name).unwrap_or(0) as u8;
    let index = match random.chance(80) {
        true => own + u8::from(namespace == "b"),
        false => random.below(CLUSTER_IPS.into()) as u8,
    };
    let families = random.pick(&[&[true][..], &[false], &[true, false], &[false, true]]);
    let spec = &mut service.spec;
    spec.type_ = random
        .pick(&[Some(type_.to_owned()), None])
        .filter(|_| type_ == "ClusterIP");
    spec.type_ = spec.type_.take().or(Some(type_.to_owned()));
    spec.cluster_ips = families
        .iter()
        .map(|is_v4| cluster_ip(index, *is_v4))
        .collect();
    spec.cluster_ip = spec.cluster_ips.first().cloned();
    let names = families
        .iter()
        .map(|is_v4| if *is_v4 { "IPv4" } else { "IPv6" });
    spec.ip_families = names.map(String::from).collect();
    if random.chance(5) {
        spec.ip_families.clear();
    }
    spec.ports = ports(random);
    let policy = [None, Some("Cluster".to_owned()), Some("Local".to_owned())];
    spec.internal_traffic_policy = random.pick(&policy);
    spec.external_traffic_policy = random.pick(&policy);
    external(random, &mut service);
    affinity(random, &mut service.spec);
    Object::Service(service)
}

fn ports(random: &mut Random) -> Vec<ServicePortSpec> {
    let mut ports: Vec<ServicePortSpec> = Vec::new();
    for _ in 0..=random.below(3) {
        let protocol = random.pick(&PROTOCOLS);
        let port = ServicePortSpec {
            name: random.pick(&["http", "http", "dns", ""]).into(),
            protocol: Some(protocol.into()).filter(|_| protocol != "TCP" || random.chance(50)),
            port: random.pick(&NUMBERS),
            node_port: random.pick(&NODE_PORTS),
        };
        // The API refuses two ports of one name, number or nodePort in one Service.
        let clashes = ports.iter().any(|other| {
            other.name == port.name
                || other.port == port.port
                || (other.node_port != 0 && other.node_port == port.node_port)
        });
        if !clashes {
            ports.push(port);
        }
    }
    ports
}

/// Addresses from outside, and who may use them.
fn external(random: &mut Random, service: &mut Service) {
    let externals = [
        "203.0.113.80".to_owned(),
        "203.000.113.090".to_owned(),
        "2001:db8:f::90".to_owned(),
        text(Role::Node, true),
        text(Role::Node, false),
        String::new(),
        "bogus".to_owned(),
    ];
    if random.chance(40) {
        let count = random.below(3);
        service.spec.external_ips = (0..count).map(|_| random.pick(&externals)).collect();
    }
    if random.chance(60) {
        let count = random.below(4);
        let ingress = (0..count).map(|_| LoadBalancerIngress {
            ip: match random.below(12) {
                0 => None,
                1 => Some(text(Role::Node, true)),
                2 => Some("203.0.113.90".into()),
                _ => Some(vip(random.below(4)).to_string()),
            },
            ip_mode: random.pick(&[None, Some("VIP".to_owned()), Some("Proxy".to_owned())]),
        });
        service.status.load_balancer.ingress = ingress.collect();
    }
    if random.chance(40) {
        let ranges = [
            " 192.0.2.0/24",
            "192.0.2.10/32 ",
            "10.1.0.0/16",
            "198.51.100.0/024",
            "2001:db8:c::/48",
            "2001:db8:1::/64",
            "fd00:10:1:1::/64",
            "0.0.0.0/0",
            "::/0",
        ];
        let count = random.below(3);
        let picked = (0..count).map(|_| random.pick(&ranges).to_owned());
        service.spec.load_balancer_source_ranges = picked.collect();
    }
}

fn affinity(random: &mut Random, spec: &mut ServiceSpec) {
    if random.chance(AFFINITY_PERCENT) {
        spec.session_affinity = Some("ClientIP".into());
        let timeout = random.pick(&[None, Some(30), Some(100)]);
        spec.session_affinity_config = timeout.map(|timeout_seconds| SessionAffinityConfig {
            client_ip: Some(ClientIpConfig {
                timeout_seconds: Some(timeout_seconds),
            }),
        });
    }
}

/// Where endpoints are: address and node.
const PLACES: [(Role, &str); 6] = [
    (Role::Pod, "n1"),
    (Role::LocalBackend, "n1"),
    (Role::RemoteBackend, "n2"),
    (Role::OverlayBackend, "n3"),
    // Host-network pods.
    (Role::Node, "n1"),
    (Role::Foreign, "n2"),
];

fn slice(random: &mut Random, namespace: &str, service: &str) -> Object {
    let mut slice = EndpointSlice::default();
    slice.metadata.namespace = namespace.into();
    slice.metadata.name = slice_name(service, random.below(4));
    let label = "kubernetes.io/service-name".to_owned();
    slice.metadata.labels.insert(label, service.into());
    if random.chance(4) {
        let label = "service.kubernetes.io/headless".to_owned();
        slice.metadata.labels.insert(label, String::new());
    }
    let is_v4 = random.chance(60);
    slice.address_type = if is_v4 { "IPv4" } else { "IPv6" }.into();
    if random.chance(3) {
        slice.address_type = "FQDN".into();
    }
    for name in PORT_NAMES {
        let entry = EndpointPort {
            name: Some(name.to_owned()).filter(|_| random.chance(95)),
            protocol: random.pick(&[None, Some("TCP".to_owned())]),
            port: Some(random.pick(&TARGETS)).filter(|_| random.chance(95)),
        };
        slice.ports.push(entry.clone());
        if random.chance(70) {
            let protocol = Some(random.pick(&["UDP", "UDP", "SCTP"]).to_owned());
            slice.ports.push(EndpointPort { protocol, ..entry });
        }
    }
    let count = random.pick(&[0, 1, 1, 2, 2, 3]);
    slice.endpoints = (0..count).map(|_| endpoint(random, is_v4)).collect();
    Object::EndpointSlice(slice)
}

fn endpoint(random: &mut Random, is_v4: bool) -> Endpoint {
    let (role, node) = random.pick(&PLACES);
    let flag = |random: &mut Random, percent| {
        let is_set = random.chance(percent);
        Some(is_set).filter(|_| random.chance(70))
    };
    let is_hinted = random.chance(60);
    let hints = |random: &mut Random, names: &[&str]| -> Vec<HintName> {
        let count = random.below(3);
        let names = (0..count).map(|_| random.pick(names));
        names.map(|name| HintName { name: name.into() }).collect()
    };
    Endpoint {
        addresses: vec![text(role, is_v4)],
        conditions: EndpointConditions {
            ready: flag(random, 75),
            serving: flag(random, 75),
            terminating: flag(random, 30),
        },
        node_name: Some(node.to_owned()).filter(|_| random.chance(95)),
        hints: is_hinted.then(|| EndpointHints {
            for_zones: hints(random, &["z1", "z2", "z1"]),
            for_nodes: hints(random, &["n1", "n2", "n1"]),
        }),
    }
}

fn sent(random: &mut Random, targets: &[Target]) -> Sent {
    let (dst, dport, protocol) = if random.chance(80) && !targets.is_empty() {
        random.pick(targets)
    } else {
        let protocol = random.pick(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Echo]);
        let is_v4 = random.chance(60);
        let dport = random.pick(&[80, 81, 30080, 30081]);
        (destination(random, is_v4), dport, protocol)
    };
    let is_v4 = dst.is_ipv4();
    let (from, role, ifindex) = random.pick(&[
        (From::Pod, Role::Pod, POD),
        (From::Pod, Role::LocalBackend, LOCAL),
        (From::External, Role::Client, UPLINK),
        (From::External, Role::Client, UPLINK),
        (From::External, Role::DarkClient, UPLINK),
        (From::External, Role::RemoteBackend, UPLINK),
        (From::External, Role::Foreign, UPLINK),
        (From::External, Role::OverlayBackend, OVERLAY),
        (From::Node, Role::Node, UPLINK),
        (From::Node, Role::PodGateway, UPLINK),
    ]);
    let src = match from {
        From::Node if random.chance(20) => vip(usize::from(!is_v4)),
        _ => addr(role, is_v4),
    };
    let (sport, dport) = match protocol {
        Protocol::Echo => (0, 0),
        _ => (40_000 + random.below(3) as u16, dport),
    };
    Sent {
        src: SocketAddr::new(src, sport),
        dst: SocketAddr::new(dst, dport),
        protocol,
        tcp: random.pick(&[Tcp::Syn, Tcp::Syn, Tcp::Syn, Tcp::Syn, Tcp::Data, Tcp::Rst]),
        from,
        ifindex,
    }
}

fn destination(random: &mut Random, is_v4: bool) -> IpAddr {
    let parse = |text: &str| text.parse().expect("a constant");
    match random.below(20) {
        0..9 => {
            let index = random.below(CLUSTER_IPS.into()) as u8;
            parse(&cluster_ip(index, is_v4))
        }
        9..12 => vip(2 * random.below(2) + usize::from(!is_v4)),
        12 if is_v4 => parse("203.0.113.90"),
        12 => parse("2001:db8:f::90"),
        13..16 => addr(Role::Node, is_v4),
        16 => addr(Role::PodGateway, is_v4),
        17 => addr(Role::Unallocated, is_v4),
        18 if is_v4 => parse("10.97.0.7"),
        _ => addr(Role::Foreign, is_v4),
    }
}
