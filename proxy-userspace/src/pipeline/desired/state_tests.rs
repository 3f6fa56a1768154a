//! What [`DesiredState`] keeps and tells.

use proxy_common::Addr4;

use super::*;
use crate::family::frontend_key;
use crate::rules;

const TCP: u8 = proxy_common::protocol::TCP;

fn service_name(name: &str) -> Arc<ObjectName> {
    Arc::new(ObjectName {
        namespace: "a".into(),
        name: name.into(),
    })
}

/// A Service with so many ports, all on one external address besides the ClusterIP.
fn service(name: &Arc<ObjectName>, ports: u16) -> DesiredService<Addr4> {
    let cluster_ip = Addr4::from_octets([10, 96, 1, 1]);
    let external = Addr4::from_octets([203, 0, 113, 9]);
    let frontend = |addr, port, kind| DesiredFrontend {
        key: frontend_key(addr, port, TCP),
        kind,
    };
    let port = |number: u16| {
        let port_name = ServicePortName {
            service: name.clone(),
            port: format!("p{number}"),
            protocol: TCP,
        };
        let port = DesiredPort {
            created: None,
            frontends: vec![
                frontend(cluster_ip, number, FrontendKind::ClusterIp),
                frontend(external, number, FrontendKind::ExternalIp),
            ],
            backends: SortedMap::new(),
            cluster: Arc::default(),
            local: Arc::default(),
            tables: None,
            has_endpoints: false,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_timeout_secs: 0,
            source_ranges: BTreeSet::new(),
            source_ranges_have_node: false,
        };
        (Arc::new(port_name), port)
    };
    DesiredService {
        ports: (1..=ports).map(port).collect(),
        cluster_ip,
    }
}

#[test]
fn sorted_ports_come_by_name() {
    let mut state = DesiredState::default();
    let name = service_name("web");
    let desired = Some(service(&name, 64));
    state.update_service(&name, desired, &mut TouchedPorts::default());
    let ports = state.sorted_ports();
    assert_eq!(ports.len(), 64);
    assert!(ports.is_sorted_by_key(|(name, _)| *name));
}

#[test]
fn services_that_went_leave_nothing_behind() {
    rules(&["S-034", "S-079"]);
    let mut state = DesiredState::default();
    let names = [service_name("web"), service_name("twin")];
    for name in &names {
        let desired = Some(service(name, 3));
        state.update_service(name, desired, &mut TouchedPorts::default());
    }
    for name in &names {
        state.update_service(name, None, &mut TouchedPorts::default());
    }
    assert!(state.ports.is_empty());
    assert!(state.services.is_empty());
    assert!(state.claims.is_empty());
    assert!(state.prefixes.is_empty());
    assert_eq!(state.cover.nets().count(), 0);
}
