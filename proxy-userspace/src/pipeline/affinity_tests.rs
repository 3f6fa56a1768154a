//! What a backend says of its sets, and how often it has left them: bindings are compared with it.

use proxy_common::backend::flags::{DEPARTURES_SHIFT, IN_CLUSTER, IN_LOCAL};

use super::*;

/// Of the backend on a port: the sets that it is in, and how often it has left them.
fn sets(world: &World, port: u16) -> (u8, u8) {
    let backends = (1..world.maps.capacity().backends)
        .filter_map(|id| FamilyMaps::<Addr4>::backend(&world.maps, id));
    let backend = backends
        .filter(|backend| backend.state != BackendState::Free as u8)
        .find(|backend| backend.port.get() == port)
        .expect("a backend");
    let sets = backend.flags & (IN_CLUSTER | IN_LOCAL);
    (sets, backend.flags >> DEPARTURES_SHIFT)
}

/// A NodePort Service; 0: without affinity.
fn sticky(timeout_secs: u32, external_policy: &str) -> ObjectEvent {
    let mut service = service("web", "10.96.1.1");
    service.spec.type_ = Some("NodePort".into());
    service.spec.ports[0].node_port = 30111;
    service.spec.external_traffic_policy = Some(external_policy.into());
    if timeout_secs != 0 {
        service.spec.session_affinity = Some("ClientIP".into());
        let timeout_seconds = Some(timeout_secs);
        service.spec.session_affinity_config = Some(SessionAffinityConfig {
            client_ip: Some(ClientIpConfig { timeout_seconds }),
        });
    }
    applied(service)
}

/// An endpoint of this node on port 8080, which hints reserve for a zone, and one on 9090.
fn endpoints(zone: &str) -> [ObjectEvent; 2] {
    let hinted = |address: &str, zone: &str| Endpoint {
        node_name: Some("n1".into()),
        hints: Some(EndpointHints {
            for_zones: vec![HintName { name: zone.into() }],
            for_nodes: Vec::new(),
        }),
        ..endpoint(address)
    };
    [
        applied_slice(slice("s1", "web", vec![hinted("10.4.1.1", zone)], 8080)),
        applied_slice(slice("s2", "web", vec![hinted("10.4.1.2", "z1")], 9090)),
    ]
}

fn world() -> World {
    let mut world = World::new();
    let labels = BTreeMap::from([("topology.kubernetes.io/zone".to_owned(), "z1".to_owned())]);
    let node = Node {
        metadata: Metadata {
            name: "n1".into(),
            labels,
            ..Metadata::default()
        },
        ..Node::default()
    };
    world.tell([ObjectEvent::Applied(Object::Node(node))]);
    world
}

#[test]
fn backends_without_affinity_say_nothing_of_sets() {
    rules(&["S-103"]);
    let mut world = world();
    world.tell(endpoints("z1").into_iter().chain([sticky(0, "Local")]));
    assert_eq!(sets(&world, 8080), (0, 0));
}

#[test]
fn affinity_switched_off_and_on_forgets_all() {
    rules(&["S-103"]);
    let mut world = world();
    world.tell(endpoints("z1").into_iter().chain([sticky(60, "Local")]));
    let both = IN_CLUSTER | IN_LOCAL;
    assert_eq!(sets(&world, 8080), (both, 0));
    // Another timeout keeps every binding.
    world.tell([sticky(7, "Local")]);
    assert_eq!(sets(&world, 8080), (both, 0));
    world.tell([sticky(0, "Local")]);
    assert_eq!(sets(&world, 8080), (0, 1));
    world.agent = Reconciler::restore(settings(), &world.maps);
    let listed = endpoints("z1").into_iter().chain([sticky(60, "Local")]);
    let listed = listed.chain(KINDS.map(ObjectEvent::Listed));
    world.tell(KINDS.map(ObjectEvent::Restarted).into_iter().chain(listed));
    assert_eq!(sets(&world, 8080), (both, 1));
}

#[test]
fn backend_that_leaves_both_sets_and_comes_back_has_departed() {
    rules(&["S-103"]);
    let mut world = world();
    world.tell(endpoints("z1").into_iter().chain([sticky(60, "Cluster")]));
    assert_eq!(sets(&world, 8080), (IN_CLUSTER, 0));
    world.tell(endpoints("z2"));
    assert_eq!(sets(&world, 8080), (0, 1));
    assert_eq!(sets(&world, 9090), (IN_CLUSTER, 0));
    world.tell(endpoints("z1"));
    assert_eq!(sets(&world, 8080), (IN_CLUSTER, 1));
    assert_eq!(sets(&world, 9090), (IN_CLUSTER, 0));
}

#[test]
fn backend_that_stays_in_one_set_has_not_departed() {
    rules(&["S-103"]);
    let mut world = world();
    world.tell(endpoints("z1").into_iter().chain([sticky(60, "Local")]));
    world.tell(endpoints("z2"));
    assert_eq!(sets(&world, 8080), (IN_LOCAL, 0));
    world.tell(endpoints("z1"));
    assert_eq!(sets(&world, 8080), (IN_CLUSTER | IN_LOCAL, 0));
}
