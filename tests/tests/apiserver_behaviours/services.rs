//! Services: their types, ports and frontends.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::rig::contains;
use tests::rig::{TARGET_PORT, node_addresses};
use tests::topology::addresses::{FAMILIES, balanced};
use tests::traffic::SocketKind;

use super::world::{Address, Caller, INSIDE, OTHER_TARGET_PORT, PODS, World, node_ports, port};
use super::{Behaviour, behaviour};

pub const BEHAVIOURS: &[Behaviour] = &[
    behaviour(
        "should be able to up and down services",
        "S-001, S-008, S-078",
        services_go_up_and_down,
    ),
    behaviour(
        "should preserve source pod IP for traffic thru service cluster IP [LinuxOnly]",
        "S-090, S-091",
        source_is_kept,
    ),
    behaviour(
        "should allow pods to hairpin back to themselves through services",
        "S-094",
        pods_reach_themselves,
    ),
    behaviour(
        "should work after the service has been recreated",
        "S-001, S-008, S-120",
        service_is_recreated,
    ),
    behaviour(
        "should update nodePort: udp",
        "S-023, S-037, S-119e",
        node_port_changes,
    ),
    behaviour(
        "should be able to create a functioning NodePort service",
        "S-030, S-080, S-204, P-8",
        node_port_functions,
    ),
    behaviour(
        "should be possible to connect to a service via ExternalIP when the external IP is not \
         assigned to a node",
        "S-025",
        external_ip_functions,
    ),
    behaviour(
        "should be able to update service type to NodePort listening on same port number but \
         different protocols",
        "S-023, S-037, S-119g",
        type_becomes_node_port_on_one_number,
    ),
    behaviour(
        "should be able to change the type from ExternalName to ClusterIP",
        "S-005, S-023",
        external_name_becomes_cluster_ip,
    ),
    behaviour(
        "should be able to change the type from ExternalName to NodePort",
        "S-005, S-023",
        external_name_becomes_node_port,
    ),
    behaviour(
        "should be able to change the type from ClusterIP to ExternalName",
        "S-005",
        cluster_ip_becomes_external_name,
    ),
    behaviour(
        "should be able to change the type from NodePort to ExternalName",
        "S-005, S-119c",
        node_port_becomes_external_name,
    ),
    behaviour(
        "should serve endpoints on same port and different protocols",
        "S-020, S-043",
        one_port_serves_two_protocols,
    ),
    behaviour(
        "should be updated after adding or deleting ports",
        "S-037, S-077",
        ports_come_and_go,
    ),
    behaviour(
        "should implement service.kubernetes.io/service-proxy-name",
        "S-002",
        label_hides_a_service,
    ),
    behaviour(
        "should be able to create LoadBalancer Service without NodePort and change it",
        "S-023, S-024, S-030",
        load_balancer_comes_and_goes,
    ),
    behaviour(
        "should only allow access from service loadbalancer source ranges",
        "S-112, S-113, S-116",
        source_ranges_filter,
    ),
    behaviour(
        "(dual stack): a Service gains and loses its second family",
        "S-021, S-022, S-036",
        second_family_comes_and_goes,
    ),
];

fn services_go_up_and_down(world: &mut World) -> Result<()> {
    world.run_pods("up-one", &["a", "b"])?;
    world.run_pods("up-two", &["a2"])?;
    let one = world.service("up-one", &json!({}))?.cluster_ip()?;
    let two = world.service("up-two", &json!({}))?.cluster_ip()?;
    world.await_all(&INSIDE, one, &["a", "b"])?;
    world.await_all(&PODS, two, &["a2"])?;
    world.lab.delete(&["service", "up-one"])?;
    world.await_silence(&PODS, one).context("deleted")?;
    world.await_all(&PODS, two, &["a2"])?;
    let three = world.service_of("up-three", "up-one", &json!({}))?;
    world.await_all(&INSIDE, three.cluster_ip()?, &["a", "b"])?;
    world.await_all(&PODS, two, &["a2"])
}

fn source_is_kept(world: &mut World) -> Result<()> {
    world.run_pods("source", &["a", "b"])?;
    let to = world.service("source", &json!({}))?.cluster_ip()?;
    world.await_all(&[Caller::FarPod, Caller::Pod], to, &["a", "b"])?;
    for caller in [Caller::Pod, Caller::Packets, Caller::FarPod] {
        let own = world.own(caller)?;
        for family in FAMILIES {
            world.await_report(caller, SocketKind::Tcp, to.of(family), |report| {
                let seen = report.seen_as.keys().collect::<Vec<_>>();
                seen == [&own[0].of(family)]
            })?;
        }
    }
    Ok(())
}

fn pods_reach_themselves(world: &mut World) -> Result<()> {
    // The pod `far` dials, and `b` beside it serves: here one pod has to do both.
    world.run_pods("hairpin", &["b"])?;
    let to = world.service("hairpin", &json!({}))?.cluster_ip()?;
    world.await_all(&PODS, to, &["b"])?;
    let nodes = node_addresses(2);
    for seen in [
        tests::topology::Seen::BySocketHooks,
        tests::topology::Seen::OnlyAsPackets,
    ] {
        let mut probe = tests::traffic::Probe::start(world.pod("b")?.place(seen))?;
        for family in FAMILIES {
            for socket in super::world::SOCKETS {
                let plan = tests::traffic::Plan::new(socket, to.of(family));
                let report = probe.connect(plan.times(10).payload(10).timeout_ms(1_500))?;
                ensure!(report.count("b") == 10, "{seen:?} {socket:?}: {report:?}");
                let masqueraded = report.seen_as.keys().all(|&ip| contains(&nodes, ip));
                ensure!(masqueraded, "{seen:?} {socket:?}: {report:?}");
            }
        }
    }
    Ok(())
}

fn node_port_functions(world: &mut World) -> Result<()> {
    world.run_pods("nodeport", &["a", "b"])?;
    let service = world.service("nodeport", &node_ports(31_001))?;
    let own = service.node_port()?;
    world.await_all(
        &[Caller::Outside, Caller::Pod, Caller::Packets],
        own,
        &["a", "b"],
    )?;
    world.await_servers(Caller::Node, own, &["a", "b"])?;
    let other = service.node_port_of("tcp", 2)?;
    world.await_all(
        &[Caller::Outside, Caller::Pod, Caller::Node],
        other,
        &["a", "b"],
    )?;
    world.await_all(&INSIDE, service.cluster_ip()?, &["a", "b"])
}

fn service_is_recreated(world: &mut World) -> Result<()> {
    world.run_pods("recreated", &["a"])?;
    let to = world
        .service("recreated", &node_ports(31_008))?
        .cluster_ip()?;
    world.await_all(&INSIDE, to, &["a"])?;
    world.lab.delete(&["service", "recreated"])?;
    world.await_silence(&INSIDE, to)?;
    let addresses = [to.addresses.v4.to_string(), to.addresses.v6.to_string()];
    let mut spec = node_ports(31_008);
    spec["clusterIP"] = json!(addresses[0]);
    spec["clusterIPs"] = json!(addresses);
    let again = world.service("recreated", &spec)?;
    ensure!(again.cluster_ip()? == to, "{again:?}");
    world.await_all(&INSIDE, to, &["a"])?;
    world.await_servers(Caller::Outside, again.node_port()?, &["a"])
}

fn node_port_changes(world: &mut World) -> Result<()> {
    world.run_pods("renumber", &["a", "b"])?;
    let mut service = world.service("renumber", &node_ports(31_009))?;
    let old = service.node_port()?;
    let callers = [Caller::Outside, Caller::Node, Caller::Packets];
    world.await_all(&callers, old, &["a", "b"])?;
    world.change(&mut service, &node_ports(31_010))?;
    world.await_all(&callers, service.node_port()?, &["a", "b"])?;
    // The old number is the host's again.
    world.await_refused(&callers, old)
}

fn external_ip_functions(world: &mut World) -> Result<()> {
    world.run_pods("external", &["a", "b"])?;
    let addresses = balanced(50);
    let spec = json!({"externalIPs": [addresses.v4, addresses.v6]});
    let to = world.service("external", &spec)?.cluster_ip()?;
    let external = Address { addresses, ..to };
    world.await_all(
        &[Caller::Pod, Caller::Packets, Caller::Outside],
        external,
        &["a", "b"],
    )
}

fn type_becomes_node_port_on_one_number(world: &mut World) -> Result<()> {
    world.run_pods("samenum", &["a"])?;
    let mut service = world.service("samenum", &json!({}))?;
    let cluster_ip = service.cluster_ip()?;
    world.await_all(&PODS, cluster_ip, &["a"])?;
    world.change(&mut service, &node_ports(31_002))?;
    world.await_all(
        &[Caller::Outside, Caller::Node],
        service.node_port()?,
        &["a"],
    )?;
    world.await_all(&PODS, cluster_ip, &["a"])
}

fn external_name_becomes(world: &mut World, name: &str, spec: &serde_json::Value) -> Result<()> {
    let external = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "ExternalName", "externalName": "example.org"},
    });
    world.lab.put(&external)?;
    world.run_pods(name, &["a", "b"])?;
    let mut more = spec.clone();
    more["externalName"] = json!(null);
    let service = world.service(name, &more)?;
    world.await_all(&INSIDE, service.cluster_ip()?, &["a", "b"])?;
    if spec["type"] == "NodePort" {
        let callers = [Caller::Outside, Caller::Node];
        world.await_all(&callers, service.node_port()?, &["a", "b"])?;
    }
    Ok(())
}

fn external_name_becomes_cluster_ip(world: &mut World) -> Result<()> {
    external_name_becomes(world, "en-clusterip", &json!({"type": "ClusterIP"}))
}

fn external_name_becomes_node_port(world: &mut World) -> Result<()> {
    external_name_becomes(world, "en-nodeport", &node_ports(31_003))
}

/// What an ExternalName Service may not have.
fn external_name() -> serde_json::Value {
    json!({
        "type": "ExternalName", "externalName": "example.org", "clusterIP": "", "clusterIPs": null,
        "ipFamilies": null, "ipFamilyPolicy": null,
        "ports": [port("TCP", TARGET_PORT), port("UDP", TARGET_PORT)],
    })
}

fn cluster_ip_becomes_external_name(world: &mut World) -> Result<()> {
    world.run_pods("clusterip-en", &["a"])?;
    let mut service = world.service("clusterip-en", &json!({}))?;
    let to = service.cluster_ip()?;
    world.await_all(&INSIDE, to, &["a"])?;
    world.change(&mut service, &external_name())?;
    world.await_silence(&PODS, to)
}

fn node_port_becomes_external_name(world: &mut World) -> Result<()> {
    world.run_pods("nodeport-en", &["a"])?;
    let mut service = world.service("nodeport-en", &node_ports(31_004))?;
    let (to, node_port) = (service.cluster_ip()?, service.node_port()?);
    world.await_all(&[Caller::Outside, Caller::Node], node_port, &["a"])?;
    world.change(&mut service, &external_name())?;
    world.await_silence(&PODS, to)?;
    // No Service's port is the host's to refuse.
    world.await_refused(&[Caller::Outside, Caller::Node], node_port)
}

fn one_port_serves_two_protocols(world: &mut World) -> Result<()> {
    world.run_pods("protocols", &["a"])?;
    let tcp = json!([port("TCP", TARGET_PORT)]);
    let udp = json!([port("UDP", TARGET_PORT)]);
    let mut service = world.service("protocols", &json!({"ports": tcp}))?;
    let to = service.cluster_ip()?;
    for caller in PODS {
        for family in FAMILIES {
            let to = to.of(family);
            world.await_report(caller, SocketKind::Tcp, to, |report| {
                report.servers() == ["a"]
            })?;
            world.await_report(caller, SocketKind::UdpConnected, to, |report| {
                report.failures.contains_key("ECONNREFUSED")
            })?;
        }
    }
    world.change(&mut service, &json!({"ports": udp}))?;
    for caller in PODS {
        for family in FAMILIES {
            let to = to.of(family);
            world.await_report(caller, SocketKind::UdpConnected, to, |report| {
                report.servers() == ["a"]
            })?;
            world.await_report(caller, SocketKind::Tcp, to, |report| {
                report.failures.contains_key("ECONNREFUSED")
            })?;
        }
    }
    world.change(&mut service, &json!({"ports": super::world::ports()}))?;
    world.await_all(&PODS, to, &["a"])
}

fn ports_come_and_go(world: &mut World) -> Result<()> {
    world.run_pods("ports", &["a", "b"])?;
    let mut service = world.service("ports", &json!({}))?;
    let to = service.cluster_ip()?;
    world.await_all(&PODS, to, &["a", "b"])?;
    world.await_refused(&PODS, to.at(81))?;
    let mut ports = super::world::ports();
    for (index, protocol) in ["TCP", "UDP"].into_iter().enumerate() {
        let mut other = port(protocol, OTHER_TARGET_PORT);
        other["port"] = json!(81);
        other["name"] = json!(format!("other-{index}"));
        ports.as_array_mut().context("a list")?.push(other);
    }
    world.change(&mut service, &json!({"ports": ports}))?;
    world.await_all(&PODS, to.at(81), &["a", "b"])?;
    world.await_all(&PODS, to, &["a", "b"])?;
    ports.as_array_mut().context("a list")?.drain(..2);
    world.change(&mut service, &json!({"ports": ports}))?;
    world.await_refused(&PODS, to)?;
    world.await_all(&PODS, to.at(81), &["a", "b"])
}

fn label_hides_a_service(world: &mut World) -> Result<()> {
    let label = "service.kubernetes.io/service-proxy-name";
    world.run_pods("proxyname", &["a", "b"])?;
    let service = world.service("proxyname", &node_ports(31_005))?;
    let (to, node_port) = (service.cluster_ip()?, service.node_port()?);
    world.await_all(&INSIDE, to, &["a", "b"])?;
    let set = format!("{label}=mesh");
    world
        .lab
        .kubectl(&["label", "service", "proxyname", &set])?;
    world.await_silence(&INSIDE, to)?;
    world.await_refused(&[Caller::Outside], node_port)?;
    let remove = format!("{label}-");
    world
        .lab
        .kubectl(&["label", "service", "proxyname", &remove])?;
    world.await_all(&INSIDE, to, &["a", "b"])?;
    world.await_servers(Caller::Outside, node_port, &["a", "b"])
}

fn load_balancer_comes_and_goes(world: &mut World) -> Result<()> {
    world.run_pods("balanced", &["a", "b"])?;
    let spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    let mut service = world.service("balanced", &spec)?;
    let to = service.cluster_ip()?;
    let virtual_address = Address {
        addresses: balanced(51),
        ..to
    };
    let ingress = |mode: Option<&str>| {
        let ingress = FAMILIES.map(|family| {
            let mut entry = json!({"ip": virtual_address.addresses.of(family)});
            if let Some(mode) = mode {
                entry["ipMode"] = json!(mode);
            }
            entry
        });
        json!({"loadBalancer": {"ingress": ingress}})
    };
    let callers = [Caller::Pod, Caller::Packets, Caller::Node, Caller::Outside];
    world
        .lab
        .patch_status("service", "balanced", &ingress(None))?;
    world.await_all(&callers, virtual_address, &["a", "b"])?;
    ensure!(service.node_port().is_err(), "{service:?}");
    world
        .lab
        .patch_status("service", "balanced", &ingress(Some("Proxy")))?;
    world
        .await_silence(&callers, virtual_address)
        .context("ipMode Proxy")?;
    world
        .lab
        .patch_status("service", "balanced", &ingress(Some("VIP")))?;
    world.await_all(&callers, virtual_address, &["a", "b"])?;
    world.change(
        &mut service,
        &json!({"type": "ClusterIP", "allocateLoadBalancerNodePorts": null}),
    )?;
    world
        .lab
        .patch_status("service", "balanced", &json!({"loadBalancer": null}))?;
    world.await_silence(&callers, virtual_address)?;
    world.await_all(&INSIDE, to, &["a", "b"])
}

fn source_ranges_filter(world: &mut World) -> Result<()> {
    world.run_pods("ranges", &["a"])?;
    let of = |caller| {
        let own = world.own(caller)?[0];
        Ok::<_, anyhow::Error>([format!("{}/32", own.v4), format!("{}/128", own.v6)])
    };
    let (outside, pod) = (of(Caller::Outside)?, of(Caller::Pod)?);
    let mut spec = node_ports(31_006);
    spec["type"] = json!("LoadBalancer");
    spec["loadBalancerSourceRanges"] = json!(outside);
    let mut service = world.service("ranges", &spec)?;
    let to = Address {
        addresses: balanced(52),
        ..service.cluster_ip()?
    };
    let ingress = FAMILIES.map(|family| json!({"ip": to.addresses.of(family)}));
    let status = json!({"loadBalancer": {"ingress": ingress}});
    world.lab.patch_status("service", "ranges", &status)?;
    world.await_servers(Caller::Outside, to, &["a"])?;
    world.await_silence(&[Caller::Pod, Caller::Packets, Caller::Node], to)?;
    world.await_all(&PODS, service.node_port()?, &["a"])?;
    world.change(&mut service, &json!({"loadBalancerSourceRanges": pod}))?;
    world.await_servers(Caller::Pod, to, &["a"])?;
    world.await_silence(&[Caller::Outside, Caller::Packets], to)?;
    world.change(&mut service, &json!({"loadBalancerSourceRanges": null}))?;
    let callers = [Caller::Pod, Caller::Packets, Caller::Outside, Caller::Node];
    world.await_all(&callers, to, &["a"])
}

fn second_family_comes_and_goes(world: &mut World) -> Result<()> {
    world.run_pods("families", &["a", "b"])?;
    let mut spec = node_ports(31_007);
    spec["ipFamilyPolicy"] = json!("SingleStack");
    let mut service = world.service("families", &spec)?;
    let [v4, v6] = FAMILIES;
    let single = service.cluster_ip()?;
    let only = |world: &mut World, to: Address, family, expected: &[&str]| {
        world.await_report(Caller::Packets, SocketKind::Tcp, to.of(family), |report| {
            report.servers() == expected && report.failed() == 0
        })
    };
    only(world, single, v4, &["a", "b"])?;
    let node_port = service.node_port()?;
    let refused = |world: &mut World| {
        world.await_report(
            Caller::Outside,
            SocketKind::Tcp,
            node_port.of(v6),
            |report| report.failures.contains_key("ECONNREFUSED"),
        )
    };
    refused(world)?;
    world.change(&mut service, &json!({"ipFamilyPolicy": "RequireDualStack"}))?;
    let dual = service.cluster_ip()?;
    ensure!(dual.addresses.v4 == single.addresses.v4, "{dual:?}");
    world.await_all(&INSIDE, dual, &["a", "b"])?;
    world.await_servers(Caller::Outside, node_port, &["a", "b"])?;
    let spec = json!({
        "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
        "clusterIPs": [dual.addresses.v4],
    });
    world.change(&mut service, &spec)?;
    world.await_report(Caller::Packets, SocketKind::Tcp, dual.of(v6), |report| {
        report.failures.contains_key("TIMEOUT")
    })?;
    refused(world)?;
    only(world, dual, v4, &["a", "b"]).map(drop)
}
