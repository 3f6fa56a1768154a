//! The cluster that all behaviours share.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::lab::Lab;
use tests::net::{Place, eventually};
use tests::rig::{TARGET_PORT, node_addresses, serve};
use tests::topology::addresses::{self, Addresses, FAMILIES, IpFamily};
use tests::topology::{Cluster, Node, Pod, Seen, Variant};
use tests::traffic::{Answer, Held, Plan, Probe, Report, Server, SocketKind};

/// Far longer than a controller, a reconnection or a restart takes.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// The port of every Service.
pub const PORT: u16 = 80;
/// Another port where the servers of the pods listen.
pub const OTHER_TARGET_PORT: u16 = 8081;
/// Limit of a wait for an answer.
const ANSWER_MS: u64 = 1_500;
/// Limit of a wait for nothing.
const SILENCE_MS: u64 = 300;
/// Connections of one look. With two backends the chance that one of them gets none is one in a
/// million.
const CONNECTIONS: u32 = 20;

/// Who dials. `Packets` is a pod that the socket hooks do not see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Caller {
    /// A pod on n1.
    Pod,
    /// A pod on n1 whose sockets are not seen.
    Packets,
    /// A process of n1, as a pod in its network is.
    Node,
    /// A pod on n2.
    FarPod,
    /// A client outside.
    Outside,
}

/// Pods of n1 by both paths.
pub const PODS: [Caller; 2] = [Caller::Pod, Caller::Packets];
/// Who uses a ClusterIP.
pub const INSIDE: [Caller; 3] = [Caller::Pod, Caller::Packets, Caller::Node];
/// What every Service of the behaviours serves.
pub const SOCKETS: [SocketKind; 2] = [SocketKind::Tcp, SocketKind::Udp];

/// A Service as the API server made it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The object.
    pub object: Value,
}

/// A cluster with a control plane. The pods of the callers are `client` and `packets` on n1 and
/// `far` on n2; servers run in `a` and `a2` on n1, in `b` on n2, and in the network of n1.
pub struct World {
    pub agents: Vec<Agent>,
    probes: BTreeMap<Caller, Probe>,
    _servers: Vec<Probe>,
    pub lab: Lab,
    // Dropped last: it owns all processes and namespaces.
    pub cluster: Cluster,
}

impl World {
    /// Builds it.
    pub fn new() -> Result<Self> {
        let mut cluster = Cluster::new(Variant::default())?;
        let address = addresses::uplink(1).v4.to_string();
        let lab = Lab::start(cluster.sandbox(), &cluster.net, &address)?;
        for node in &cluster.nodes {
            lab.add_cluster_node(node)?;
        }
        for (node, name) in [(0, "client"), (0, "packets"), (1, "far")] {
            cluster.add_pod(node, name)?;
        }
        let mut servers = Vec::new();
        for (node, name) in [(0, "a"), (0, "a2"), (1, "b"), (1, "b2")] {
            let pod = cluster.add_pod(node, name)?;
            let mut server = serve(&pod)?;
            listen(&mut server, &pod.name, pod.addresses, OTHER_TARGET_PORT)?;
            servers.push(server);
        }
        let n1 = &cluster.nodes[0];
        let mut server = Probe::start(&n1.place(Seen::BySocketHooks))?;
        listen(&mut server, &n1.name, n1.addresses, TARGET_PORT)?;
        servers.push(server);
        lab.apply(include_str!("../../../deploy/shunt.yaml"))?;
        let kubeconfig = lab.kubeconfig_of("kube-system", "shunt")?;
        let agents = cluster
            .nodes
            .iter()
            .map(|node| Agent::watching(&cluster, node, &kubeconfig, &[]))
            .collect::<Result<_>>()?;
        Ok(Self {
            agents,
            probes: BTreeMap::new(),
            _servers: servers,
            lab,
            cluster,
        })
    }

    /// The process that plays `caller`.
    pub fn probe(&mut self, caller: Caller) -> Result<&mut Probe> {
        if !self.probes.contains_key(&caller) {
            let probe = Probe::start(&self.place(caller)?)?;
            self.probes.insert(caller, probe);
        }
        self.probes.get_mut(&caller).context("it was just made")
    }

    /// A process of its own beside the one that plays `caller`.
    pub fn another(&self, caller: Caller) -> Result<Probe> {
        Probe::start(&self.place(caller)?)
    }

    fn place(&self, caller: Caller) -> Result<Place> {
        Ok(match caller {
            Caller::Pod => self.pod("client")?.place(Seen::BySocketHooks).clone(),
            Caller::Packets => self.pod("packets")?.place(Seen::OnlyAsPackets).clone(),
            Caller::FarPod => self.pod("far")?.place(Seen::BySocketHooks).clone(),
            Caller::Node => self.cluster.nodes[0].place(Seen::BySocketHooks),
            Caller::Outside => self.cluster.client.place(),
        })
    }

    /// The addresses that `caller` has itself.
    pub fn own(&self, caller: Caller) -> Result<Vec<Addresses>> {
        Ok(match caller {
            Caller::Pod => vec![self.pod("client")?.addresses],
            Caller::Packets => vec![self.pod("packets")?.addresses],
            Caller::FarPod => vec![self.pod("far")?.addresses],
            Caller::Node => node_addresses(1),
            Caller::Outside => vec![self.cluster.client.addresses],
        })
    }

    /// A pod by its name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        let pod = self.cluster.pods.iter().find(|pod| pod.name == name);
        pod.with_context(|| format!("no pod {name}"))
    }

    /// n1.
    pub fn n1(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    /// Adds ready Pod objects with the label `app`, one for each of these pods. The object is
    /// called `APP-POD`.
    pub fn run_pods(&self, app: &str, pods: &[&str]) -> Result<()> {
        for name in pods {
            let pod = self.pod(name)?;
            let own = FAMILIES.map(|family| pod.addresses.of(family).to_string());
            let own = own.each_ref().map(String::as_str);
            self.lab
                .add_pod(&format!("{app}-{name}"), &pod.node, app, &own)?;
        }
        Ok(())
    }

    /// As [`Self::run_pods`] with one pod in the network of n1.
    pub fn run_host_pod(&self, app: &str) -> Result<()> {
        let n1 = self.n1();
        let own = FAMILIES.map(|family| n1.addresses.of(family).to_string());
        let own = own.each_ref().map(String::as_str);
        self.lab.add_pod(&format!("{app}-n1"), &n1.name, app, &own)
    }

    /// Deletes the Pod objects of [`Self::run_pods`] at once.
    pub fn end_pods(&self, app: &str, pods: &[&str]) -> Result<()> {
        let names: Vec<_> = pods.iter().map(|pod| format!("{app}-{pod}")).collect();
        let mut words = vec!["pod"];
        words.extend(names.iter().map(String::as_str));
        self.lab.delete(&words)
    }

    /// Deletes a Pod object with a grace that does not end: it is terminating.
    pub fn terminate(&self, app: &str, pod: &str) -> Result<()> {
        let name = format!("{app}-{pod}");
        let words = ["delete", "pod", &name, "--grace-period=600", "--wait=false"];
        self.lab.kubectl(&words).map(drop)
    }

    /// Makes a dual-stack Service of the pods with the label `app` of the same name, on `PORT` over
    /// TCP and UDP, with more fields of `spec`.
    pub fn service(&self, name: &str, more: &Value) -> Result<Service> {
        self.service_of(name, name, more)
    }

    /// As [`Self::service`] with another label.
    pub fn service_of(&self, name: &str, app: &str, more: &Value) -> Result<Service> {
        let mut spec = json!({
            "selector": {"app": app}, "ipFamilyPolicy": "RequireDualStack", "ports": ports(),
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let object = self.lab.put(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec,
        }))?;
        Ok(Service {
            name: name.to_owned(),
            object,
        })
    }

    /// Merges `spec` into a Service's.
    pub fn change(&self, service: &mut Service, spec: &Value) -> Result<()> {
        let patch = json!({"spec": spec});
        service.object = self.lab.patch("service", &service.name, &patch)?;
        Ok(())
    }

    /// Waits until exactly `servers` answer `caller` at `to`, over TCP and UDP of both families.
    pub fn await_servers(&mut self, caller: Caller, to: Address, servers: &[&str]) -> Result<()> {
        for family in FAMILIES {
            for socket in SOCKETS {
                self.await_report(caller, socket, to.of(family), |report| {
                    report.failed() == 0 && report.servers() == servers
                })
                .with_context(|| format!("expecting {servers:?}"))?;
            }
        }
        Ok(())
    }

    /// As [`Self::await_servers`] for several callers.
    pub fn await_all(&mut self, callers: &[Caller], to: Address, servers: &[&str]) -> Result<()> {
        let mut callers = callers.iter();
        callers.try_for_each(|&caller| self.await_servers(caller, to, servers))
    }

    /// Waits until a look at `to` is as `wanted`.
    pub fn await_report(
        &mut self,
        caller: Caller,
        socket: SocketKind,
        to: SocketAddr,
        wanted: impl Fn(&Report) -> bool,
    ) -> Result<Report> {
        let plan = Plan::new(socket, to).times(CONNECTIONS).payload(10);
        let plan = plan.timeout_ms(ANSWER_MS).max_failures(1);
        let probe = self.probe(caller)?;
        eventually(PATIENCE, || {
            let report = probe.connect(plan.clone())?;
            ensure!(wanted(&report), "{report:?}");
            Ok(report)
        })
        .with_context(|| format!("{caller:?} to {to} {socket:?}"))
    }

    /// Waits until `callers` are refused at `to`, over TCP and connected UDP of both families.
    pub fn await_refused(&mut self, callers: &[Caller], to: Address) -> Result<()> {
        let sockets = [SocketKind::Tcp, SocketKind::UdpConnected];
        self.await_failure(callers, to, &sockets, "ECONNREFUSED")
    }

    /// Waits until nothing answers `callers` at `to`.
    pub fn await_silence(&mut self, callers: &[Caller], to: Address) -> Result<()> {
        self.await_failure(callers, to, &SOCKETS, "TIMEOUT")
    }

    fn await_failure(
        &mut self,
        callers: &[Caller],
        to: Address,
        sockets: &[SocketKind],
        error: &str,
    ) -> Result<()> {
        let limit = if error == "TIMEOUT" {
            SILENCE_MS
        } else {
            ANSWER_MS
        };
        for &caller in callers {
            for family in FAMILIES {
                for &socket in sockets {
                    let plan = Plan::new(socket, to.of(family)).timeout_ms(limit);
                    let probe = self.probe(caller)?;
                    eventually(PATIENCE, || {
                        let report = probe.connect(plan.clone())?;
                        ensure!(report.failures.contains_key(error), "{report:?}");
                        Ok(())
                    })
                    .with_context(|| {
                        format!("{caller:?} to {} {socket:?} expects {error}", plan.to)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Has `caller` hold one connection to `to`.
    pub fn hold(
        &mut self,
        caller: Caller,
        socket: SocketKind,
        to: SocketAddr,
    ) -> Result<(usize, Answer)> {
        let held = Held::new(socket, to).timeout_ms(ANSWER_MS);
        self.probe(caller)?.open(held)
    }
}

/// The ports of every Service: `PORT` over TCP and UDP.
pub fn ports() -> Value {
    json!([port("TCP", TARGET_PORT), port("UDP", TARGET_PORT)])
}

/// `PORT` over `protocol`.
pub fn port(protocol: &str, target_port: u16) -> Value {
    json!({
        "name": protocol.to_lowercase(), "protocol": protocol, "port": PORT,
        "targetPort": target_port,
    })
}

fn listen(server: &mut Probe, name: &str, addresses: Addresses, port: u16) -> Result<()> {
    for family in FAMILIES {
        for socket in SOCKETS {
            server.serve(Server {
                name: name.to_owned(),
                socket,
                listen: (addresses.of(family), port).into(),
            })?;
        }
    }
    Ok(())
}

/// Addresses of both families and one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// The addresses.
    pub addresses: Addresses,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Of one family.
    pub fn of(self, family: IpFamily) -> SocketAddr {
        (self.addresses.of(family), self.port).into()
    }

    /// The same addresses with another port.
    pub fn at(self, port: u16) -> Self {
        Self { port, ..self }
    }
}

impl Service {
    /// Its ClusterIPs and `PORT`.
    pub fn cluster_ip(&self) -> Result<Address> {
        let ips: Vec<IpAddr> = serde_json::from_value(self.object["spec"]["clusterIPs"].clone())?;
        let mut addresses = addresses::service(0);
        for ip in ips {
            match ip {
                IpAddr::V4(v4) => addresses.v4 = v4,
                IpAddr::V6(v6) => addresses.v6 = v6,
            }
        }
        Ok(Address {
            addresses,
            port: PORT,
        })
    }

    /// The node port of its port `name` on node `number`.
    pub fn node_port_of(&self, name: &str, number: u8) -> Result<Address> {
        let ports = self.object["spec"]["ports"].as_array();
        let mut ports = ports.into_iter().flatten();
        let port = ports.find(|port| port["name"] == name);
        let port = port.and_then(|port| port["nodePort"].as_u64());
        Ok(Address {
            addresses: addresses::node(number),
            port: port.context("no node port")?.try_into()?,
        })
    }

    /// The node port that its TCP and UDP port share, on n1.
    pub fn node_port(&self) -> Result<Address> {
        self.node_port_of("tcp", 1)
    }
}

/// Ports for a Service of type NodePort whose TCP and UDP port share the number.
pub fn node_ports(number: u16) -> Value {
    let mut ports = ports();
    for index in [0, 1] {
        ports[index]["nodePort"] = number.into();
    }
    json!({"type": "NodePort", "ports": ports})
}
