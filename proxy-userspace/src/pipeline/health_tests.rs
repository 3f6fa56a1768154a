//! What the health servers are told by the stages.

use super::*;
use crate::health::metrics::LocalPolicy;
use crate::health::service::Check;
use crate::pipeline::LocalAddress;
use crate::settings::NodePortAddress;

/// A load balancer with policy Local and health port 32001, in both families.
fn load_balancer(name: &str) -> Service {
    let mut found = service(name, "10.96.1.1");
    found.spec.cluster_ips = vec!["10.96.1.1".into(), "fd00:96::1".into()];
    found.spec.ip_families = vec!["IPv4".into(), "IPv6".into()];
    found.spec.type_ = Some("LoadBalancer".into());
    found.spec.external_traffic_policy = Some("Local".into());
    found.spec.health_check_node_port = 32001;
    found.status.load_balancer.ingress = vec![LoadBalancerIngress {
        ip: Some("203.0.113.80".into()),
        ip_mode: None,
    }];
    found
}

fn on(node: &str, mut endpoint: Endpoint) -> Endpoint {
    endpoint.node_name = Some(node.into());
    endpoint
}

/// Port and count of a Service, in IPv4 and IPv6.
fn checks(world: &World, name: &str) -> [Option<(u16, usize)>; 2] {
    let (_, wanted) = world.agent.health_checks();
    [0, 1].map(|family| {
        let check: &Check = wanted[family].services.get(&object_name(name))?;
        Some((check.port, check.local_endpoints))
    })
}

fn v4(world: &World, name: &str) -> Option<(u16, usize)> {
    checks(world, name)[0]
}

#[test]
fn health_port_counts_addresses_of_local_ready_endpoints() {
    rules(&["S-029", "S-140", "S-141", "S-142"]);
    let mut world = World::new();
    let mut web = load_balancer("web");
    web.spec.ports[0].name = "a".into();
    web.spec.ports.push(ServicePortSpec {
        name: "b".into(),
        port: 81,
        ..ServicePortSpec::default()
    });
    // No slice: the server is there and counts nothing.
    world.tell([applied(web)]);
    assert_eq!(checks(&world, "web"), [Some((32001, 0)); 2]);
    let endpoints = vec![
        on("n1", endpoint("10.4.1.1")),
        // Ready by publishNotReadyAddresses.
        on(
            "n1",
            with_conditions(endpoint("10.4.1.2"), true, false, true),
        ),
        on(
            "n1",
            with_conditions(endpoint("10.4.1.3"), false, true, true),
        ),
        on(
            "n1",
            with_conditions(endpoint("10.4.1.4"), false, false, false),
        ),
        on("n2", endpoint("10.4.2.1")),
        endpoint("10.4.3.1"),
    ];
    let of_port = |name: &str, number| {
        let mut found = slice(name, "web", endpoints.clone(), number);
        found.ports[0].name = Some(name.into());
        applied_slice(found)
    };
    world.tell([of_port("a", 8080), of_port("b", 9090)]);
    // Two addresses with two ports each; IPv6 has a server of its own.
    assert_eq!(checks(&world, "web"), [Some((32001, 2)), Some((32001, 0))]);
}

/// The worked example W-4.
#[test]
fn terminating_endpoint_fails_the_health_check_and_serves() {
    rules(&["S-142", "S-065", "W-4"]);
    let mut world = World::new();
    let (x, y) = (endpoint("10.4.1.1"), endpoint("10.4.2.1"));
    let draining = with_conditions(x.clone(), false, true, true);
    world.tell([
        applied(load_balancer("web")),
        applied_slice(slice(
            "s",
            "web",
            vec![on("n1", x), on("n2", y.clone())],
            8080,
        )),
    ]);
    assert_eq!(v4(&world, "web"), Some((32001, 1)));
    let both = vec![on("n1", draining), on("n2", y)];
    world.tell([applied_slice(slice("s", "web", both, 8080))]);
    assert_eq!(v4(&world, "web"), Some((32001, 0)));
    let ports = world.agent.service_ports();
    let port = ports.iter().find(|port| port.family == "IPv4").unwrap();
    let set = |is_in: fn(&super::super::status::BackendStatus) -> bool| {
        let backends = port.backends.iter().filter(|backend| is_in(backend));
        backends.map(|backend| backend.addr.to_string()).collect()
    };
    let (local, cluster): (Vec<String>, Vec<String>) =
        (set(|it| it.is_in_local), set(|it| it.is_in_cluster));
    assert_eq!(local, ["10.4.1.1:8080"]);
    assert_eq!(cluster, ["10.4.2.1:8080"]);
}

#[test]
fn health_port_follows_type_policy_number_and_family() {
    rules(&["S-029", "S-143", "S-021"]);
    let mut world = World::new();
    let changed = |change: fn(&mut Service)| {
        let mut found = load_balancer("web");
        change(&mut found);
        applied(found)
    };
    world.tell([changed(|_| ())]);
    assert_eq!(checks(&world, "web"), [Some((32001, 0)); 2]);
    world.tell([changed(|web| web.spec.health_check_node_port = 32002)]);
    assert_eq!(checks(&world, "web"), [Some((32002, 0)); 2]);
    world.tell([changed(|web| {
        web.spec.cluster_ips.pop();
        web.spec.ip_families.pop();
    })]);
    assert_eq!(checks(&world, "web"), [Some((32001, 0)), None]);
    for without in [
        |web: &mut Service| web.spec.external_traffic_policy = Some("Cluster".into()),
        |web: &mut Service| web.spec.type_ = Some("NodePort".into()),
        |web: &mut Service| web.spec.health_check_node_port = 0,
        |web: &mut Service| web.spec.cluster_ip = Some("None".into()),
    ] {
        world.tell([changed(|_| ())]);
        world.tell([changed(without)]);
        assert_eq!(checks(&world, "web"), [None; 2]);
    }
    world.tell([changed(|_| ())]);
    world.tell([ObjectEvent::Deleted(Kind::Service, object_name("web"))]);
    assert_eq!(checks(&world, "web"), [None; 2]);
}

#[test]
fn health_ports_listen_where_node_ports_are_served() {
    rules(&["S-140", "S-119a"]);
    let address = |text: &str| LocalAddress {
        addr: text.parse().unwrap(),
        ifindex: 1,
        is_on_loopback: text.starts_with("127."),
    };
    let listening = |entries: &[NodePortAddress]| {
        let mut world = World::new();
        world.agent.set_settings(Settings {
            node_port_addresses: entries.to_vec(),
            ..settings()
        });
        let own = ["127.0.0.1", "192.0.2.11", "192.0.2.99", "2001:db8::11"];
        world.agent.set_local_addresses(own.map(address).to_vec());
        world.tell([]);
        let (_, wanted) = world.agent.health_checks();
        wanted.clone().map(|checks| checks.addresses)
    };
    let ips = |texts: &[&str]| -> Vec<std::net::IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let any = [ips(&["0.0.0.0"]), ips(&["::"])];
    assert_eq!(listening(&[NodePortAddress::All]), any);
    let net = |text: &str| NodePortAddress::Cidr(text.parse().unwrap());
    assert_eq!(
        listening(&[net("192.0.2.0/24"), NodePortAddress::Localhost]),
        // Nobody has ::1 here.
        [ips(&["127.0.0.1", "192.0.2.11", "192.0.2.99"]), ips(&[])]
    );
    assert_eq!(
        listening(&[net("192.0.2.99/32")]),
        [ips(&["192.0.2.99"]), ips(&["::"])]
    );
}

#[test]
fn families_fall_behind_and_catch_up_each_for_itself() {
    rules(&["S-144", "S-011"]);
    let mut world = World::with_capacity(CAPACITY);
    world.tell([applied(load_balancer("web"))]);
    let synced = |world: &World| {
        world
            .agent
            .syncs()
            .into_iter()
            .map(|(name, sync)| (name, sync.is_pending))
            .collect::<Vec<_>>()
    };
    assert_eq!(synced(&world), [("IPv4", false), ("IPv6", false)]);
    let updates = |world: &World| -> Vec<u64> {
        let syncs = world.agent.syncs().into_iter();
        syncs.map(|(_, sync)| sync.updates).collect()
    };
    let before = updates(&world);
    assert!(before.iter().all(|updates| *updates > 0));
    // Idle: nothing is updated.
    world.tell([]);
    assert_eq!(updates(&world), before);

    let failures = Failures::Percent {
        percent: 100,
        seed: 1,
    };
    world.maps.set_failures(failures);
    let mut other = service("other", "10.96.1.9");
    other.spec.ip_families = vec!["IPv4".into()];
    world.tell([applied(other)]);
    assert_eq!(synced(&world), [("IPv4", true), ("IPv6", false)]);
    world.maps.set_failures(Failures::Never);
    world.settle();
    assert_eq!(synced(&world), [("IPv4", false), ("IPv6", false)]);
    assert_eq!(updates(&world), [before[0] + 1, before[1]]);
}

#[test]
fn service_ports_without_local_endpoints_are_counted() {
    rules(&["S-110", "S-106", "S-107"]);
    let mut world = World::new();
    let mut web = load_balancer("web");
    web.spec.ports.push(ServicePortSpec {
        name: "b".into(),
        port: 81,
        ..ServicePortSpec::default()
    });
    let remote = vec![on("n2", endpoint("10.4.2.1"))];
    let mut of_b = slice("b", "web", remote.clone(), 9090);
    of_b.ports[0].name = Some("b".into());
    let mut inside = service("inside", "10.96.1.2");
    inside.spec.internal_traffic_policy = Some("Local".into());
    // Without any endpoint it refuses, and is not counted.
    let mut empty = service("empty", "10.96.1.3");
    empty.spec.internal_traffic_policy = Some("Local".into());
    world.tell([
        applied(web),
        applied(inside),
        applied(empty),
        applied_slice(slice("a", "web", remote.clone(), 8080)),
        applied_slice(of_b),
        applied_slice(slice("i", "inside", remote, 8080)),
    ]);
    let counts = world.agent.no_local_endpoints();
    assert!(
        counts.contains(&("IPv4", LocalPolicy::External, 2)),
        "{counts:?}"
    );
    assert!(
        counts.contains(&("IPv4", LocalPolicy::Internal, 1)),
        "{counts:?}"
    );
    assert!(
        counts.contains(&("IPv6", LocalPolicy::External, 0)),
        "{counts:?}"
    );
}

#[test]
fn deleted_node_is_not_the_one_that_was_known() {
    rules(&["S-145", "S-147", "S-174"]);
    let mut world = World::new();
    let node = |zone: &str| {
        let mut node = Node::default();
        node.metadata.name = "n1".into();
        let label = crate::pipeline::desired::node::ZONE_LABEL;
        node.metadata.labels.insert(label.into(), zone.into());
        ObjectEvent::Applied(Object::Node(node))
    };
    let name = || ObjectName {
        namespace: String::new(),
        name: "n1".into(),
    };
    assert_eq!(world.agent.existing_node(), None);
    world.tell([node("z1")]);
    assert!(world.agent.existing_node().is_some());
    // The watch fails and begins anew: the Node stays until the list is complete.
    world.tell([ObjectEvent::Restarted(Kind::Node)]);
    assert!(world.agent.existing_node().is_some());
    world.tell([ObjectEvent::Listed(Kind::Node)]);
    assert_eq!(world.agent.existing_node(), None);
    assert_eq!(world.agent.node().zone, "z1");
    world.tell([node("z1")]);
    assert!(world.agent.existing_node().is_some());
    world.tell([ObjectEvent::Deleted(Kind::Node, name())]);
    assert_eq!(world.agent.existing_node(), None);
    assert_eq!(world.agent.node().zone, "z1");
}

#[test]
fn without_ipv6_only_ipv4_is_served() {
    rules(&["S-175"]);
    let mut world = World::new();
    let with = |ipv6| Settings { ipv6, ..settings() };
    world
        .agent
        .set_settings(with(crate::settings::Ipv6::Absent));
    world.tell([applied(load_balancer("web"))]);
    assert_eq!(checks(&world, "web"), [Some((32001, 0)), None]);
    let families = |world: &World| -> Vec<&'static str> {
        let ports = world.agent.service_ports();
        ports.iter().map(|port| port.family).collect()
    };
    assert_eq!(families(&world), ["IPv4"]);
    assert_eq!(world.agent.syncs().len(), 1);
    world
        .agent
        .set_settings(with(crate::settings::Ipv6::Served));
    world.tell([]);
    assert_eq!(families(&world), ["IPv4", "IPv6"]);
}
