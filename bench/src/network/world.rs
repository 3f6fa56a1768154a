//! The clusters, alike but for what runs on their first node, with traffic processes in them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::xdp::{Xdp, XdpMode};
use proxy_userspace::datapath::load::XDP_PROGRAM;
use proxy_userspace::datapath::maps::KernelMaps;
use serde_json::Value;
use tests::agent::Agent;
use tests::cases::kernel;
use tests::manifests::Manifests;
use tests::rig::TARGET_PORT;
use tests::topology::addresses::{self, IpFamily, PODS4, PODS6};
use tests::topology::{Cluster, Seen, Variant};

use super::cells::{Cell, Links, Proxy, SITES, Seat};
use super::service;
use super::traffic::{Driver, Listener, Outcome, Request, Task};
use crate::apiserver::Server;
use crate::objects::{self, Size};
use crate::peers::{self, Ground, KubeProxy, Peer};

/// The link by which a node reaches the API server.
const API_LINK: &str = "api0";
/// The network that nodes and clients share.
const SHARED: &str = "192.168.77.0/24";
/// A part of it that has no other hosts.
const CLIENTS_OUTSIDE: &str = "192.168.77.128/25";
/// The first host of that part.
const FIRST_CLIENT: u8 = 129;
/// How many there are.
const CLIENTS: u32 = 125;
/// How long a first request of each cell takes.
const FIRST: Duration = Duration::from_millis(20);

/// All clusters with one number of Services.
pub struct World {
    sites: BTreeMap<(Proxy, Links), Site>,
    /// On the far ends of uplinks that XDP may send by: without a program there a veth takes no
    /// frame from XDP.
    _passing: Ebpf,
}

/// A cluster.
pub struct Site {
    drivers: BTreeMap<Seat, Driver>,
    _servers: Vec<Listener>,
    /// shunt's maps, where it is.
    pub maps: Option<KernelMaps>,
    _agent: Option<Agent>,
    /// The namespaces.
    pub cluster: Cluster,
}

impl World {
    /// Builds everything, with `services` in each proxy, and sees that every way leads to its
    /// backend.
    pub fn start(services: u32, kube_proxy: &KubeProxy) -> Result<Self> {
        let fillers = Size {
            services: services.saturating_sub(1),
            endpoints: services.saturating_sub(1),
        };
        let server = Server::start(fillers)?;
        let mut passing = kernel::load()?;
        let mut sites = BTreeMap::new();
        for (number, site) in (1..).zip(SITES) {
            let (proxy, links) = site;
            let mut built = Site::new(links, &mut passing)?;
            built
                .add_proxy((proxy, number), fillers, (&server, kube_proxy))
                .with_context(|| format!("{proxy:?} with {links:?} links"))?;
            sites.insert(site, built);
        }
        // Their rules are in the kernel: the API server would take a share of the processors.
        drop(server);
        Ok(Self {
            sites,
            _passing: passing,
        })
    }

    /// The cluster of a cell.
    pub fn site(&mut self, cell: Cell) -> Result<&mut Site> {
        self.sites.get_mut(&cell.site()).context("no such cluster")
    }

    /// Gives the clients outside another address: to a proxy each round has a client of its own,
    /// whose ports nobody has used before.
    pub fn begin_round(&self, round: u32) -> Result<()> {
        let host = FIRST_CLIENT + (round % CLIENTS) as u8;
        let address = addresses::uplink(host).v4;
        for site in self.sites.values() {
            let via = site.cluster.nodes[0].addresses.v4;
            site.cluster.client.netns.ip(&format!(
                "addr replace {address}/24 dev eth0\n\
                 route replace {SHARED} dev eth0 src {address}\n\
                 route replace {PODS4} via {via} src {address}\n"
            ))?;
        }
        Ok(())
    }

    /// Every cell answers; an error names the one that does not.
    pub fn try_all(&mut self, cells: impl Iterator<Item = Cell>) -> Result<()> {
        for cell in cells {
            for task in [Task::Latency, Task::Connects, Task::Datagrams, Task::Stream] {
                self.site(cell)?.measure(cell, task, FIRST)?;
            }
        }
        Ok(())
    }
}

impl Site {
    /// A cluster without a proxy. Its pods are, in this order, the near backend, the far one, the
    /// client, and the client that socket hooks do not see.
    fn new(links: Links, passing: &mut Ebpf) -> Result<Self> {
        let mut cluster = Cluster::new(Variant {
            offloads: links.offloads(),
            ..Variant::default()
        })?;
        for (node, name) in [(0, "near"), (1, "far"), (0, "client"), (0, "unseen")] {
            cluster.add_pod(node, name)?;
        }
        let listen = |at: usize| {
            let pod = &cluster.pods[at];
            let address = pod.at(IpFamily::V4, TARGET_PORT);
            Listener::start(pod.place(Seen::BySocketHooks), address)
        };
        let servers = vec![listen(0)?, listen(1)?];
        let places = [
            (
                Seat::Pod,
                cluster.pods[2].place(Seen::BySocketHooks).clone(),
            ),
            (
                Seat::UnseenPod,
                cluster.pods[3].place(Seen::OnlyAsPackets).clone(),
            ),
            (Seat::Outside, cluster.client.place()),
        ];
        let drivers = places
            .iter()
            .map(|(seat, place)| Ok((*seat, Driver::start(place)?)))
            .collect::<Result<_>>()?;
        let site = Self {
            drivers,
            _servers: servers,
            maps: None,
            _agent: None,
            cluster,
        };
        site.route_over_first_node()?;
        if links == Links::Plain {
            pass_all(&site.cluster, passing)?;
        }
        Ok(site)
    }

    /// The client's direct way to pods is over the first node, and back: the way that a node port
    /// of that node takes.
    fn route_over_first_node(&self) -> Result<()> {
        let [n1, n2] = &self.cluster.nodes;
        let client = &self.cluster.client;
        for node in [n1, n2] {
            for setting in ["all", "default", "up0"] {
                let key = format!("net/ipv4/conf/{setting}/send_redirects");
                node.netns.sysctl(&key, "0")?;
            }
        }
        let via = n1.addresses.v4;
        client.netns.ip(&format!("route add {PODS4} via {via}\n"))?;
        let own = client.addresses.v4;
        n2.netns.ip(&format!(
            "route add {own}/32 via {via}\nroute add {CLIENTS_OUTSIDE} via {via}\n"
        ))
    }

    fn add_proxy(
        &mut self,
        (proxy, number): (Proxy, u32),
        fillers: Size,
        (server, kube_proxy): (&Server, &KubeProxy),
    ) -> Result<()> {
        let measured = service::objects(&self.cluster.pods);
        let peer = |mode| {
            if number_of_first_peer() == number {
                add_to_server(server, &self.cluster, &measured)?;
            }
            program_by_peer(server, kube_proxy, (number, mode), &self.cluster)
        };
        let xdp = match proxy {
            Proxy::None => return Ok(()),
            Proxy::Iptables => return peer("iptables"),
            Proxy::Nftables => return peer("nftables"),
            Proxy::Shunt => "off",
            Proxy::ShuntXdp => "native",
        };
        let manifests = Manifests::new(&self.cluster)?;
        let others = (0..fillers.services).flat_map(|number| {
            std::iter::once(objects::service(number)).chain(fillers.slices(number))
        });
        let objects: Vec<Value> = measured.into_iter().chain(others).collect();
        manifests.write("services", &objects)?;
        let node = &self.cluster.nodes[0];
        let agent = Agent::start(&self.cluster, node, &manifests, &["--xdp", xdp])?;
        self.maps = Some(agent.maps()?);
        self._agent = Some(agent);
        Ok(())
    }

    /// Measures one task of one cell.
    pub fn measure(&mut self, cell: Cell, task: Task, time: Duration) -> Result<Outcome> {
        let to = cell.address(&self.cluster);
        let driver = self.drivers.get_mut(&cell.seat()).context("no driver")?;
        let request = Request {
            task,
            to,
            millis: time.as_millis() as u64,
        };
        let outcome = driver.ask(&request);
        outcome.with_context(|| format!("{cell:?}"))
    }
}

/// All clusters have the same objects.
fn number_of_first_peer() -> u32 {
    let is_peer = |(proxy, _): &(Proxy, Links)| *proxy == Proxy::Iptables;
    SITES.iter().position(is_peer).map_or(0, |at| at as u32 + 1)
}

/// Writes what is dialled, and the node, to the API server.
fn add_to_server(server: &Server, cluster: &Cluster, measured: &[Value]) -> Result<()> {
    let lab = &server.lab;
    lab.add_cluster_node(&cluster.nodes[0])?;
    lab.kubectl(&["create", "namespace", service::NAMESPACE])?;
    for object in measured {
        lab.apply(&object.to_string())?;
    }
    Ok(())
}

/// Has a real kube-proxy program the first node. Then it is ended, for its rules need it no longer,
/// and would be looked at again in the middle of a measurement.
fn program_by_peer(
    server: &Server,
    kube_proxy: &KubeProxy,
    (number, mode): (u32, &str),
    cluster: &Cluster,
) -> Result<()> {
    let node = &cluster.nodes[0];
    peers::connect(server, &node.netns, (number, API_LINK))?;
    let ground = Ground {
        number,
        netns: node.netns.clone(),
        node: &node.name,
        pods: &format!("{PODS4},{PODS6}"),
    };
    let mut peer = Peer::start(kube_proxy, server, ground, mode)?;
    let synced = peer.wait_for_syncs(1, peer.started)?;
    ensure!(synced.is_some(), "kube-proxy {mode} did not sync");
    peer.calm()?;
    drop(peer);
    node.netns.ip(&format!("link del {API_LINK}\n"))
}

/// Runs a program that passes every frame on the far end of the first node's uplink.
fn pass_all(cluster: &Cluster, passing: &mut Ebpf) -> Result<()> {
    let program = passing.program_mut(XDP_PROGRAM).context(XDP_PROGRAM)?;
    let program = <&mut Xdp>::try_from(program)?;
    let port = &cluster.nodes[0].name;
    cluster
        .net
        .enter(|| program.attach(port, XdpMode::Driver).map(drop))?
        .context("a program for the far end of an uplink")
}
