//! What the datapath tells monitors, on the host: to whom, how much, and what it says.

use std::cell::Cell;

use proxy_common::event::hook;
use proxy_common::{Address as _, Be16, Counter, Event, EventKind, Monitor, protocol};
use proxy_ebpf::socket::{Call, Dial, Outcome, Owner, Surroundings, dial};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Hook, V4};
use tests::cases::events::monitor;
use tests::cases::host::{self, HostEnvironment, NOW};
use tests::cases::packets::{self, ACK, syn, udp};
use tests::cases::world::*;
use tests::cases::{Case, case};

const CLIENT: At = (Role::Pod, CLIENT_PORT);
const VIP: At = (Role::ClusterIp, PORT);

/// What is told of a case while this is in MONITORS.
fn told(case: &Case, monitor: Option<Monitor>) -> Vec<Event> {
    let mut tables = case.world.tables::<V4>(1, NOW);
    tables.monitor = monitor;
    host::run_over(case, &tables, NOW);
    tables.written.into_inner().events
}

fn new_flow() -> Case {
    case("a new flow", &[], syn(CLIENT, VIP))
}

fn refused() -> Case {
    let world = World {
        backends: Vec::new(),
        frontend_flags: 0,
        ..World::default()
    };
    case("refused", &[], packets::tcp(CLIENT, VIP, packets::SYN)).world(world)
}

fn addr(role: Role) -> proxy_common::Addr6 {
    proxy_common::Addr6(V4::address(role).words())
}

#[test]
fn a_new_flow_is_told_with_both_ends() {
    let events = told(&new_flow(), Some(monitor(NOW)));
    let [event] = events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(event.kind, EventKind::NewFlow as u8);
    assert_eq!(event.reason, Counter::NewFlow as u32);
    assert_eq!(
        (event.src, event.dst),
        (addr(Role::Pod), addr(Role::ClusterIp))
    );
    let ports = [event.sport, event.dport, event.to_port].map(Be16::get);
    assert_eq!(ports, [CLIENT_PORT, PORT, TARGET]);
    assert!(
        [Role::LocalBackend, Role::RemoteBackend]
            .map(addr)
            .contains(&event.to)
    );
    assert!(event.frontend != 0 && event.backend != 0, "{event:?}");
    assert_eq!((event.hook, event.ifindex), (hook::INGRESS, POD));
    assert_eq!((event.family, event.protocol), (4, protocol::TCP));
}

#[test]
fn a_refusal_is_told_with_its_reason_and_flags() {
    let events = told(&refused(), Some(monitor(NOW)));
    let [event] = events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(event.kind, EventKind::Reject as u8);
    assert_eq!(event.reason, Counter::RejectNoEndpoint as u32);
    assert_eq!((event.sport.get(), event.dport.get()), (CLIENT_PORT, PORT));
    assert_eq!((event.tcp_flags, event.backend), (packets::SYN, 0));
}

#[test]
fn nothing_is_told_without_a_lease_or_of_other_kinds() {
    let all = monitor(NOW);
    let until = |until_secs| Monitor { until_secs, ..all };
    let of = |kind: EventKind| Monitor {
        kinds: kind.bit(),
        ..all
    };
    for (monitor, flows, refusals) in [
        (None, 0, 0),
        (Some(Monitor::default()), 0, 0),
        (Some(until(NOW)), 0, 0),
        (Some(until(NOW + 1)), 1, 1),
        (Some(of(EventKind::NewFlow)), 1, 0),
        (Some(of(EventKind::Reject)), 0, 1),
        (Some(of(EventKind::Drop)), 0, 0),
    ] {
        let counts = [new_flow(), refused()].map(|case| told(&case, monitor).len());
        assert_eq!(counts, [flows, refusals], "{monitor:?}");
    }
}

#[test]
fn one_flow_in_so_many_is_told() {
    let case = new_flow();
    let mut tables = case.world.tables::<V4>(1, NOW);
    tables.monitor = Some(Monitor {
        one_in: 8,
        ..monitor(NOW)
    });
    let env = HostEnvironment::new(&case.world, Hook::Ingress, POD, NOW);
    for port in 0..4096 {
        let from = (Role::Pod, CLIENT_PORT + port);
        let packet = Case {
            packet: udp(from, VIP),
            ..case.clone()
        };
        host::send(&tables, &env, packet.bytes::<V4>(), 0);
    }
    let count = tables.written.borrow().events.len();
    assert!((400..625).contains(&count), "{count} of 4096");
}

#[test]
fn packets_of_a_known_flow_are_not_told_of() {
    let case = new_flow();
    let tables = case.world.tables::<V4>(1, NOW);
    host::run_over(&case, &tables, NOW);
    let more = Case {
        packet: packets::tcp(CLIENT, VIP, ACK),
        ..case
    };
    for _ in 0..3 {
        host::run_over(&more, &tables, NOW);
    }
    assert_eq!(tables.written.borrow().events.len(), 1);
}

/// A process of the node.
struct Process(Cell<u32>);

impl Surroundings<V4> for Process {
    fn random(&self) -> u32 {
        self.0.get()
    }

    fn now_secs(&self, _hz: u32) -> u32 {
        NOW
    }

    fn listens(&self, _addr: &<V4 as proxy_ebpf::Family>::Addr, _: Be16, _: u8) -> bool {
        false
    }
}

#[test]
fn a_translated_call_is_told_once_for_each_socket() {
    let tables: HostTables<V4> = World::default().tables(1, NOW);
    let asked = Dial {
        cookie: 1,
        addr: V4::address(Role::ClusterIp),
        port: Be16::new(PORT),
        protocol: protocol::UDP,
        call: Call::Send,
        owner: Owner::Pod,
        source: <V4 as proxy_ebpf::Family>::Addr::UNSPECIFIED,
    };
    let process = Process(Cell::new(0));
    for _ in 0..3 {
        let outcome = dial(&tables, &process, &asked);
        assert!(matches!(outcome, Outcome::Translate(..)), "{outcome:?}");
    }
    let events = tables.written.into_inner().events;
    let [event] = events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(event.hook, hook::SEND);
    assert_eq!(event.reason, Counter::SocketSent as u32);
    assert_eq!(
        (event.dst, event.dport.get()),
        (addr(Role::ClusterIp), PORT)
    );
    assert_eq!(
        (event.to, event.to_port.get()),
        (addr(Role::LocalBackend), TARGET)
    );
    assert_eq!(
        (event.src, event.ifindex),
        (proxy_common::Addr6::UNSPECIFIED, 0)
    );
}
