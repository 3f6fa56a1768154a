//! The cluster of these tests: one agent, traffic, two states of the objects and what the maps
//! hold in each.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use proxy_common::interface::Interface;
use proxy_common::{Addr4, Addr6, BackendState, Config};
use proxy_userspace::datapath::maps::KernelMaps;
use proxy_userspace::family::IpFamily;
use proxy_userspace::map_dump::dump;
use proxy_userspace::maps::{FamilyMaps, Maps as _};
use serde_json::{Value, json};
use tests::agent::Agent;
use tests::load::Load;
use tests::manifests::{Port, Service};
use tests::net::eventually;
use tests::rig::{Rig, TARGET_PORT};
use tests::topology::Variant;

use crate::PATIENCE;

/// One agent on n1, with traffic through it.
pub struct World {
    pub rig: Rig,
    pub agent: Agent,
    objects: [Vec<Value>; 2],
}

/// What the maps of a node hold, ids included where they are asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    text: String,
    config: Option<Config>,
    interfaces: Vec<(u32, Interface)>,
    pub ids: BTreeSet<String>,
}

impl World {
    /// Starts the cluster and its agent in the first state.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        let mut rig = Rig::without_agents(Variant::default())?;
        let objects = states(&mut rig);
        rig.manifests.write("storm", &objects[0])?;
        let node = &rig.cluster.nodes[0];
        let agent = Agent::start(&rig.cluster, node, &rig.manifests, arguments)?;
        Ok(Self {
            rig,
            agent,
            objects,
        })
    }

    /// Traffic to `web`, whose endpoints differ between the states, and held connections to `all`.
    pub fn load(&self) -> Result<Load> {
        Load::start(&self.rig, "web", "all")
    }

    /// Only connections that are held, to `all`.
    pub fn hold(&self) -> Result<Load> {
        Load::hold(&self.rig, "all")
    }

    /// The objects of a state.
    pub fn objects(&self, state: usize) -> &[Value] {
        &self.objects[state]
    }

    /// The Service that is there in the first state only.
    pub fn gone(&self) -> &Value {
        let mut first = self.objects[0].iter();
        let come = first.find(|it| it["kind"] == "Service" && it["metadata"]["name"] == "come");
        come.expect("the first state has it")
    }

    /// Writes the objects of a state.
    pub fn write(&self, state: usize) -> Result<()> {
        self.rig.manifests.write("storm", &self.objects[state])?;
        Ok(())
    }

    /// What the maps hold.
    pub fn held(&self) -> Result<Held> {
        let maps = self.agent.maps()?;
        let mut ids = BTreeSet::new();
        family_ids::<Addr4>(&maps, &mut ids);
        family_ids::<Addr6>(&maps, &mut ids);
        let mut interfaces = maps.interfaces();
        interfaces.sort_by_key(|(index, _)| *index);
        Ok(Held {
            text: dump(&maps),
            // It tells how often routes and neighbours have changed, and so of what has been.
            config: maps.config().map(|config| Config {
                next_hops: 0,
                ..config
            }),
            interfaces,
            ids,
        })
    }

    /// Waits until the maps hold what `expected` holds, whatever the ids are.
    pub fn await_held(&self, expected: &Held) -> Result<()> {
        eventually(PATIENCE, || self.held()?.check(expected)).with_context(|| self.agent.log_tail())
    }

    /// Map writes of the running agent.
    pub fn writes(&self) -> Result<u64> {
        self.agent.status()?["writes"].as_u64().context("no writes")
    }
}

impl Held {
    /// Fails where this is not the same as `expected` but for ids.
    pub fn check(&self, expected: &Self) -> Result<()> {
        ensure!(
            self.text == expected.text,
            "{}\ninstead of\n{}",
            self.text,
            expected.text
        );
        ensure!(self.config == expected.config, "{:?}", self.config);
        ensure!(
            self.interfaces == expected.interfaces,
            "{:?}",
            self.interfaces
        );
        Ok(())
    }
}

/// Ids of frontends, and of backends by service port.
fn family_ids<A>(maps: &KernelMaps, ids: &mut BTreeSet<String>)
where
    A: IpFamily,
    KernelMaps: FamilyMaps<A>,
{
    for (key, id) in FamilyMaps::<A>::frontend_ids(maps) {
        ids.insert(format!("frontend {key:?} {id}"));
    }
    for id in 1..maps.capacity().backends {
        let backend = FamilyMaps::<A>::backend(maps, id);
        if let Some(backend) = backend.filter(|found| found.state != BackendState::Free as u8) {
            let addr: IpAddr = backend.addr.to_ip();
            let (port, of) = (backend.port.get(), backend.service_port);
            ids.insert(format!("backend {addr} {port} of {of}: {id}"));
        }
    }
}

/// The same Services twice: `web` has one endpoint less, `come` is gone, `go` is there, `ranged`
/// lets in others. All changes are independent: in whatever parts the agent sees them, it writes
/// the same.
fn states(rig: &mut Rig) -> [Vec<Value>; 2] {
    let pods = |names: &[&str]| {
        let pods: Vec<_> = names.iter().map(|name| rig.pods[*name].clone()).collect();
        move |service: Service| service.pods(&pods)
    };
    let web = Service::new("web", 40).port(90, 30_090, TARGET_PORT);
    let (three, two) = (pods(&["a", "b", "c"]), pods(&["a", "c"]));
    let only_tcp = |name, number, port| {
        let mut service = Service::new(name, number);
        service.ports.push(Port {
            protocol: "TCP",
            port,
            node_port: 0,
            target_port: TARGET_PORT,
        });
        pods(&["b"])(service)
    };
    let ranged = only_tcp("ranged", 41, 91).balanced(tests::topology::addresses::balanced(41));
    let ranges = |list: &[&str]| {
        let spec = json!({"loadBalancerSourceRanges": list});
        ranged.clone().spec(spec).objects()
    };
    let (come, go) = (only_tcp("come", 42, 92), only_tcp("go", 43, 93));
    let slices = |service: &Service| service.objects().split_off(1);
    let first = [
        three(web.clone()).objects(),
        ranges(&["10.0.0.0/8", "fd00::/8"]),
        come.objects(),
        slices(&go),
    ];
    let second = [
        two(web.clone()).objects(),
        ranges(&["10.0.0.0/9", "fd00::/8"]),
        slices(&come),
        go.objects(),
    ];
    rig.services.insert("web", web);
    [first.concat(), second.concat()]
}
