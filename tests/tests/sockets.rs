//! What the socket hooks decide, on the host: who is translated, and who is left to the packet
//! path (section 17).

use std::cell::Cell;

use proxy_common::config::flags::{
    LOOPBACK_NODE_PORTS4, LOOPBACK_NODE_PORTS6, MASQUERADE_ALL, SOCKET_UDP_CONNECTED,
};
use proxy_common::frontend::flags::{HAS_ENDPOINTS, LOCAL_POLICY, SOURCE_RANGES_NODE};
use proxy_common::{Address, Be16, protocol};
use proxy_ebpf::socket::{Call, Dial, Outcome, Owner, Surroundings, dial};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{V4, V6};
use tests::cases::world::*;
use tests::rules;

/// Seconds of the clock.
const NOW: u32 = 1_000_000;

/// A process, its node, and chance.
struct Process<F: CaseFamily> {
    tables: HostTables<F>,
    /// Low numbers pick the first backend.
    random: Cell<u32>,
    /// It has a socket that listens on every backend's address.
    listens: bool,
}

impl<F: CaseFamily> Surroundings<F> for Process<F> {
    fn random(&self) -> u32 {
        self.random.get()
    }

    fn now_secs(&self, _hz: u32) -> u32 {
        NOW
    }

    fn listens(&self, _addr: &F::Addr, port: Be16, _protocol: u8) -> bool {
        self.listens && port == Be16::new(TARGET)
    }
}

/// Picks the first backend; [`LAST`] the last.
const FIRST: u32 = 0;
const LAST: u32 = u32::MAX;

impl<F: CaseFamily> Process<F> {
    fn new(world: &World) -> Self {
        Self {
            tables: world.tables(1, NOW),
            random: Cell::new(FIRST),
            listens: false,
        }
    }

    fn dial(&self, owner: Owner, at: At, change: impl FnOnce(&mut Dial<F>)) -> Answer {
        let mut asked = Dial {
            cookie: 1,
            addr: F::address(at.0),
            port: Be16::new(at.1),
            protocol: protocol::TCP,
            call: Call::Connect,
            owner,
            source: F::Addr::UNSPECIFIED,
        };
        change(&mut asked);
        match dial(&self.tables, self, &asked) {
            Outcome::Leave => Answer::Leave,
            Outcome::Refuse(_) => Answer::Refuse,
            Outcome::Drop(_) => Answer::Drop,
            Outcome::Translate(addr, port) => {
                assert_eq!(port, Be16::new(TARGET));
                let roles = [Role::LocalBackend, Role::RemoteBackend, Role::Node];
                let role = roles.into_iter().find(|role| F::address(*role) == addr);
                Answer::To(role.expect("a backend of the world"))
            }
        }
    }

    fn connects(&self, owner: Owner, at: At) -> Answer {
        self.dial(owner, at, |_| ())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Leave,
    Refuse,
    Drop,
    To(Role),
}
use Answer::*;

const VIP: At = (Role::ClusterIp, PORT);
const LOAD_BALANCER: At = (Role::Vip, PORT);
const NODE_AT: At = (Role::Node, NODE_PORT);

/// Two backends, the first in a pod of the node.
fn with_two() -> World {
    World {
        backends: vec![backend(Role::LocalBackend), backend(Role::RemoteBackend)],
        ..World::default()
    }
}

/// Two backends, the first on the node itself.
fn with_own() -> World {
    World {
        backends: vec![backend(Role::Node), backend(Role::RemoteBackend)],
        ..World::default()
    }
}

fn both(test: impl Fn(&dyn Fn(&World) -> Box<dyn Dials>)) {
    test(&|world| Box::new(Process::<V4>::new(world)));
    test(&|world| Box::new(Process::<V6>::new(world)));
}

/// A process of either family.
trait Dials {
    fn connects(&self, owner: Owner, at: At) -> Answer;
    fn udp(&self, owner: Owner, at: At, call: Call) -> Answer;
    fn bound_to(&self, source: Role, at: At) -> Answer;
    fn loopback(&self) -> Answer;
    fn by_chance(&self, random: u32);
    fn listen(&mut self);
    fn bindings(&self) -> usize;
    /// What sockets remember, one thing after the other.
    fn memories(&self) -> Vec<Vec<u8>>;
    fn evict(&self, memory: &[u8]);
}

impl<F: CaseFamily> Dials for Process<F> {
    fn connects(&self, owner: Owner, at: At) -> Answer {
        self.connects(owner, at)
    }

    fn udp(&self, owner: Owner, at: At, call: Call) -> Answer {
        self.dial(owner, at, |asked| {
            asked.protocol = protocol::UDP;
            asked.call = call;
        })
    }

    fn bound_to(&self, source: Role, at: At) -> Answer {
        self.dial(Owner::Node, at, |asked| asked.source = F::address(source))
    }

    fn loopback(&self) -> Answer {
        let octets = match F::VERSION {
            4 => vec![127, 0, 0, 1],
            _ => [vec![0; 15], vec![1]].concat(),
        };
        self.dial(Owner::Node, NODE_AT, |asked| {
            asked.addr = bytemuck::pod_read_unaligned(&octets);
        })
    }

    fn by_chance(&self, random: u32) {
        self.random.set(random);
    }

    fn listen(&mut self) {
        self.listens = true;
    }

    fn memories(&self) -> Vec<Vec<u8>> {
        self.tables
            .written
            .borrow()
            .sockets
            .keys()
            .cloned()
            .collect()
    }

    fn evict(&self, memory: &[u8]) {
        self.tables.written.borrow_mut().sockets.remove(memory);
    }

    fn bindings(&self) -> usize {
        self.tables.written.borrow().affinity.len()
    }
}

#[test]
fn pod_that_would_get_itself_is_left_to_the_packet_path() {
    rules(&["S-094", "S-200"]);
    both(|process| {
        let mut process = process(&World::default());
        assert_eq!(process.connects(Owner::Pod, VIP), To(Role::LocalBackend));
        process.listen();
        assert_eq!(process.connects(Owner::Pod, VIP), Leave);
        assert_eq!(process.udp(Owner::Pod, VIP, Call::Send), Leave);
        // The node is not its own pod.
        assert_eq!(process.connects(Owner::Node, VIP), To(Role::LocalBackend));
    });
    both(|process| {
        let mut process = process(&with_backend(Role::RemoteBackend));
        process.listen();
        assert_eq!(process.connects(Owner::Pod, VIP), To(Role::RemoteBackend));
    });
}

#[test]
fn pod_is_translated_only_where_it_keeps_its_address() {
    rules(&["S-080", "S-092", "S-204", "S-200"]);
    both(|process| {
        let plain = process(&World::default());
        assert_eq!(plain.connects(Owner::Pod, NODE_AT), Leave);
        assert_eq!(plain.connects(Owner::Pod, LOAD_BALANCER), Leave);
        let all = World {
            config_flags: MASQUERADE_ALL,
            ..World::default()
        };
        assert_eq!(process(&all).connects(Owner::Pod, VIP), Leave);
    });
}

#[test]
fn node_ports_of_other_nodes_are_left_alone() {
    rules(&["S-084", "S-204"]);
    both(|process| {
        let process = process(&World::default());
        let there = (Role::Router, NODE_PORT);
        assert_eq!(process.connects(Owner::Node, there), Leave);
        assert_eq!(process.connects(Owner::Pod, there), Leave);
        assert_eq!(
            process.connects(Owner::Node, NODE_AT),
            To(Role::LocalBackend)
        );
    });
}

#[test]
fn backends_on_own_addresses_are_served_at_the_socket() {
    rules(&["S-200", "S-205", "S-207"]);
    let sticky = World {
        affinity_secs: 60,
        ..with_own()
    };
    both(|process| {
        for world in [with_own(), sticky.clone()] {
            let own = process(&world);
            // Affinity leads the same process to one backend, whichever it is.
            let first = own.udp(Owner::Node, VIP, Call::Connect);
            let is_sticky = world.affinity_secs != 0;
            assert_eq!(own.bindings(), usize::from(is_sticky));
            assert!(matches!(first, To(Role::Node) | Leave), "{first:?}");
            if is_sticky {
                own.by_chance(LAST);
                assert_eq!(own.udp(Owner::Node, VIP, Call::Connect), first);
                continue;
            }
            assert_eq!(first, To(Role::Node));
            own.by_chance(LAST);
            assert_eq!(own.udp(Owner::Node, VIP, Call::Connect), Leave);
            assert_eq!(own.connects(Owner::Node, VIP), To(Role::RemoteBackend));
        }
    });
}

#[test]
fn affinity_is_the_packet_paths_but_for_own_addresses() {
    rules(&["S-101", "S-103", "S-202"]);
    let world = World {
        backends: vec![backend(Role::LocalBackend), backend(Role::RemoteBackend)],
        affinity_secs: 60,
        bindings: vec![binding(Role::Node, 1)],
        ..World::default()
    };
    both(|process| {
        let bound = process(&world);
        assert_eq!(bound.connects(Owner::Pod, VIP), Leave);
        assert_eq!(bound.connects(Owner::Node, VIP), Leave);
        // The dialed own address is the client.
        assert_eq!(
            bound.connects(Owner::Node, NODE_AT),
            To(Role::RemoteBackend)
        );
        assert_eq!(bound.bindings(), 1);
        let unbound = process(&World {
            bindings: Vec::new(),
            ..world.clone()
        });
        let first = unbound.connects(Owner::Node, NODE_AT);
        assert!(matches!(first, To(_)), "{first:?}");
        for random in [FIRST, LAST] {
            unbound.by_chance(random);
            assert_eq!(unbound.connects(Owner::Node, NODE_AT), first);
        }
    });
}

#[test]
fn loopback_node_ports_have_one_client_and_the_policy() {
    rules(&["S-103", "S-119d"]);
    let world = World {
        config_flags: LOOPBACK_NODE_PORTS4 | LOOPBACK_NODE_PORTS6,
        backends: vec![backend(Role::RemoteBackend), backend(Role::LocalBackend)],
        affinity_secs: 60,
        ..World::default()
    };
    let local = World {
        frontend_flags: HAS_ENDPOINTS | LOCAL_POLICY,
        ..world.clone()
    };
    let nowhere = World {
        backends: vec![backend(Role::RemoteBackend)],
        ..local.clone()
    };
    let off = World {
        config_flags: 0,
        ..world.clone()
    };
    both(|process| {
        let any = process(&world);
        let first = any.loopback();
        assert!(matches!(first, To(_)), "{first:?}");
        assert_eq!(any.loopback(), first);
        assert_eq!(any.bindings(), 1);
        assert_eq!(process(&local).loopback(), To(Role::LocalBackend));
        assert_eq!(process(&nowhere).loopback(), Drop);
        assert_eq!(process(&off).loopback(), Leave);
    });
}

#[test]
fn source_ranges_hold_at_the_socket_for_own_addresses() {
    rules(&["S-112", "S-113", "S-114", "S-203"]);
    let world = |flags, ranges: &[Role]| World {
        frontend_flags: HAS_ENDPOINTS | flags,
        source_ranges: ranges.to_vec(),
        ..World::default()
    };
    both(|process| {
        let closed = process(&world(0, &[Role::Client]));
        assert_eq!(closed.connects(Owner::Node, LOAD_BALANCER), Drop);
        assert_eq!(closed.connects(Owner::Pod, LOAD_BALANCER), Leave);
        let open = process(&world(0, &[Role::Vip]));
        let served = To(Role::LocalBackend);
        assert_eq!(open.connects(Owner::Node, LOAD_BALANCER), served);
        let node = process(&world(SOURCE_RANGES_NODE, &[Role::Node]));
        assert_eq!(node.connects(Owner::Node, LOAD_BALANCER), served);
        assert_eq!(node.bound_to(Role::Node, LOAD_BALANCER), served);
        assert_eq!(node.bound_to(Role::PodGateway, LOAD_BALANCER), Drop);
    });
}

#[test]
fn sockets_with_a_source_of_their_own_are_left_to_the_packet_path() {
    rules(&["S-088", "S-200"]);
    both(|process| {
        let own = process(&with_own());
        assert_eq!(own.bound_to(Role::PodGateway, VIP), To(Role::Node));
        own.by_chance(LAST);
        assert_eq!(own.bound_to(Role::PodGateway, VIP), Leave);
    });
}

#[test]
fn connected_udp_is_translated_where_it_is_asked_for() {
    rules(&["S-205"]);
    let asked = World {
        config_flags: SOCKET_UDP_CONNECTED,
        ..World::default()
    };
    both(|process| {
        let plain = process(&World::default());
        for owner in [Owner::Node, Owner::Pod] {
            assert_eq!(plain.udp(owner, VIP, Call::Connect), Leave);
            let asked = process(&asked);
            let served = To(Role::LocalBackend);
            assert_eq!(asked.udp(owner, VIP, Call::Connect), served);
        }
    });
}

#[test]
fn datagrams_of_one_socket_stay_together() {
    rules(&["S-205"]);
    both(|process| {
        let sender = process(&with_two());
        for random in [FIRST, LAST] {
            sender.by_chance(random);
            let answer = sender.udp(Owner::Node, VIP, Call::Send);
            assert_eq!(answer, To(Role::LocalBackend));
        }
    });
}

#[test]
fn what_a_socket_remembers_is_remembered_again_after_it_was_evicted() {
    rules(&["S-205"]);
    both(|process| {
        let sender = process(&with_two());
        let send = || sender.udp(Owner::Node, VIP, Call::Send);
        assert_eq!(send(), To(Role::LocalBackend));
        let remembered = sender.memories();
        assert_eq!(remembered.len(), 2, "both directions");
        for memory in &remembered {
            sender.evict(memory);
            assert_eq!(send(), To(Role::LocalBackend));
            assert_eq!(sender.memories(), remembered);
        }
    });
}

#[test]
fn services_without_endpoints_refuse() {
    rules(&["S-105", "S-200", "S-201"]);
    let world = World {
        backends: Vec::new(),
        frontend_flags: 0,
        ..World::default()
    };
    both(|process| {
        let empty = process(&world);
        assert_eq!(empty.connects(Owner::Pod, VIP), Refuse);
        assert_eq!(empty.connects(Owner::Node, NODE_AT), Refuse);
        // Policy Local without a local endpoint: the packet path drops.
        let local = process(&World {
            frontend_flags: HAS_ENDPOINTS | LOCAL_POLICY,
            ..world.clone()
        });
        assert_eq!(local.connects(Owner::Pod, VIP), Leave);
    });
}
