//! Whether traffic crossed our programs: how they hang on an interface, and what they counted
//! while clients were served. For machines that are emulated, too.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::xdp::{Xdp, XdpMode};
use proxy_userspace::datapath::load::XDP_PROGRAM;
use serde_json::Value;

use crate::agent::Agent;
use crate::cases::kernel;
use crate::net::tcx_programs;
use crate::rig::{Client, Rig, Target};
use crate::topology::Node;
use crate::topology::addresses::FAMILIES;
use crate::traffic::{Plan, SocketKind};

use Client::{Outside, PodAsPackets};
use Target::{ClusterIp, NodePort1, NodePort2};

/// For a connection on an emulated machine.
pub const TIMEOUT_MS: u64 = 60_000;
/// Enough for three backends to show: all miss one in a run of 10,000.
pub const CONNECTIONS: u32 = 24;

/// Who dials what, and who answers.
pub type Path<'a> = (Client, Target, &'a [&'a str]);
/// To a backend on another node, and so redirected.
pub const FAR: Path<'_> = (Outside, NodePort1("far"), &["b", "c"]);
/// Paths over the uplink by packets.
const PATHS: [(Path<'_>, Seen); 4] = [
    (
        (PodAsPackets, ClusterIp("all"), &["a", "b", "c"]),
        (N1, PACKETS),
    ),
    ((Outside, NodePort1("near"), &["a"]), (N1, PACKETS)),
    (FAR, (N1, REDIRECTED)),
    ((Outside, NodePort2("near"), &["a"]), (N2, REDIRECTED)),
];

/// Counters that say that our programs did it: of each list, one for each connection.
pub type Counters = &'static [&'static [&'static str]];
/// Translated packets.
pub const PACKETS: Counters = &[
    &["OriginalStack", "OriginalRedirect"],
    &["ReplyStack", "ReplyRedirect", "ReplyLocal"],
];
/// Those that were sent on to another node.
pub const REDIRECTED: Counters = &[&["OriginalRedirect"], &["ReplyRedirect"]];
/// Translated sockets.
pub const SOCKETS: Counters = &[&["SocketConnected", "SocketSent"]];

/// The node whose programs they are, counted from 0.
pub type Seen = (usize, Counters);
/// The first node.
pub const N1: usize = 0;
/// The second.
pub const N2: usize = 1;

/// The release that brought TCX.
const TCX: (u32, u32) = (6, 6);

/// Every path over the uplink is served by our programs.
pub fn all_paths(rig: &mut Rig) -> Result<()> {
    for (path, seen) in PATHS {
        served(rig, path, seen)?;
    }
    Ok(())
}

/// All of the path's servers answer and nobody else, and the programs of a node have done it.
pub fn served(rig: &mut Rig, (client, target, servers): Path<'_>, seen: Seen) -> Result<()> {
    for family in FAMILIES {
        let to = rig.address(target, family);
        for socket in [SocketKind::Tcp, SocketKind::Udp] {
            let plan = Plan::new(socket, to).timeout_ms(TIMEOUT_MS);
            let dialled = dialled(rig, client, plan, servers, seen);
            dialled.with_context(|| format!("{client:?} to {target:?} ({to}) by {socket:?}"))?;
        }
    }
    Ok(())
}

/// The same of one plan.
pub fn dialled(
    rig: &mut Rig,
    client: Client,
    plan: Plan,
    servers: &[&str],
    (node, counters): Seen,
) -> Result<()> {
    let before = Counted::by(&rig.agents[node])?;
    let report = rig.client(client)?.connect(plan.times(CONNECTIONS))?;
    ensure!(
        report.failed() == 0 && report.servers() == servers,
        "{report:?}"
    );
    for names in counters {
        before.ensure_risen(&rig.agents[node], names, CONNECTIONS.into())?;
    }
    Ok(())
}

/// How `interface` is served, as the agent says and as the kernel does: an error where that is not
/// what its release should have.
pub fn attach_type(agent: &Agent, node: &Node, interface: &str) -> Result<&'static str> {
    let status = agent.status()?;
    let expected = if agent.kernel()? >= TCX {
        "tcx"
    } else {
        "clsact"
    };
    ensure!(
        status["tc"] == expected,
        "{} instead of {expected}",
        status["tc"]
    );
    let entry = interface_status(&status, interface)?;
    ensure!(
        entry["attached"] == true && entry["podSide"] == false,
        "{entry}"
    );
    for way in ["ingress", "egress"] {
        let (found, wanted) = if expected == "tcx" {
            (tcx_programs(&node.netns)?, format!("{interface} {way} 1\n"))
        } else {
            let filters = ["tc", "filter", "show", "dev", interface, way];
            (node.netns.run(&filters)?, " bpf ".to_owned())
        };
        ensure!(found.contains(&wanted), "{interface} {way}: {found}");
    }
    Ok(expected)
}

/// An interface in what `shunt status` says.
pub fn interface_status<'a>(status: &'a Value, interface: &str) -> Result<&'a Value> {
    let interfaces = status["interfaces"].as_array().context("interfaces")?;
    let found = interfaces.iter().find(|entry| entry["name"] == interface);
    found.with_context(|| format!("no {interface} in {interfaces:?}"))
}

/// What an agent's programs had counted at one moment.
pub struct Counted(BTreeMap<String, u64>);

impl Counted {
    /// By now.
    pub fn by(agent: &Agent) -> Result<Self> {
        let counters = agent.status()?["counters"].take();
        Ok(Self(serde_json::from_value(counters).context("counters")?))
    }

    /// What was counted since, by name; without what was not.
    pub fn since(&self, agent: &Agent) -> Result<BTreeMap<String, u64>> {
        let now = Self::by(agent)?.0.into_iter();
        let risen = now.map(|(name, count)| {
            let before = self.0.get(&name).copied().unwrap_or(0);
            (name, count - before)
        });
        Ok(risen.filter(|(_, count)| *count > 0).collect())
    }

    /// Fails unless `names` together rose by `least` since.
    pub fn ensure_risen(&self, agent: &Agent, names: &[&str], least: u64) -> Result<()> {
        let risen = self.since(agent)?;
        let count: u64 = names.iter().filter_map(|name| risen.get(*name)).sum();
        ensure!(
            count >= least,
            "{names:?} rose by {count}, not {least}: {risen:?}"
        );
        Ok(())
    }
}

/// A program that passes everything at these links of the shared network, the other ends of the
/// nodes' own: a veth takes frames from XDP only where its peer runs one too.
pub fn peers(rig: &Rig, ports: &[&str]) -> Result<Ebpf> {
    rig.cluster.net.enter(|| -> Result<Ebpf> {
        let mut ebpf = kernel::load()?;
        let program = ebpf.program_mut(XDP_PROGRAM).context(XDP_PROGRAM)?;
        let program = <&mut Xdp>::try_from(program)?;
        for port in ports {
            program.attach(port, XdpMode::Driver)?;
        }
        Ok(ebpf)
    })?
}
