//! What happens to a node. Each deed ends only when its consequences have been seen.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use proxy_common::Addr4;
use proxy_userspace::maps::FamilyMaps;
use tests::net::eventually;
use tests::topology::addresses::{FAMILIES, uplink};

use super::Random;
use super::world::{FIRST_FILLER, PATIENCE, World};

/// Pods that may be behind the busy Service.
const PODS: [&str; 3] = ["a", "b", "c"];
/// Most Services that come at once.
const FILLERS_MAX: usize = 40;
/// Last part of an address that comes to n1 and goes.
const PASSING_HOST: u8 = 77;

/// One kind of what happens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Deed {
    /// The busy Service gets other endpoints.
    Endpoints,
    /// Services come or go.
    Services,
    /// SIGTERM, and a new agent.
    Restart,
    /// SIGKILL, and a new agent.
    Kill,
    /// Endpoints change while no agent runs.
    Absence,
    /// A link with addresses comes to n1 and goes.
    Link,
    /// An address comes to n1's uplink and goes.
    Address,
    /// A stranger removes an entry of a map.
    Stranger,
}

impl Deed {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Endpoints,
        Self::Services,
        Self::Restart,
        Self::Kill,
        Self::Absence,
        Self::Link,
        Self::Address,
        Self::Stranger,
    ];

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints changed",
            Self::Services => "Services came or went",
            Self::Restart => "agent stopped and started",
            Self::Kill => "agent killed and started",
            Self::Absence => "endpoints changed without an agent",
            Self::Link => "a link came and went",
            Self::Address => "an address came and went",
            Self::Stranger => "a stranger removed map entries",
        }
    }

    /// Does it, and waits for what must follow.
    pub fn do_to(self, world: &mut World, random: &mut Random) -> Result<()> {
        match self {
            Self::Endpoints => {
                world.put_behind(some_pods(random))?;
                world.await_behind()
            }
            Self::Services => world.set_fillers(random.below(FILLERS_MAX + 1) as u8),
            Self::Restart => {
                world.rig.agents[0].stop()?;
                world.rig.agents[0].run()?;
                world.await_agents()
            }
            Self::Kill => {
                world.rig.agents[0].kill()?;
                world.rig.agents[0].run()?;
                world.await_agents()
            }
            Self::Absence => {
                world.rig.agents[0].stop()?;
                world.put_behind(some_pods(random))?;
                world.rig.agents[0].run()?;
                world.await_behind()
            }
            Self::Link => link(world),
            Self::Address => address(world),
            Self::Stranger => stranger(world),
        }
    }
}

/// Any set but the empty one.
fn some_pods(random: &mut Random) -> Vec<&'static str> {
    let set = 1 + random.below((1 << PODS.len()) - 1);
    let pods = PODS.iter().enumerate();
    pods.filter(|(bit, _)| set & (1 << bit) != 0)
        .map(|(_, pod)| *pod)
        .collect()
}

/// Programs are attached to the link while it is there.
fn link(world: &World) -> Result<()> {
    let (agent, netns) = (&world.rig.agents[0], &world.rig.cluster.nodes[0].netns);
    let is_served = || {
        let status = agent.status()?;
        let interfaces = status["interfaces"].as_array().context("no interfaces")?;
        let passing = interfaces.iter().find(|it| it["name"] == "p-passing");
        Ok::<_, anyhow::Error>(passing.map(|it| it["attached"] == true))
    };
    netns.ip("link add p-passing type veth peer name p-peer\n\
         link set p-peer up\nlink set p-passing up\n\
         addr add 198.51.100.1/24 dev p-passing\n\
         addr add fd00:bad::1/64 dev p-passing nodad\n")?;
    eventually(PATIENCE, || {
        ensure!(is_served()? == Some(true), "p-passing is not served");
        Ok(())
    })?;
    netns.ip("link del p-passing\n")?;
    eventually(PATIENCE, || {
        ensure!(is_served()?.is_none(), "p-passing is still there");
        Ok(())
    })
}

/// NodePorts are served on every address that the node has (S-119b).
fn address(world: &mut World) -> Result<()> {
    let passing = uplink(PASSING_HOST);
    let lines = |verb: &str| {
        format!(
            "addr {verb} {}/24 dev up0\naddr {verb} {}/64 dev up0 {}\n",
            passing.v4,
            passing.v6,
            if verb == "add" { "nodad" } else { "" }
        )
    };
    let netns = world.rig.cluster.nodes[0].netns.clone();
    netns.ip(&lines("add"))?;
    for family in FAMILIES {
        world.await_node_port(passing.of(family))?;
    }
    netns.ip(&lines("del"))?;
    let (agent, v4) = (&world.rig.agents[0], Addr4::from(passing.v4));
    eventually(PATIENCE, || {
        let addresses = FamilyMaps::<Addr4>::node_addresses(&agent.maps()?);
        ensure!(
            addresses.iter().all(|(addr, _)| *addr != v4),
            "it is still own"
        );
        Ok(())
    })
}

/// The audit of n2 puts it back; a Service without traffic, because until then it is not served.
fn stranger(world: &mut World) -> Result<()> {
    world.set_fillers(3)?;
    let before = world.drift()?;
    let addr = tests::topology::addresses::service(FIRST_FILLER).v4;
    let mut maps = world.rig.agents[1].maps()?;
    let ids = FamilyMaps::<Addr4>::frontend_ids(&maps).into_iter();
    let keys = ids
        .map(|(key, _)| key)
        .filter(|key| IpAddr::from(key.addr) == IpAddr::V4(addr));
    let keys: Vec<_> = keys.collect();
    ensure!(!keys.is_empty(), "{addr} has no frontend");
    for key in keys {
        maps.remove_frontend_id(&key)?;
    }
    eventually(PATIENCE, || {
        let repairs = world.drift()? - before;
        ensure!(repairs > 0, "nothing was repaired");
        Ok(())
    })?;
    world.await_agents()
}
