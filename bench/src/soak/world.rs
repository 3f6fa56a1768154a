//! The cluster that soaks, and what must be true of it after each deed.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::load::Load;
use tests::manifests::Service;
use tests::net::eventually;
use tests::rig::{Client, Rig, TARGET_PORT, Target};
use tests::topology::Variant;
use tests::topology::addresses::FAMILIES;
use tests::traffic::{Plan, SocketKind};

/// Far longer than anything here takes, with all processors busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The Service whose endpoints change; clients dial it all the time.
const BUSY: &str = "busy";
/// Number of the first Service that comes and goes.
pub const FIRST_FILLER: u8 = 100;
/// TCP and UDP in both families.
const FRONTENDS_OF_FILLER: u64 = 4;
/// New connections that must all reach the endpoints that are there.
const ASKED: u32 = 12;

/// Two nodes with an agent each, and traffic.
pub struct World {
    pub rig: Rig,
    pub load: Load,
    /// Names of the pods behind `busy`.
    behind: Vec<&'static str>,
    fillers: u8,
    /// Without fillers.
    frontends: u64,
}

impl World {
    /// Starts everything.
    pub fn start() -> Result<Self> {
        let mut rig = Rig::without_agents(Variant::default())?;
        let behind = vec!["a", "b", "c"];
        let busy = Service::new(BUSY, 40).port(90, 30_090, TARGET_PORT);
        rig.services.insert(BUSY, busy);
        let busy = rig.behind(BUSY, &behind);
        rig.add(BUSY, busy)?;
        rig.start_agents(&["--audit-period", "2s", "--nodeport-addresses", "all"])?;
        let load = Load::start(&rig, BUSY, "all")?;
        let frontends = rig.agents[1].status()?["frontends"].as_u64();
        Ok(Self {
            rig,
            load,
            behind,
            fillers: 0,
            frontends: frontends.context("no number of frontends")?,
        })
    }

    /// Puts `pods` behind the busy Service.
    pub fn put_behind(&mut self, pods: Vec<&'static str>) -> Result<()> {
        let busy = self.rig.behind(BUSY, &pods);
        self.rig.add(BUSY, busy)?;
        self.behind = pods;
        Ok(())
    }

    /// Waits until every new connection reaches an endpoint that is there, over both nodes.
    pub fn await_behind(&mut self) -> Result<()> {
        for target in [Target::NodePort1(BUSY), Target::NodePort2(BUSY)] {
            for family in FAMILIES {
                let to = self.rig.address(target, family);
                let behind = self.behind.clone();
                let client = self.rig.client(Client::Outside)?;
                eventually(PATIENCE, || {
                    let report = client.connect(Plan::new(SocketKind::Tcp, to).times(ASKED))?;
                    ensure!(report.failed() == 0, "{report:?}");
                    let strangers = report
                        .servers()
                        .into_iter()
                        .filter(|it| !behind.contains(it));
                    let strangers: Vec<_> = strangers.collect();
                    ensure!(strangers.is_empty(), "{strangers:?} are not behind {to}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Writes so many Services beside the busy one, and waits until both agents serve them.
    pub fn set_fillers(&mut self, count: u8) -> Result<()> {
        let fillers = (0..count).map(|number| {
            let filler = Service::new(&format!("filler-{number}"), FIRST_FILLER + number);
            filler.port(80, 0, TARGET_PORT).pods([&self.rig.pods["a"]])
        });
        let objects: Vec<_> = fillers.flat_map(|filler| filler.objects()).collect();
        self.rig.manifests.write("fillers", &objects)?;
        self.fillers = count;
        self.await_agents()
    }

    /// Waits until every agent serves all Services, and has nothing to complain of.
    pub fn await_agents(&self) -> Result<()> {
        let expected = self.frontends + u64::from(self.fillers) * FRONTENDS_OF_FILLER;
        for agent in &self.rig.agents {
            eventually(PATIENCE, || {
                let status = agent.status()?;
                ensure!(
                    status["frontends"] == expected,
                    "{expected} wanted: {status}"
                );
                ensure!(status["problems"] == json!([]), "{status}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Waits until new connections to `addr`, an address of n1, are answered.
    pub fn await_node_port(&mut self, addr: IpAddr) -> Result<()> {
        let port = self.rig.services[BUSY].ports[0].node_port;
        let client = self.rig.client(Client::Outside)?;
        let plan = Plan::new(SocketKind::Tcp, (addr, port).into()).max_failures(1);
        eventually(PATIENCE, || {
            let report = client.connect(plan.clone().times(2).timeout_ms(500))?;
            ensure!(report.failed() == 0, "{report:?}");
            Ok(())
        })
    }

    /// The ends of the agents' logs.
    pub fn logs(&self) -> String {
        let tails = self.rig.agents.iter().map(|agent| agent.log_tail());
        tails.collect::<Vec<_>>().join("\n--- n2\n")
    }

    /// Repairs that the agent of n2 has made.
    pub fn drift(&self) -> Result<u64> {
        self.rig.agents[1].status()?["drift"]
            .as_u64()
            .context("no drift")
    }
}
