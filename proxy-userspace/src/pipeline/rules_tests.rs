//! Rules of the object's path, each by its own example.

use proxy_common::{Addr6, config};

use super::super::reconciler::VERIFY_PERIOD;
use super::*;
use crate::settings::{NodePortAddress, SocketLb};

/// A Service with one port of one protocol.
fn over(name: &str, cluster_ip: &str, protocol: &str) -> Service {
    let mut found = service(name, cluster_ip);
    found.spec.ports[0].protocol = Some(protocol.into());
    found
}

fn udp_vip() -> FrontendKey<Addr4> {
    let addr = Addr4::from_octets([10, 96, 1, 1]);
    frontend_key(addr, 80, proxy_common::protocol::UDP)
}

fn udp_slice(endpoints: Vec<Endpoint>, port: u16) -> ObjectEvent {
    let mut found = slice("s", "dns", endpoints, port);
    found.ports[0].protocol = Some("UDP".into());
    applied_slice(found)
}

/// What is written of a backend, by its id.
fn written(world: &World, id: u32) -> (u8, u32) {
    let found = FamilyMaps::<Addr4>::backend(&world.maps, id).expect("written");
    (found.state, found.generation)
}

#[test]
fn families_of_an_object_without_families_are_that_of_its_first_address() {
    rules(&["S-021"]);
    let mut world = World::new();
    let mut web = service("web", "10.96.1.1");
    web.spec.cluster_ips = ["10.96.1.1", "fd00:96::1"].map(String::from).into();
    world.tell([applied(web.clone())]);
    assert!(!dump(&world.maps).contains("fd00"));
    web.spec.ip_families = ["IPv4", "IPv6"].map(String::from).into();
    world.tell([applied(web.clone())]);
    assert!(dump(&world.maps).contains("frontend [fd00:96::1]:80/TCP"));
    web.spec.cluster_ip = Some(String::new());
    world.tell([applied(web)]);
    assert_eq!(dump(&world.maps), "");
}

#[test]
fn full_ipv6_maps_do_not_stop_ipv4() {
    rules(&["S-011"]);
    let mut world = World::with_capacity(Capacity {
        frontends: 3,
        ..CAPACITY
    });
    for last in 1..=3 {
        let name = format!("six{last}");
        let mut six = service(&name, &format!("fd00:96::{last}"));
        six.spec.ip_families = vec!["IPv6".into()];
        six.spec.cluster_ips = vec![format!("fd00:96::{last}")];
        world.tell([applied(six)]);
    }
    let report = world.tell([]);
    assert_eq!((report.full, report.pending), (1, 1));
    let ids = FamilyMaps::<Addr6>::frontend_ids(&world.maps);
    assert_eq!(ids.len(), 2);
    let pods = |last: u8| vec![endpoint(&format!("10.4.1.{last}"))];
    for last in 1..=2 {
        world.tell([
            applied(service("four", "10.96.1.1")),
            applied_slice(slice("s", "four", pods(last), 8080)),
        ]);
        let expected = format!("10.96.1.1:80/TCP ClusterIp cluster=[10.4.1.{last}:8080]");
        assert!(dump(&world.maps).contains(&expected));
        let syncs = world.agent.syncs().into_iter();
        let pending: Vec<_> = syncs.map(|(name, sync)| (name, sync.is_pending)).collect();
        assert_eq!(pending, [("IPv4", false), ("IPv6", true)]);
        assert!(world.agent.syncs()[1].1.is_short_of_room);
    }
}

#[test]
fn failing_writes_are_tried_again_after_pauses_that_grow() {
    rules(&["S-010"]);
    let mut world = World::new();
    world.maps.set_failures(Failures::After(0));
    let report = world.tell([applied(service("web", "10.96.1.1"))]);
    assert!(report.failed > 0);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let wakeup = world.agent.next_wakeup().expect("something is pending");
        pauses.push(wakeup - world.now);
        world.now = wakeup;
        world.tell([]);
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_secs(30)));
    world.maps.set_failures(Failures::Never);
    world.settle();
    assert!(dump(&world.maps).contains("frontend 10.96.1.1:80/TCP"));
}

#[test]
fn a_hundred_changes_before_a_reconcile_are_one() {
    rules(&["S-009", "S-010"]);
    let mut world = World::new();
    world.tell([applied(service("web", "10.96.1.1"))]);
    let pods = |last: u8| vec![endpoint(&format!("10.4.1.{last}"))];
    world.tell([applied_slice(slice("s", "web", pods(1), 8080))]);
    let many = (2..=101).map(|last| applied_slice(slice("s", "web", pods(last), 8080)));
    let many = world.tell(many);
    // One backend and the bit of its address, the list, its publication, and the backend that goes.
    assert_eq!(many.writes, 5);
}

#[test]
fn once_an_hour_the_maps_are_read_again() {
    rules(&["S-010"]);
    let mut world = World::new();
    let pods = || vec![endpoint("10.4.1.1"), endpoint("10.4.1.2")];
    world.tell([
        applied(service("web", "10.96.1.1")),
        applied(service("api", "10.96.1.2")),
        applied_slice(slice("s", "web", pods(), 8080)),
    ]);
    let (before, backends) = (dump(&world.maps), world.backends(&vip(1)));
    // Somebody meddles, which no event tells.
    FamilyMaps::<Addr4>::remove_frontend_id(&mut world.maps, &vip(2)).expect("written");
    assert_eq!(world.tell([]), Report::default());
    assert_ne!(dump(&world.maps), before);
    assert_eq!(world.agent.next_wakeup(), Some(world.now + VERIFY_PERIOD));
    world.now += VERIFY_PERIOD;
    assert!(world.tell([]).writes > 0);
    assert_eq!(dump(&world.maps), before);
    assert_eq!(world.backends(&vip(1)), backends);
    // Where nobody meddled, nothing is written; what rests, rests on.
    world.tell([applied_slice(slice(
        "s",
        "web",
        vec![endpoint("10.4.1.1")],
        8080,
    ))]);
    let rested = backends[&8080].0;
    world.now += VERIFY_PERIOD - GRACE / 2;
    world.tell([applied_slice(slice("s", "web", pods(), 8080))]);
    world.tell([applied_slice(slice(
        "s",
        "web",
        vec![endpoint("10.4.1.2")],
        8080,
    ))]);
    world.now += GRACE / 2;
    assert_eq!(world.tell([]), Report::default());
    world.tell([applied_slice(slice(
        "t",
        "api",
        vec![endpoint("10.4.1.9")],
        9090,
    ))]);
    assert_ne!(world.backends(&vip(2))[&9090].0, rested);
}

#[test]
fn frontend_that_is_lost_to_another_service_is_told() {
    rules(&["S-034"]);
    let mut world = World::new();
    let named = |name: &str, cluster_ip: &str, created: &str| {
        let mut found = service(name, cluster_ip);
        found.spec.external_ips = vec!["203.0.113.9".into()];
        found.metadata.creation_timestamp = Some(created.into());
        applied(found)
    };
    world.tell([
        named("young", "10.96.1.1", "2026-02-01T00:00:00Z"),
        named("old", "10.96.1.2", "2026-01-01T00:00:00Z"),
    ]);
    let lost = world.agent.collisions();
    let texts: Vec<String> = lost
        .iter()
        .map(|(name, text)| format!("{name}: {text}"))
        .collect();
    assert_eq!(
        texts,
        ["a/young:/TCP: 203.0.113.9:80/TCP is served by a/old:/TCP"]
    );
    world.tell([ObjectEvent::Deleted(Kind::Service, object_name("old"))]);
    assert_eq!(world.agent.collisions(), []);
}

#[test]
fn node_port_changes_in_place() {
    rules(&["S-037"]);
    let mut world = World::new();
    let with = |node_port| {
        let mut web = service("web", "10.96.1.1");
        web.spec.type_ = Some("NodePort".into());
        web.spec.ports[0].node_port = node_port;
        applied(web)
    };
    let pods = applied_slice(slice("s", "web", vec![endpoint("10.4.1.1")], 8080));
    world.tell([with(30_100), pods]);
    let backends = world.backends(&vip(1));
    world.tell([with(30_200)]);
    let text = dump(&world.maps);
    assert!(
        text.contains("node:30200/TCP") && !text.contains("30100"),
        "{text}"
    );
    // Open flows hold the generation of their backend.
    assert_eq!(world.backends(&vip(1)), backends);
}

#[test]
fn loopback_node_ports_need_an_entry_of_their_own() {
    rules(&["S-119d"]);
    let flag = |entries: &[&str]| {
        let entries = entries.iter().map(|entry| match *entry {
            "all" => NodePortAddress::All,
            "primary" => NodePortAddress::Primary,
            "localhost" => NodePortAddress::Localhost,
            cidr => NodePortAddress::Cidr(cidr.parse().expect("a CIDR")),
        });
        let settings = Settings {
            node_port_addresses: entries.collect(),
            ..settings()
        };
        let mut world = World::new();
        world.agent = Reconciler::new(settings, CAPACITY);
        tell(&mut world.agent, KINDS.map(ObjectEvent::Listed));
        world.tell([]);
        let config = world.maps.config().expect("written");
        let both = config::flags::LOOPBACK_NODE_PORTS4 | config::flags::LOOPBACK_NODE_PORTS6;
        config.flags & both != 0
    };
    for without in [
        &[][..],
        &["primary"],
        &["all"],
        &["0.0.0.0/0"],
        &["192.0.2.0/24"],
    ] {
        assert!(!flag(without), "{without:?}");
    }
    for with in [
        &["localhost"][..],
        &["all", "127.0.0.0/8"],
        &["::1/128"],
        &["127.0.0.1/32"],
    ] {
        assert!(flag(with), "{with:?}");
    }
}

#[test]
fn udp_backend_that_is_replaced_is_left_after_the_next_one_is_there() {
    rules(&["S-123", "S-124"]);
    let pod = |addr: &str| vec![endpoint(addr)];
    let mut finished = false;
    for writes in 0..20 {
        let mut world = World::new();
        world.tell([
            applied(over("dns", "10.96.1.1", "UDP")),
            udp_slice(pod("10.4.1.1"), 5353),
        ]);
        let (id, generation, _) = world.backends(&udp_vip())[&5353];
        let before = world.maps.writes();
        world.maps.set_failures(Failures::After(before + writes));
        world.tell([udp_slice(pod("10.4.1.2"), 5353)]);
        let is_left = written(&world, id).1 != generation;
        let is_next = dump(&world.maps).contains("cluster=[10.4.1.2:5353]");
        assert!(is_next || !is_left, "left before the next one is there");
        finished |= is_left;
    }
    assert!(finished);
}

#[test]
fn endpoint_with_another_port_is_another_backend() {
    rules(&["S-124"]);
    let mut world = World::new();
    let pod = || vec![endpoint("10.4.1.1")];
    world.tell([
        applied(over("dns", "10.96.1.1", "UDP")),
        udp_slice(pod(), 5353),
    ]);
    let (id, generation, _) = world.backends(&udp_vip())[&5353];
    world.tell([udp_slice(pod(), 5354)]);
    assert_eq!(
        written(&world, id),
        (BackendState::Free as u8, generation + 1)
    );
    // n -> 0 -> n: each time the flows to what was there are over.
    let (id, generation, _) = world.backends(&udp_vip())[&5354];
    world.tell([udp_slice(Vec::new(), 5354)]);
    assert_eq!(
        written(&world, id),
        (BackendState::Free as u8, generation + 1)
    );
    world.now += GRACE;
    world.tell([udp_slice(pod(), 5354)]);
    let (again, moved, _) = world.backends(&udp_vip())[&5354];
    assert!((again, moved) != (id, generation));
}

#[test]
fn unready_first_endpoint_ends_no_flow_before_it_is_usable() {
    rules(&["S-127", "S-124"]);
    let mut world = World::new();
    let starting = || with_conditions(endpoint("10.4.1.2"), false, false, false);
    world.tell([
        applied(over("dns", "10.96.1.1", "UDP")),
        udp_slice(vec![endpoint("10.4.1.1")], 5353),
    ]);
    let (id, generation, _) = world.backends(&udp_vip())[&5353];
    world.tell([udp_slice(vec![endpoint("10.4.1.1"), starting()], 5353)]);
    assert_eq!(
        written(&world, id),
        (BackendState::Active as u8, generation)
    );
    // The old one goes while the next one is not usable: its flows are over, and a datagram finds
    // no backend to stick to until there is one.
    world.tell([udp_slice(vec![starting()], 5353)]);
    assert_eq!(
        written(&world, id),
        (BackendState::Free as u8, generation + 1)
    );
    assert!(dump(&world.maps).contains("cluster=[] no-endpoints"));
    world.tell([udp_slice(vec![endpoint("10.4.1.2")], 5353)]);
    assert!(dump(&world.maps).contains("cluster=[10.4.1.2:5353]"));
}

#[test]
fn endpoint_that_is_ready_without_serving_keeps_its_flows() {
    rules(&["S-124"]);
    let mut world = World::new();
    let published = || with_conditions(endpoint("10.4.1.1"), true, false, true);
    world.tell([
        applied(over("dns", "10.96.1.1", "UDP")),
        udp_slice(vec![published()], 5353),
    ]);
    let (id, generation, _) = world.backends(&udp_vip())[&5353];
    world.tell([udp_slice(vec![published(), endpoint("10.4.1.2")], 5353)]);
    assert_eq!(
        written(&world, id),
        (BackendState::Active as u8, generation)
    );
}

#[test]
fn flows_of_a_deleted_udp_service_are_over() {
    rules(&["S-128"]);
    let mut world = World::new();
    world.tell([
        applied(over("dns", "10.96.1.1", "UDP")),
        udp_slice(vec![endpoint("10.4.1.1")], 5353),
    ]);
    let (id, generation, _) = world.backends(&udp_vip())[&5353];
    world.tell([ObjectEvent::Deleted(Kind::Service, object_name("dns"))]);
    assert_eq!(
        written(&world, id),
        (BackendState::Free as u8, generation + 1)
    );
}

#[test]
fn settings_that_change_are_taken_over_in_place() {
    rules(&["S-173"]);
    let mut world = World::new();
    let pods = applied_slice(slice("s", "web", vec![endpoint("10.4.1.1")], 8080));
    world.tell([applied(service("web", "10.96.1.1")), pods]);
    let backends = world.backends(&vip(1));
    world.agent.set_settings(Settings {
        socket_lb: SocketLb::Host,
        ..settings()
    });
    assert_eq!(world.tell([]).writes, 1);
    assert_eq!(world.backends(&vip(1)), backends);
}
