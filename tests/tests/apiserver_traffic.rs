//! Traffic through Services of a real API server: slices by the real controllers, the real agent
//! with the rights of its own service account, real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::lab::Lab;
use tests::net::eventually;
use tests::rig::{TARGET_PORT, serve};
use tests::topology::addresses::{self, Addresses, FAMILIES, IpFamily};
use tests::topology::{Cluster, Pod, Seen, Variant};
use tests::traffic::{Held, Plan, Probe, Report, SocketKind};

/// Far longer than a controller or a reconnection takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How pods get to a Service: translated at the socket, and as packets.
const PATHS: [Seen; 2] = [Seen::BySocketHooks, Seen::OnlyAsPackets];
const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;

/// One thing that happens in the cluster, and what traffic has to show afterwards.
struct Step {
    name: &'static str,
    rules: &'static str,
    run: fn(&mut World) -> Result<()>,
}

/// In this order: each begins where the one before ended.
const STEPS: [Step; 9] = [
    Step {
        name: "ready pods of a Service answer",
        rules: "S-001, S-007, S-021, S-030, S-040, S-041, S-042, S-043, S-044, S-045, S-046",
        run: ready_pods_answer,
    },
    Step {
        name: "a pod reaches the API server by its Service",
        rules: "S-020, S-043, S-076",
        run: api_server_is_reached,
    },
    Step {
        name: "a pod that appears is reached",
        rules: "S-042, S-216",
        run: added_pod_is_reached,
    },
    Step {
        name: "an unready pod is not reached until it is ready again",
        rules: "S-046, S-216",
        run: unready_pod_is_avoided,
    },
    Step {
        name: "a terminating pod gets nothing new, a deleted one nothing but open connections",
        rules: "S-046, S-120, S-124, S-126, S-216",
        run: deleted_pod_is_left,
    },
    Step {
        name: "slices and Services that are headless are not ours",
        rules: "S-002, S-004, S-005",
        run: headless_is_ignored,
    },
    Step {
        name: "a Service of another proxy is not ours",
        rules: "S-002, S-078",
        run: label_hides_a_service,
    },
    Step {
        name: "an API server that dies and comes back is no event",
        rules: "S-006, S-008, S-120",
        run: api_server_restarts,
    },
    Step {
        name: "a deleted Service is dropped, its open connections are not",
        rules: "S-078, S-120",
        run: deleted_service_is_gone,
    },
];

#[test]
fn traffic_follows_a_real_cluster() -> Result<()> {
    let mut world = World::new().context("building the cluster")?;
    for step in STEPS {
        (step.run)(&mut world).with_context(|| {
            let log = world.agent.log_tail();
            format!("{} ({})\n--- agent\n{log}\n---", step.name, step.rules)
        })?;
    }
    Ok(())
}

fn ready_pods_answer(world: &mut World) -> Result<()> {
    world.await_web(&["a", "b"])
}

/// The Service `kubernetes`, whose slice the API server itself makes.
fn api_server_is_reached(world: &mut World) -> Result<()> {
    let ca = world.lab.kubeconfig().with_file_name("ca.crt");
    let ca = ca.display().to_string();
    let client = world.pod("packets")?;
    let words = ["curl", "-sS", "--max-time", "5", "--cacert", &ca];
    let url = ["https://10.96.0.1/livez"];
    let output = client.netns.run(&[&words[..], &url].concat())?;
    ensure!(output == "ok", "{output}");
    Ok(())
}

fn added_pod_is_reached(world: &mut World) -> Result<()> {
    world.while_running(|world| {
        let pod = world.cluster.add_pod(0, "c")?;
        world.servers.push(serve(&pod)?);
        world.lab.add_cluster_pod(&pod, "web")?;
        world.await_web(&["a", "b", "c"])
    })
}

fn unready_pod_is_avoided(world: &mut World) -> Result<()> {
    world.while_running(|world| {
        world.lab.set_ready("a", "False")?;
        world.await_web(&["b", "c"])?;
        world.lab.set_ready("a", "True")?;
        world.await_web(&["a", "b", "c"])
    })
}

fn deleted_pod_is_left(world: &mut World) -> Result<()> {
    world.hold()?;
    let flow = world.hold_udp("b")?;
    world.while_running(|world| {
        let words = ["delete", "pod", "b", "--grace-period=600", "--wait=false"];
        world.lab.kubectl(&words)?;
        world.await_web(&["a", "c"])?;
        let answer = world.clients[1].holding.ask(flow, 10)?;
        ensure!(answer.server == "b", "it still serves: {answer:?}");
        world.lab.delete(&["pod", "b"])?;
        eventually(PATIENCE, || {
            let answer = world.clients[1].holding.ask(flow, 10)?;
            ensure!(answer.server != "b", "{answer:?}");
            Ok(())
        })
        .context("UDP that goes on")
    })?;
    world.await_web(&["a", "c"])?;
    world.ask_held()
}

fn headless_is_ignored(world: &mut World) -> Result<()> {
    let label = ["label", "endpointslice", "manual-v4", "manual-v6"];
    let lab = &world.lab;
    let selector = json!({"app": "web"});
    lab.apply(&service(
        "headless",
        &json!({"clusterIP": "None", "selector": selector}),
    ))?;
    lab.apply(&service("manual", &json!({})))?;
    lab.apply(&manual_slices(world.pod("a")?))?;
    let manual = cluster_ips(lab, "manual")?;
    world.await_servers(manual, &["a"])?;
    world
        .lab
        .kubectl(&[&label[..], &["service.kubernetes.io/headless="]].concat())?;
    world.await_failure(manual, "ECONNREFUSED")?;
    world
        .lab
        .kubectl(&[&label[..], &["service.kubernetes.io/headless-"]].concat())?;
    world.await_servers(manual, &["a"])?;
    let words = ["service", "list", "--bpffs", &world.agent.bpffs()];
    let list = world.agent.shunt(&words)?;
    ensure!(
        list.contains("manual") && !list.contains("headless"),
        "{list}"
    );
    Ok(())
}

fn label_hides_a_service(world: &mut World) -> Result<()> {
    let label = ["label", "service", "web"];
    let (set, remove) = (
        "service.kubernetes.io/service-proxy-name=mesh",
        "service.kubernetes.io/service-proxy-name-",
    );
    world.lab.kubectl(&[&label[..], &[set]].concat())?;
    world.await_failure(world.web, "TIMEOUT")?;
    world.ask_held()?;
    world.lab.kubectl(&[&label[..], &[remove]].concat())?;
    world.await_web(&["a", "c"])
}

fn api_server_restarts(world: &mut World) -> Result<()> {
    world.while_running(|world| {
        world.lab.stop_server()?;
        world.await_web(&["a", "c"]).context("while it is away")?;
        await_watched(world, false)?;
        world.lab.up()?;
        world.await_web(&["a", "c"]).context("when it is back")?;
        await_watched(world, true)?;
        world.lab.set_ready("c", "False")?;
        world.await_web(&["a"]).context("a change afterwards")
    })?;
    world.ask_held()
}

/// Waits until `shunt status` says that all kinds are watched, or that none is, and why.
fn await_watched(world: &World, is_watched: bool) -> Result<()> {
    eventually(PATIENCE, || {
        let status = world.agent.status()?;
        let watches = status["source"]["watches"].as_array().context("watches")?;
        let is_so = |watch: &Value| {
            watch["connected"] == is_watched && watch["error"].is_string() != is_watched
        };
        ensure!(
            watches.len() == 4 && watches.iter().all(is_so),
            "{watches:#?}"
        );
        let reasons = status["unhealthy"].as_array().context("reasons")?;
        let is_told = reasons.iter().any(|reason| {
            let text = reason.as_str().unwrap_or_default();
            text.starts_with("not watched: ")
        });
        ensure!(is_told != is_watched, "{reasons:?}");
        Ok(())
    })
}

fn deleted_service_is_gone(world: &mut World) -> Result<()> {
    world.lab.delete(&["service", "web"])?;
    world.await_failure(world.web, "TIMEOUT")?;
    for family in FAMILIES {
        let to = at(addresses::node(1), family, NODE_PORT);
        let report = world.outside.connect(Plan::new(SocketKind::Tcp, to))?;
        let refused = report.failures.contains_key("ECONNREFUSED");
        ensure!(refused, "no node port, as of any host: {report:?}");
    }
    world.ask_held()
}

/// The processes of a pod on n1 that uses Services, one for each purpose.
struct Client {
    /// For connections until an expectation is met.
    asking: Probe,
    /// For connections that go on while something changes.
    running: Probe,
    /// For connections that stay open, with the servers that they were opened to.
    holding: Probe,
    held: Vec<(usize, String)>,
}

/// A cluster with a control plane. The pods are those of the clients and `a` on n1, `b` on n2, and
/// later `c` on n1.
struct World {
    agent: Agent,
    clients: Vec<Client>,
    outside: Probe,
    servers: Vec<Probe>,
    /// The Service `web` in front of a, b and c.
    web: Addresses,
    lab: Lab,
    // Dropped last: it owns all processes and namespaces.
    cluster: Cluster,
}

impl World {
    fn new() -> Result<Self> {
        let mut cluster = Cluster::new(Variant::default())?;
        // Where both nodes reach it, as a control plane of its own machine.
        let address = addresses::uplink(1).v4.to_string();
        let lab = Lab::start(cluster.sandbox(), &cluster.net, &address)?;
        for node in &cluster.nodes {
            lab.add_cluster_node(node)?;
        }
        // One for each path: sockets that go straight to a backend and sockets whose packets are
        // translated do not know of each other's source ports.
        let callers = [cluster.add_pod(0, "seen")?, cluster.add_pod(0, "packets")?];
        let mut servers = Vec::new();
        for (node, name) in [(0, "a"), (1, "b")] {
            let pod = cluster.add_pod(node, name)?;
            servers.push(serve(&pod)?);
            lab.add_cluster_pod(&pod, "web")?;
        }
        lab.apply(&service(
            "web",
            &json!({"type": "NodePort", "selector": {"app": "web"}}),
        ))?;
        let web = cluster_ips(&lab, "web")?;
        lab.apply(include_str!("../../deploy/shunt.yaml"))?;
        let kubeconfig = lab.kubeconfig_of("kube-system", "shunt")?;
        let agent = Agent::watching(&cluster, &cluster.nodes[0], &kubeconfig, &[])?;
        Ok(Self {
            agent,
            clients: callers
                .iter()
                .zip(PATHS)
                .map(|(pod, seen)| Client::new(pod, seen))
                .collect::<Result<_>>()?,
            outside: Probe::start(&cluster.client.place())?,
            servers,
            web,
            lab,
            cluster,
        })
    }

    fn pod(&self, name: &str) -> Result<&Pod> {
        let pod = self.cluster.pods.iter().find(|pod| pod.name == name);
        pod.with_context(|| format!("no pod {name}"))
    }

    /// Waits until exactly `servers` answer at `to`, by both paths, families and protocols.
    fn await_servers(&mut self, to: Addresses, servers: &[&str]) -> Result<()> {
        for (client, seen) in self.clients.iter_mut().zip(PATHS) {
            for family in FAMILIES {
                for socket in [SocketKind::Tcp, SocketKind::Udp] {
                    let to = at(to, family, PORT);
                    await_servers(&mut client.asking, socket, to, servers)
                        .with_context(|| format!("a pod, {seen:?}"))?;
                }
            }
        }
        Ok(())
    }

    /// As [`Self::await_servers`] at `web`, and from outside at its node port.
    fn await_web(&mut self, servers: &[&str]) -> Result<()> {
        self.await_servers(self.web, servers)?;
        for family in FAMILIES {
            let to = at(addresses::node(1), family, NODE_PORT);
            await_servers(&mut self.outside, SocketKind::Tcp, to, servers).context("outside")?;
        }
        Ok(())
    }

    /// Waits until no TCP connection to `to` succeeds; all fail with `error`.
    fn await_failure(&mut self, to: Addresses, error: &str) -> Result<()> {
        for (client, seen) in self.clients.iter_mut().zip(PATHS) {
            for family in FAMILIES {
                let plan = Plan::new(SocketKind::Tcp, at(to, family, PORT)).timeout_ms(300);
                eventually(PATIENCE, || {
                    let report = client.asking.connect(plan.clone())?;
                    ensure!(report.failures.contains_key(error), "{report:?}");
                    Ok(())
                })
                .with_context(|| format!("a pod, {seen:?}: {} expects {error}", plan.to))?;
            }
        }
        Ok(())
    }

    /// Runs `change` while connections to `web` are made one after the other, none of which may
    /// fail.
    fn while_running(&mut self, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let to = at(self.web, IpFamily::V4, PORT);
        for client in &mut self.clients {
            let plan = Plan::new(SocketKind::Tcp, to).until_finish().payload(100);
            client.running.begin(plan)?;
        }
        change(self)?;
        for (client, seen) in self.clients.iter_mut().zip(PATHS) {
            let report = client.running.finish()?;
            ensure!(
                report.failed() == 0 && report.answered() > 0,
                "{seen:?}: {report:?}"
            );
        }
        Ok(())
    }

    /// Has every path hold connections to `web`.
    fn hold(&mut self) -> Result<()> {
        for client in &mut self.clients {
            for family in FAMILIES {
                for _ in 0..6 {
                    let plan = Held::new(SocketKind::Tcp, at(self.web, family, PORT));
                    let (number, answer) = client.holding.open(plan)?;
                    client.held.push((number, answer.server));
                }
            }
        }
        Ok(())
    }

    /// Holds a UDP flow as packets to `server`, and returns its number.
    fn hold_udp(&mut self, server: &str) -> Result<usize> {
        let plan = Held::new(SocketKind::UdpConnected, at(self.web, IpFamily::V4, PORT));
        for _ in 0..100 {
            let (number, answer) = self.clients[1].holding.open(plan.clone())?;
            if answer.server == server {
                return Ok(number);
            }
        }
        bail!("none of 100 flows got to {server}")
    }

    /// Every held connection talks to the server that it was opened to.
    fn ask_held(&mut self) -> Result<()> {
        for (client, seen) in self.clients.iter_mut().zip(PATHS) {
            for (number, server) in &client.held {
                let answer = client.holding.ask(*number, 10_000)?;
                ensure!(
                    answer.server == *server,
                    "{seen:?}: {answer:?}, not {server}"
                );
            }
        }
        Ok(())
    }
}

impl Client {
    fn new(pod: &Pod, seen: Seen) -> Result<Self> {
        let probe = || Probe::start(pod.place(seen));
        Ok(Self {
            asking: probe()?,
            running: probe()?,
            holding: probe()?,
            held: Vec::new(),
        })
    }
}

fn at(addresses: Addresses, family: IpFamily, port: u16) -> SocketAddr {
    (addresses.of(family), port).into()
}

fn await_servers(
    probe: &mut Probe,
    socket: SocketKind,
    to: SocketAddr,
    servers: &[&str],
) -> Result<()> {
    let plan = Plan::new(socket, to).times(40).timeout_ms(1_000);
    let plan = plan.payload(10).max_failures(1);
    eventually(PATIENCE, || {
        let report: Report = probe.connect(plan.clone())?;
        ensure!(
            report.failed() == 0 && report.servers() == servers,
            "{report:?}"
        );
        Ok(())
    })
    .with_context(|| format!("{socket:?} to {to}, expecting {servers:?}"))
}

/// A dual-stack Service with TCP and UDP on `PORT`, and more fields of `spec`.
fn service(name: &str, more: &Value) -> String {
    let port = |name: &str, node_port: u16| {
        json!({
            "name": name.to_lowercase(), "protocol": name,
            "port": PORT, "targetPort": TARGET_PORT, "nodePort": node_port,
        })
    };
    let mut spec = json!({"ipFamilyPolicy": "RequireDualStack"});
    let is_node_port = more["type"] == "NodePort";
    let node_port = if is_node_port { NODE_PORT } else { 0 };
    spec["ports"] = json!([port("TCP", node_port), port("UDP", node_port)]);
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

/// Slices by hand: pod `a` behind the Service `manual`.
fn manual_slices(pod: &Pod) -> String {
    let port =
        |name: &str| json!({"name": name.to_lowercase(), "protocol": name, "port": TARGET_PORT});
    let slice = |family: IpFamily| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("manual-{family:?}").to_lowercase(),
                "labels": {"kubernetes.io/service-name": "manual"},
            },
            "addressType": format!("IP{family:?}").replace("IPV", "IPv"),
            "endpoints": [{"addresses": [pod.addresses.of(family)], "conditions": {"ready": true}}],
            "ports": [port("TCP"), port("UDP")],
        })
    };
    let slices = FAMILIES.map(slice);
    json!({"apiVersion": "v1", "kind": "List", "items": slices}).to_string()
}

/// The ClusterIPs that the API server gave.
fn cluster_ips(lab: &Lab, name: &str) -> Result<Addresses> {
    let words = ["get", "service", name, "-o", "jsonpath={.spec.clusterIPs}"];
    let text = lab.kubectl(&words)?;
    let (v4, v6) = serde_json::from_str(&text).with_context(|| text.clone())?;
    Ok(Addresses { v4, v6 })
}
