//! Random plans over small pools, so that everything meets everything.

mod objects;

use std::net::{IpAddr, SocketAddr};

use proxy_ebpf::{V4, V6};
use proxy_userspace::family::IpFamily;
use proxy_userspace::objects::{Kind, Object, ObjectName};

use self::objects::{node, service, service_cidr, settings, slice};
use super::plan::{Action, Plan, Sent, Tcp, Trouble};
use crate::cases::world::{CaseFamily, LOCAL, OVERLAY, POD, Role, UPLINK};
use crate::oracle::Protocol;
use crate::oracle::decide::From;

const NAMESPACES: [&str; 2] = ["a", "b"];
const NAMES: [&str; 3] = ["x", "y", "3z"];
const CLUSTER_IPS: u8 = 4;
const ACTIONS: usize = 90;
/// Targets that are dialed again and again.
const TARGETS_MAX: usize = 40;
/// Services with session affinity, of a hundred.
const AFFINITY_PERCENT: usize = 30;

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

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True so many times of a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
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
    match random.below(23) {
        20 => Action::Meddle(random.next()),
        21 => Action::Evict,
        22 => Action::Stale(match random.chance(50) {
            true => service(random, namespace, name),
            false => slice(random, namespace, name),
        }),
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
