//! The stages together, on maps in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proxy_common::{Addr4, BackendState, FrontendKey, RegionTail, Word, port_filter};

use super::reconciler::VERIFY_PERIOD;
use super::store::SERVICE_NAME_LABEL;
use super::{Reconciler, Report};
use crate::fake_maps::{Failures, FakeMaps};
use crate::family::frontend_key;
use crate::ids::GRACE;
use crate::map_dump::dump;
use crate::maps::{Capacity, FamilyMaps, Maps};
use crate::objects::*;
use crate::pipeline::watch::KINDS;
use crate::rules;
use crate::settings::Settings;

const CAPACITY: Capacity = Capacity {
    frontends: 64,
    backends: 128,
    slots: 512,
};

#[path = "affinity_tests.rs"]
mod affinity;
#[path = "audit_tests.rs"]
mod audit;
#[path = "rules_tests.rs"]
mod by_rule;
#[path = "health_tests.rs"]
mod health;
#[path = "restart_tests.rs"]
mod restart;

struct World {
    maps: FakeMaps,
    agent: Reconciler,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self::with_capacity(CAPACITY)
    }

    fn with_capacity(capacity: Capacity) -> Self {
        let mut agent = Reconciler::new(settings(), capacity);
        tell(&mut agent, KINDS.map(ObjectEvent::Restarted));
        tell(&mut agent, KINDS.map(ObjectEvent::Listed));
        Self {
            maps: FakeMaps::new(capacity),
            agent,
            now: Instant::now(),
        }
    }

    fn tell(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> Report {
        tell(&mut self.agent, events);
        let report = self.agent.reconcile(&mut self.maps, self.now);
        assert_eq!(self.maps.check(), Ok(()));
        report
    }

    /// Reconciles until nothing is pending, before the re-verification would repair anything.
    fn settle(&mut self) {
        let start = self.now;
        for _ in 0..1000 {
            let report = self.tell([]);
            if report.pending == 0 {
                return;
            }
            assert!(self.now - start < VERIFY_PERIOD / 6, "settles too late");
            let wakeup = self.agent.next_wakeup().expect("something is pending");
            self.now = wakeup.max(self.now + Duration::from_millis(1));
        }
        panic!("does not converge");
    }

    /// Id, generation and state of the backends of a frontend's service port.
    fn backends(&self, key: &FrontendKey<Addr4>) -> BTreeMap<u16, (u32, u32, u8)> {
        let ids = FamilyMaps::<Addr4>::frontend_ids(&self.maps);
        let id = ids
            .iter()
            .find(|(known, _)| known == key)
            .expect("a frontend")
            .1;
        let frontend = FamilyMaps::<Addr4>::frontend(&self.maps, id).expect("its element");
        let region = Word::unpack(frontend.word).region;
        let tail = RegionTail::unpack(self.maps.slot(region + 1).expect("its region"));
        (1..self.maps.capacity().backends)
            .filter_map(|id| Some((id, FamilyMaps::<Addr4>::backend(&self.maps, id)?)))
            .filter(|(_, found)| found.service_port == tail.service_port)
            .filter(|(_, found)| found.state != BackendState::Free as u8)
            .map(|(id, found)| (found.port.get(), (id, found.generation, found.state)))
            .collect()
    }
}

fn settings() -> Settings {
    Settings {
        node_name: "n1".into(),
        ..Settings::default()
    }
}

fn tell(agent: &mut Reconciler, events: impl IntoIterator<Item = ObjectEvent>) {
    events.into_iter().for_each(|event| agent.handle(event));
}

fn metadata(name: &str) -> Metadata {
    Metadata {
        namespace: "a".into(),
        name: name.into(),
        ..Metadata::default()
    }
}

fn object_name(name: &str) -> ObjectName {
    ObjectName {
        namespace: "a".into(),
        name: name.into(),
    }
}

/// A Service with one nameless port 80.
fn service(name: &str, cluster_ip: &str) -> Service {
    let port = ServicePortSpec {
        port: 80,
        ..ServicePortSpec::default()
    };
    Service {
        metadata: metadata(name),
        spec: ServiceSpec {
            cluster_ip: Some(cluster_ip.into()),
            ports: vec![port],
            ..ServiceSpec::default()
        },
        status: ServiceStatus::default(),
    }
}

fn slice(name: &str, service: &str, endpoints: Vec<Endpoint>, port: u16) -> EndpointSlice {
    let mut metadata = metadata(name);
    metadata
        .labels
        .insert(SERVICE_NAME_LABEL.into(), service.into());
    let port = EndpointPort {
        name: Some(String::new()),
        protocol: None,
        port: Some(port),
    };
    EndpointSlice {
        metadata,
        address_type: "IPv4".into(),
        endpoints,
        ports: vec![port],
    }
}

fn endpoint(addr: &str) -> Endpoint {
    Endpoint {
        addresses: vec![addr.into()],
        ..Endpoint::default()
    }
}

fn with_conditions(mut endpoint: Endpoint, ready: bool, serving: bool, end: bool) -> Endpoint {
    endpoint.conditions = EndpointConditions {
        ready: Some(ready),
        serving: Some(serving),
        terminating: Some(end),
    };
    endpoint
}

fn applied(service: Service) -> ObjectEvent {
    ObjectEvent::Applied(Object::Service(service))
}

fn applied_slice(slice: EndpointSlice) -> ObjectEvent {
    ObjectEvent::Applied(Object::EndpointSlice(slice))
}

fn vip(last: u8) -> FrontendKey<Addr4> {
    frontend_key(
        Addr4::from_octets([10, 96, 1, last]),
        80,
        proxy_common::protocol::TCP,
    )
}

#[test]
fn unready_endpoint_that_serves_keeps_its_generation() {
    rules(&["S-124", "S-068", "S-126"]);
    let mut world = World::new();
    let pod = || endpoint("10.4.1.1");
    world.tell([
        applied(service("web", "10.96.1.1")),
        applied_slice(slice("s", "web", vec![pod(), endpoint("10.4.1.2")], 8080)),
        applied_slice(slice("t", "web", vec![endpoint("10.4.1.3")], 9090)),
    ]);
    let (id, generation, state) = world.backends(&vip(1))[&9090];
    assert_eq!(state, BackendState::Active as u8);
    let unready = with_conditions(endpoint("10.4.1.3"), false, true, false);
    world.tell([applied_slice(slice("t", "web", vec![unready], 9090))]);
    let quarantined = BackendState::Quarantined as u8;
    assert_eq!(
        world.backends(&vip(1))[&9090],
        (id, generation, quarantined)
    );
    let dead = with_conditions(endpoint("10.4.1.3"), false, false, true);
    world.tell([applied_slice(slice("t", "web", vec![dead], 9090))]);
    assert_eq!(world.backends(&vip(1)).get(&9090), None);
    let freed = FamilyMaps::<Addr4>::backend(&world.maps, id).expect("written");
    assert_eq!(
        (freed.state, freed.generation),
        (BackendState::Free as u8, generation + 1)
    );
}

#[test]
fn backend_id_rests_and_comes_back_with_another_generation() {
    rules(&["S-124", "S-216"]);
    let mut world = World::new();
    let one = |port| applied_slice(slice("s", "web", vec![endpoint("10.4.1.1")], port));
    world.tell([applied(service("web", "10.96.1.1")), one(1)]);
    let (id, generation, _) = world.backends(&vip(1))[&1];
    world.tell([one(2)]);
    world.tell([one(3)]);
    assert_ne!(world.backends(&vip(1))[&3].0, id);
    world.now += GRACE;
    world.tell([one(4)]);
    let (reused, moved, _) = world.backends(&vip(1))[&4];
    assert_eq!(reused, id);
    assert_ne!(moved, generation);
}

#[test]
fn rejected_object_keeps_what_was_known() {
    rules(&["S-012"]);
    let mut world = World::new();
    world.tell([applied(service("web", "10.96.1.1"))]);
    let before = dump(&world.maps);
    let rejected = |object| ObjectEvent::Rejected {
        object,
        place: "web.yaml:3".into(),
        error: "spec.ports: missing".into(),
    };
    let object = Some((Kind::Service, object_name("web")));
    world.tell([
        ObjectEvent::Restarted(Kind::Service),
        rejected(object),
        ObjectEvent::Listed(Kind::Service),
    ]);
    assert_eq!(dump(&world.maps), before);
    assert_eq!(world.agent.rejections().count(), 1);
    world.tell([
        ObjectEvent::Restarted(Kind::Service),
        ObjectEvent::Listed(Kind::Service),
    ]);
    assert_eq!(dump(&world.maps), "");
}

#[test]
fn bad_entries_are_left_out_one_by_one() {
    rules(&["S-012", "S-050"]);
    let mut world = World::new();
    let mut web = service("web", "10.96.1.1");
    web.spec.external_ips = ["198.51.100.7", "", "bogus"].map(String::from).into();
    let endpoints = ["10.4.1.1", "127.0.0.1", "fd00::1"].map(endpoint).into();
    world.tell([
        applied(web),
        applied_slice(slice("s", "web", endpoints, 8080)),
    ]);
    let expected = "frontend 10.96.1.1:80/TCP ClusterIp cluster=[10.4.1.1:8080]\n\
                    frontend 198.51.100.7:80/TCP ExternalIp cluster=[10.4.1.1:8080]\n\
                    cluster-ip 10.96.1.1/32 active\n\
                    cluster-ip 198.51.100.7/32 frontend\n";
    assert_eq!(dump(&world.maps), expected);
    assert_eq!(world.agent.problems()[&object_name("web")].len(), 3);
}

#[test]
fn edit_that_is_taken_back_writes_nothing() {
    rules(&["S-009", "S-006"]);
    let mut world = World::new();
    let web = || service("web", "10.96.1.1");
    world.tell([applied(web())]);
    let mut edited = web();
    edited.spec.ports[0].port = 81;
    assert_eq!(
        world.tell([applied(edited), applied(web())]),
        Report::default()
    );
    let deleted = ObjectEvent::Deleted(Kind::Service, object_name("web"));
    assert_eq!(world.tell([deleted, applied(web())]), Report::default());
}

#[test]
fn service_that_does_not_fit_is_rejected_alone() {
    rules(&["S-215"]);
    let mut world = World::with_capacity(Capacity {
        backends: 5,
        ..CAPACITY
    });
    let pods = |count: u8| {
        (1..=count)
            .map(|last| endpoint(&format!("10.4.1.{last}")))
            .collect()
    };
    let report = world.tell([
        applied(service("a", "10.96.1.1")),
        applied_slice(slice("a", "a", pods(3), 8080)),
        applied(service("b", "10.96.1.2")),
        applied_slice(slice("b", "b", pods(2), 8080)),
        applied(service("c", "10.96.1.3")),
        applied_slice(slice("c", "c", pods(1), 8080)),
    ]);
    assert_eq!((report.full, report.pending, report.failed), (1, 1, 0));
    assert!(dump(&world.maps).contains("10.96.1.3:80/TCP"));
    assert!(!dump(&world.maps).contains("frontend 10.96.1.2:80/TCP"));
    let rejected = world.agent.service_ports();
    let rejected = rejected
        .iter()
        .find(|port| port.obstacle.is_some())
        .expect("one");
    assert_eq!(rejected.name.service.name, "b");
    assert_eq!(world.agent.held_up(), [("IPv4", 1), ("IPv6", 0)]);
    world.tell([ObjectEvent::Deleted(Kind::Service, object_name("a"))]);
    world.settle();
    assert_eq!(world.agent.held_up(), [("IPv4", 0), ("IPv6", 0)]);
    assert!(dump(&world.maps).contains("10.96.1.2:80/TCP ClusterIp cluster=[10.4.1.1:8080"));
}

#[test]
fn frontend_of_a_full_map_changes_hands() {
    rules(&["S-034", "S-215"]);
    let mut world = World::with_capacity(Capacity {
        backends: 4,
        ..CAPACITY
    });
    let pods = |net: u8| {
        (1..=3)
            .map(|last| endpoint(&format!("10.4.{net}.{last}")))
            .collect()
    };
    world.tell([
        applied(service("a", "10.96.1.1")),
        applied_slice(slice("a", "a", pods(1), 8080)),
        applied_slice(slice("b", "b", pods(2), 8080)),
    ]);
    world.tell([
        ObjectEvent::Deleted(Kind::Service, object_name("a")),
        applied(service("b", "10.96.1.1")),
    ]);
    world.settle();
    let text = dump(&world.maps);
    assert!(
        text.contains("cluster=[10.4.2.1:8080 10.4.2.2:8080 10.4.2.3:8080]"),
        "{text}"
    );
}

#[test]
fn frontend_whose_takeover_failed_goes_when_nobody_wants_it() {
    rules(&["S-034"]);
    let mut world = World::new();
    let web = |name: &str, ip: &str, external: &[&str]| {
        let mut web = service(name, ip);
        web.spec.external_ips = external.iter().copied().map(String::from).collect();
        applied(web)
    };
    world.tell([
        web("a", "10.96.1.1", &["203.0.113.9"]),
        web("b", "10.96.1.2", &[]),
    ]);
    world.maps.set_failures(Failures::After(0));
    world.tell([
        web("a", "10.96.1.1", &[]),
        web("b", "10.96.1.2", &["203.0.113.9"]),
    ]);
    world.maps.set_failures(Failures::Never);
    world.tell([web("b", "10.96.1.2", &[])]);
    assert!(!dump(&world.maps).contains("203.0.113.9"));
}

#[test]
fn ids_stay_over_a_restart() {
    rules(&["S-178"]);
    let mut world = World::new();
    let pods = || ["10.4.1.1", "10.4.1.2"].map(endpoint).into();
    let objects = || [applied(service("web", "10.96.1.1"))].into_iter();
    world.tell(objects().chain([applied_slice(slice("s", "web", pods(), 8080))]));
    let before = world.backends(&vip(1));
    world.agent = Reconciler::restore(settings(), &world.maps);
    let report = world.tell(
        KINDS
            .map(ObjectEvent::Restarted)
            .into_iter()
            .chain(objects()),
    );
    assert_eq!(report.writes, 0);
    world.tell([applied_slice(slice("s", "web", pods(), 8080))]);
    assert_eq!(
        world.tell(KINDS.map(ObjectEvent::Listed)),
        Report::default()
    );
    world.tell([applied_slice(slice(
        "s",
        "web",
        vec![endpoint("10.4.1.2")],
        8080,
    ))]);
    assert_eq!(world.backends(&vip(1)), before);
}

#[test]
fn cold_start_with_many_services_is_linear() {
    rules(&["S-006", "S-010"]);
    let capacity = Capacity {
        frontends: 1 << 16,
        backends: 1 << 18,
        slots: 1 << 20,
    };
    let mut world = World::with_capacity(capacity);
    let (mut events, mut words) = (Vec::new(), BTreeSet::new());
    for index in 0..2_000_u32 {
        let [_, _, high, low] = index.to_be_bytes();
        let name = format!("s{index}");
        events.push(applied(service(&name, &format!("10.96.{high}.{low}"))));
        let pods = (0..10)
            .map(|pod| endpoint(&format!("10.{pod}.{high}.{low}")))
            .collect();
        events.push(applied_slice(slice(&name, &name, pods, 8080)));
        for first in (0..10).map(|pod| [10, pod]).chain([[10, 96]]) {
            let addr = Addr4::from_octets([first[0], first[1], high, low]);
            words.insert(port_filter::address(&addr).0);
        }
    }
    tell(&mut world.agent, events.clone());
    let report = world.agent.reconcile(&mut world.maps, world.now);
    // CONFIG, two words of PORT_FILTER for ports and those for addresses; per Service: ten
    // backends, a region, a frontend, its word, its id and its ClusterIP.
    assert_eq!(report.writes, 3 + words.len() as u64 + 2_000 * 15);
    assert_eq!(
        world.agent.reconcile(&mut world.maps, world.now),
        Report::default()
    );
    assert_eq!(world.tell(events), Report::default(), "delivered again");
    let removed = slice("s7", "s7", vec![endpoint("10.0.0.7")], 8080);
    // The region, its word, nine backends.
    assert_eq!(world.tell([applied_slice(removed)]).writes, 2 + 9);
}

#[test]
fn thousand_endpoints_are_replaced_in_one_step() {
    rules(&["S-216"]);
    let capacity = Capacity {
        backends: 1 << 12,
        slots: 1 << 14,
        ..CAPACITY
    };
    let pods = |numbers: std::ops::Range<u16>| {
        let pod = |number: u16| endpoint(&format!("10.4.{}.{}", number / 250, number % 250));
        applied_slice(slice("s", "web", numbers.map(pod).collect(), 8080))
    };
    let frontend = |world: &World| {
        let text = dump(&world.maps);
        text.lines().next().expect("a frontend").to_owned()
    };
    let mut lists = Vec::new();
    for writes in 0.. {
        let mut world = World::with_capacity(capacity);
        world.tell([applied(service("web", "10.96.1.1")), pods(0..1000)]);
        lists.push(frontend(&world));
        world
            .maps
            .set_failures(Failures::After(world.maps.writes() + writes));
        let report = world.tell([pods(5..1005)]);
        lists.push(frontend(&world));
        if report.pending == 0 {
            break;
        }
    }
    // The bits of five addresses, five backends that come, the list, its publication, five that go:
    // at each the old list or the next one is read, and nothing between them.
    assert_eq!(lists.len(), 2 * (5 + 5 + 1 + 1 + 5 + 1));
    lists.dedup();
    lists.sort();
    lists.dedup();
    assert_eq!(lists.len(), 2);
    assert!(
        lists
            .iter()
            .all(|list| list.matches(":8080").count() == 1000)
    );
}

/// What can happen to the few objects of a small world.
#[derive(Clone, Debug)]
enum Change {
    Service {
        index: u8,
        address: u8,
        external: u8,
        node_port: u16,
        local: bool,
        ranges: bool,
    },
    NoService(u8),
    Slice {
        index: u8,
        service: u8,
        endpoints: Vec<(u8, u8)>,
        port: u16,
    },
    NoSlice(u8),
    Relist,
    Restart,
    Reconcile,
}

fn any_change() -> impl Strategy<Value = Change> {
    let endpoints = prop::collection::vec((0..6_u8, 0..8_u8), 0..5);
    prop_oneof![
        4 => (0..3_u8, 0..2_u8, 0..3_u8, 0..2_u16, any::<bool>(), any::<bool>()).prop_map(
            |(index, address, external, node_port, local, ranges)| Change::Service {
                index, address, external, node_port, local, ranges,
            }
        ),
        1 => (0..3_u8).prop_map(Change::NoService),
        4 => (0..4_u8, 0..3_u8, endpoints, 1..3_u16).prop_map(
            |(index, service, endpoints, port)| Change::Slice { index, service, endpoints, port }
        ),
        1 => (0..4_u8).prop_map(Change::NoSlice),
        1 => Just(Change::Relist),
        1 => Just(Change::Restart),
        3 => Just(Change::Reconcile),
    ]
}

type Objects = BTreeMap<(Kind, ObjectName), Object>;

/// The event of a change of objects.
fn change_event(change: &Change, objects: &mut Objects) -> Option<ObjectEvent> {
    let object = match change {
        Change::Service {
            index,
            address,
            external,
            node_port,
            local,
            ranges,
        } => {
            let mut object = service(
                &format!("s{index}"),
                &format!("10.96.1.{}", address + index),
            );
            object.spec.type_ = Some("LoadBalancer".into());
            if *external > 0 {
                object.spec.external_ips = vec![format!("203.0.113.{external}")];
            }
            let ip = Some(format!("203.0.113.{}", external + 1));
            object.status.load_balancer.ingress = vec![LoadBalancerIngress { ip, ip_mode: None }];
            object.spec.ports[0].node_port = 30_000 * node_port;
            if *local {
                object.spec.external_traffic_policy = Some("Local".into());
            }
            if *ranges {
                object.spec.load_balancer_source_ranges = vec![format!("198.51.{external}.0/24")];
            }
            Object::Service(object)
        }
        Change::Slice {
            index,
            service,
            endpoints,
            port,
        } => {
            // One address once: which of two entries counts depends on their order (S-047).
            let endpoints: BTreeMap<u8, u8> = endpoints.iter().copied().collect();
            let endpoints = endpoints.into_iter().map(|(last, bits)| {
                let mut one = endpoint(&format!("10.4.{index}.{last}"));
                one.node_name = (last % 2 == 0).then(|| "n1".into());
                with_conditions(one, bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)
            });
            let service = format!("s{service}");
            Object::EndpointSlice(slice(
                &format!("e{index}"),
                &service,
                endpoints.collect(),
                *port,
            ))
        }
        Change::NoService(index) => return gone(Kind::Service, &format!("s{index}"), objects),
        Change::NoSlice(index) => return gone(Kind::EndpointSlice, &format!("e{index}"), objects),
        Change::Relist | Change::Restart | Change::Reconcile => return None,
    };
    let key = (object.kind(), object_name(&object.metadata().name));
    objects.insert(key, object.clone());
    Some(ObjectEvent::Applied(object))
}

fn gone(kind: Kind, name: &str, objects: &mut Objects) -> Option<ObjectEvent> {
    let key = (kind, object_name(name));
    objects.remove(&key)?;
    Some(ObjectEvent::Deleted(key.0, key.1))
}

fn list(objects: &Objects) -> Vec<ObjectEvent> {
    let mut events: Vec<_> = KINDS.map(ObjectEvent::Restarted).into();
    events.extend(objects.values().cloned().map(ObjectEvent::Applied));
    events.extend(KINDS.map(ObjectEvent::Listed));
    events
}

/// The maps of an agent that sees these objects only.
fn expected(objects: &Objects) -> String {
    let mut world = World::new();
    world.tell(list(objects));
    dump(&world.maps)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_with_failing_writes_ends_in_the_same_maps(
        changes in prop::collection::vec(any_change(), 1..40),
        seed in any::<u64>(),
    ) {
        rules(&["S-006", "S-008", "S-009", "S-034", "S-042", "S-178", "S-216"]);
        let mut world = World::new();
        world.maps.set_failures(Failures::Percent { percent: 10, seed });
        let mut objects = Objects::new();
        for change in &changes {
            tell(&mut world.agent, change_event(change, &mut objects));
            match change {
                Change::Relist => tell(&mut world.agent, list(&objects)),
                Change::Restart => {
                    world.agent = Reconciler::restore(settings(), &world.maps);
                    tell(&mut world.agent, list(&objects));
                }
                Change::Reconcile => {
                    world.tell([]);
                    world.now += GRACE / 2;
                }
                _ => {}
            }
        }
        world.settle();
        prop_assert_eq!(dump(&world.maps), expected(&objects));
        prop_assert_eq!(world.tell(list(&objects)), Report::default());
        world.tell(KINDS.map(ObjectEvent::Restarted));
        world.tell(KINDS.map(ObjectEvent::Listed));
        world.settle();
        prop_assert_eq!(dump(&world.maps), "");
    }

    #[test]
    fn every_prefix_of_a_plan_is_safe(
        before in prop::collection::vec(any_change(), 1..20),
        after in prop::collection::vec(any_change(), 1..20),
    ) {
        rules(&["S-216", "S-178"]);
        let mut objects = Objects::new();
        before.iter().for_each(|change| { change_event(change, &mut objects); });
        let old = objects.clone();
        after.iter().for_each(|change| { change_event(change, &mut objects); });
        for writes in 0.. {
            let mut world = World::new();
            world.tell(list(&old));
            let written = world.maps.writes();
            world.maps.set_failures(Failures::After(written + writes));
            let report = world.tell(list(&objects));
            prop_assert!(world.maps.writes() <= written + writes);
            world.maps.set_failures(Failures::Never);
            world.agent = Reconciler::restore(settings(), &world.maps);
            world.tell(list(&objects));
            world.settle();
            prop_assert_eq!(dump(&world.maps), expected(&objects));
            if report.pending == 0 {
                break;
            }
        }
    }
}
