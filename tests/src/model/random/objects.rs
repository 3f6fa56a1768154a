//! Random objects and settings.

use proxy_userspace::objects::*;
use proxy_userspace::settings::*;

use super::{AFFINITY_PERCENT, CLUSTER_IPS, NAMES, Random, addr, cluster_ip, slice_name, vip};
use crate::cases::world::Role;

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

pub(super) fn settings(random: &mut Random) -> Settings {
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

pub(super) fn node(random: &mut Random) -> Object {
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

pub(super) fn service_cidr(index: usize) -> Object {
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

pub(super) fn service(random: &mut Random, namespace: &str, name: &str) -> Object {
    let metadata = Metadata {
        namespace: namespace.into(),
        name: name.into(),
        creation_timestamp: Some(random.pick(&STAMPS).into()),
        ..Metadata::default()
    };
    let mut service = Service {
        metadata,
        ..Service::default()
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

pub(super) fn slice(random: &mut Random, namespace: &str, service: &str) -> Object {
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
