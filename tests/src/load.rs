//! Traffic that runs beside a fault: connections that are made one after the other, and some that
//! are held. A single one that fails or is reset is an error.

use anyhow::{Context, Result, ensure};

use crate::rig::{Rig, Target};
use crate::topology::Seen;
use crate::topology::addresses::IpFamily;
use crate::traffic::{Held, Plan, Probe, Report, SocketKind};

/// Between the connections of one client: many enough to see a gap, few enough to leave a
/// processor to who is tested.
const PACE_MS: u64 = 4;

/// One client process at each of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    /// A machine outside of the cluster: packets that enter by the uplink.
    Outside,
    /// The pod `a`, unseen by socket hooks: packets that enter by the pod's interface.
    PodAsPackets,
    /// The pod `client`, by its sockets.
    PodBySockets,
}

/// Where from, by what, in which family. A namespace has one kind of client only: a flow that
/// packets left behind must not meet a socket that dials the backend itself.
const STREAMS: [(From, SocketKind, IpFamily); 6] = [
    (From::Outside, SocketKind::Tcp, IpFamily::V4),
    (From::Outside, SocketKind::Udp, IpFamily::V6),
    (From::PodAsPackets, SocketKind::Tcp, IpFamily::V6),
    (From::PodAsPackets, SocketKind::Udp, IpFamily::V4),
    (From::PodBySockets, SocketKind::Tcp, IpFamily::V4),
    (From::PodBySockets, SocketKind::Udp, IpFamily::V6),
];

/// Running traffic to one Service, and held connections to another.
#[derive(Debug)]
pub struct Load {
    streams: Vec<(String, Probe)>,
    holders: Vec<Holder>,
}

#[derive(Debug)]
struct Holder {
    name: String,
    probe: Probe,
    connection: usize,
    server: String,
}

impl Load {
    /// Starts clients of n1 that dial the Service `busy` all the time, and opens connections to
    /// `steady`, whose endpoints stay.
    pub fn start(rig: &Rig, busy: &'static str, steady: &'static str) -> Result<Self> {
        let mut load = Self::hold(rig, steady)?;
        for (from, socket, family) in STREAMS {
            let name = format!("{from:?} {socket:?} {family:?}");
            let mut probe = start(rig, from)?;
            let plan = Plan::new(socket, rig.address(target(from, busy), family));
            probe
                .begin(plan.until_finish().pause_ms(PACE_MS))
                .with_context(|| name.clone())?;
            load.streams.push((name, probe));
        }
        Ok(load)
    }

    /// Opens connections to `steady`, and makes no others.
    pub fn hold(rig: &Rig, steady: &'static str) -> Result<Self> {
        let mut load = Self {
            streams: Vec::new(),
            holders: Vec::new(),
        };
        for (from, socket, family) in STREAMS {
            let socket = match socket {
                SocketKind::Udp => SocketKind::UdpConnected,
                other => other,
            };
            let name = format!("{from:?} {socket:?} {family:?}");
            let mut probe = start(rig, from)?;
            let held = Held::new(socket, rig.address(target(from, steady), family));
            let (connection, answer) = probe.open(held).with_context(|| name.clone())?;
            load.holders.push(Holder {
                name,
                probe,
                connection,
                server: answer.server,
            });
        }
        Ok(load)
    }

    /// Every held connection answers, and leads to the server that it was opened to.
    pub fn ask(&mut self) -> Result<()> {
        for holder in &mut self.holders {
            let answer = holder.probe.ask(holder.connection, 1_000);
            let answer = answer.with_context(|| holder.name.clone())?;
            ensure!(
                answer.server == holder.server,
                "{}: {answer:?} instead of {}",
                holder.name,
                holder.server
            );
        }
        Ok(())
    }

    /// How many clients dial all the time.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Ends the traffic; returns what came of it by client.
    pub fn end(mut self) -> Result<Vec<(String, Report)>> {
        self.ask()?;
        let streams = self.streams.into_iter();
        streams
            .map(|(name, mut probe)| Ok((name, probe.finish()?)))
            .collect()
    }

    /// Ends the traffic; returns how many connections were made. None of them failed.
    pub fn finish(self) -> Result<u32> {
        let mut connections = 0;
        let mut failures = Vec::new();
        for (name, report) in self.end()? {
            connections += report.connections;
            if report.failed() > 0 {
                failures.push(format!("{name}: {report:?}"));
            }
        }
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(connections)
    }
}

fn start(rig: &Rig, from: From) -> Result<Probe> {
    Probe::start(&match from {
        From::Outside => rig.cluster.client.place(),
        From::PodAsPackets => rig.pods["a"].place(Seen::OnlyAsPackets).clone(),
        From::PodBySockets => rig.pods["client"].place(Seen::BySocketHooks).clone(),
    })
}

fn target(from: From, service: &'static str) -> Target {
    match from {
        From::Outside => Target::NodePort1(service),
        From::PodAsPackets | From::PodBySockets => Target::ClusterIp(service),
    }
}
