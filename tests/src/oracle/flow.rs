//! Sections 8 and 12: flows and affinity over virtual time.
//!
//! Nothing is chosen here: the model test sees what the product chose, asks whether it was allowed
//! to, and notes it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::decide::{Decision, Packet};
use super::service::PortKey;
use super::{Oracle, Protocol};
use proxy_ebpf::pipeline::conntrack::RENEWAL_LAG_SECS;

/// A flow as its client sees it: protocol, client, what it dialed.
pub type Key = (Protocol, SocketAddr, SocketAddr);

/// What is known of a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The chosen backend.
    pub backend: SocketAddr,
    /// The source that the backend sees.
    pub source: SocketAddr,
    /// Whose frontend was dialed.
    pub service: PortKey,
    /// Whether its backend answered.
    pub is_answered: bool,
    /// Whether both sides kept it up: TCP established, UDP in more than one second.
    pub is_confirmed: bool,
    /// Seconds of the clock at its last packet.
    pub last_seen: u32,
    /// FIN from the client, FIN from the backend.
    pub fins: [bool; 2],
    /// RST from the client, RST from the backend.
    pub resets: [bool; 2],
    /// Whether it holds.
    pub hold: Hold,
}

/// Whether later packets follow the stored translation (S-120, S-124).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// They do.
    Follows,
    /// They do, or are decided anew: the rules leave both.
    Either,
    /// They are decided anew.
    Anew,
}

/// Who sent a packet of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The client.
    Original,
    /// The backend.
    Reply,
}

/// TCP flags that matter to a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// SYN.
    pub syn: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
}

/// A client's binding (S-101).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding {
    /// The endpoint.
    pub backend: SocketAddr,
    /// Seconds of the clock at the last new flow (S-102).
    pub last_used: u32,
}

/// All flows and bindings of the node.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    /// By key; entries that are over stay until they are replaced.
    pub flows: BTreeMap<Key, Flow>,
    /// S-101: by service port and client address before any SNAT.
    pub bindings: BTreeMap<(PortKey, IpAddr), Binding>,
    /// Reply tuples of flows that were decided anew: protocol, backend, source.
    replaced: Vec<(Protocol, SocketAddr, SocketAddr)>,
}

impl Flow {
    /// S-121: closed by both sides, or reset.
    pub fn is_closed(&self) -> bool {
        self.resets != [false; 2] || self.fins == [true; 2]
    }
}

impl Flows {
    /// What becomes of a packet that a client sends.
    pub fn hold(&self, oracle: &Oracle, key: &Key, flags: Flags, now: u32) -> Hold {
        let Some(flow) = self.flows.get(key) else {
            return Hold::Anew;
        };
        let age = age(oracle, key.0, flow, now);
        if age == Age::Over {
            return Hold::Anew;
        }
        // S-121: a SYN on a closed tuple starts a new decision.
        if key.0 == Protocol::Tcp && flags.syn && flow.is_closed() {
            return Hold::Anew;
        }
        // S-120, S-125: only UDP flows are ever decided anew.
        match (key.0, age) {
            (Protocol::Udp, Age::Late) if flow.hold == Hold::Follows => Hold::Either,
            (Protocol::Udp, _) => flow.hold,
            (_, Age::Late) => Hold::Either,
            _ => Hold::Follows,
        }
    }

    /// After a sync: the rules that a change of endpoints triggers.
    pub fn synced(&mut self, oracle: &Oracle) {
        for (key, flow) in &mut self.flows {
            // S-123, S-125.
            if key.0 != Protocol::Udp {
                continue;
            }
            let is_frontend = is_frontend_of(oracle, key, &flow.service);
            flow.hold = match (oracle.is_kept(&flow.service, flow.backend), flow.hold) {
                // S-128: what becomes of a deleted Service's flows is free; so is what becomes of
                // those whose destination is not a frontend of the service port any longer.
                (None, _) => Hold::Either,
                (Some(false), _) if !is_frontend => Hold::Either,
                // S-124: the peer is not a serving (or ready) endpoint.
                (Some(false), _) => Hold::Anew,
                // It came back: cleaned in between, or not seen gone.
                (Some(true), Hold::Anew | Hold::Either) => Hold::Either,
                // S-034: another service port got the frontend; S-124 looks at its endpoints.
                (Some(true), Hold::Follows) if !is_frontend => Hold::Either,
                (Some(true), Hold::Follows) => Hold::Follows,
            };
        }
        self.bindings.retain(|(port, _), binding| {
            let ports = oracle.ports(port.family);
            let Some(port) = ports.iter().find(|found| found.key == *port) else {
                return false;
            };
            // S-103: affinity off forgets all; an endpoint that this node cannot reach in either
            // set loses its bindings.
            let sets = oracle.sets(port);
            port.affinity_timeout_secs().is_some()
                && (sets.cluster.contains(&binding.backend)
                    || sets.local.contains(&binding.backend))
        });
    }

    /// The endpoint that affinity demands for a new flow, if any (S-101 to S-103).
    pub fn bound(&self, decision: &Decision, client: IpAddr, now: u32) -> Option<SocketAddr> {
        // S-103: the timeout in force counts.
        let timeout = decision.affinity_secs?;
        let service = decision.service.clone()?;
        let binding = self.bindings.get(&(service, client))?;
        let is_live = now - binding.last_used < timeout;
        // S-103: only where the endpoint is in the set that applies to this packet.
        let is_valid = decision.backends.contains_key(&binding.backend);
        (is_live && is_valid).then_some(binding.backend)
    }

    /// A flow was decided: `backend` and `source` were seen.
    pub fn note_new(
        &mut self,
        packet: &Packet,
        decision: &Decision,
        (backend, source): (SocketAddr, SocketAddr),
        now: u32,
    ) {
        let Some(service) = decision.service.clone() else {
            return;
        };
        // S-101, S-102: every new flow restarts the window; S-103: a new choice overwrites.
        if decision.affinity_secs.is_some() {
            let binding = Binding {
                backend,
                last_used: now,
            };
            let key = (service.clone(), packet.src.ip());
            self.bindings.insert(key, binding);
        }
        let flow = Flow {
            backend,
            source,
            service,
            is_answered: false,
            is_confirmed: false,
            last_seen: now,
            fins: [false; 2],
            resets: [false; 2],
            hold: Hold::Follows,
        };
        let key = (packet.protocol, packet.src, packet.dst);
        self.forget(&key);
        self.flows.insert(key, flow);
    }

    /// Nothing is known of any flow; bindings stay.
    pub fn evict(&mut self) {
        self.flows.clear();
        self.replaced.clear();
    }

    /// A flow was decided anew and did not become one.
    pub fn forget(&mut self, key: &Key) {
        if let Some(old) = self.flows.remove(key) {
            self.replaced.push((key.0, old.backend, old.source));
        }
    }

    /// A packet of a flow was seen.
    pub fn note_packet(&mut self, key: &Key, side: Side, flags: Flags, now: u32) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let is_later = now != flow.last_seen;
        let was_closed = flow.is_closed();
        let number = side as usize;
        flow.fins[number] |= flags.fin;
        // Who goes on later was not reset, and the receiver of that reset ignored it (S-132).
        flow.resets[number] = flags.rst || flow.resets[number] && (flags.syn || !is_later);
        // As netfilter: a TCP connection is established when the client acknowledges the answer,
        // and UDP is a stream when it goes on after one.
        let is_confirmed = match key.0 {
            Protocol::Tcp => was_closed || side == Side::Original && !flags.syn,
            _ => is_later,
        };
        flow.is_confirmed |= flow.is_answered && is_confirmed && !flow.is_closed();
        flow.last_seen = now;
        flow.is_answered |= side == Side::Reply;
    }

    /// Flows that have not timed out, also those that are decided anew.
    pub fn known(&self, oracle: &Oracle, now: u32) -> Vec<Key> {
        let known = self.flows.iter();
        let known = known.filter(|(key, flow)| age(oracle, key.0, flow, now) != Age::Over);
        known.map(|(key, _)| *key).collect()
    }

    /// Live flows whose packets follow their translation.
    pub fn live(&self, oracle: &Oracle, now: u32) -> Vec<Key> {
        let live = self.flows.iter().filter(|(key, flow)| {
            age(oracle, key.0, flow, now) == Age::Live
                && (key.0 != Protocol::Udp || flow.hold == Hold::Follows)
        });
        live.map(|(key, _)| *key).collect()
    }

    /// S-099: whether another flow uses the tuple that the backend's answers would have.
    pub fn is_taken(
        &self,
        oracle: &Oracle,
        key: &Key,
        (backend, source): (SocketAddr, SocketAddr),
        now: u32,
    ) -> Taken {
        let is_same = |other: &Key, flow: &Flow| {
            other != key && other.0 == key.0 && flow.backend == backend && flow.source == source
        };
        let mut others = self
            .flows
            .iter()
            .filter(|(other, flow)| is_same(other, flow));
        if others
            .clone()
            .any(|(other, flow)| age(oracle, other.0, flow, now) == Age::Live)
        {
            return Taken::Yes;
        }
        // An entry that is over, or was replaced, may lie there until it is overwritten.
        let is_left = self.replaced.contains(&(key.0, backend, source));
        if others.next().is_some() || is_left {
            Taken::Perhaps
        } else {
            Taken::No
        }
    }
}

/// Whether a reply's tuple belongs to another flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It is free.
    No,
    /// A flow that is over had it.
    Perhaps,
    /// It is in use.
    Yes,
}

/// How long a flow is idle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Age {
    /// Not for long.
    Live,
    /// For so long that it may be over.
    Late,
    /// For too long.
    Over,
}

/// S-122. An entry of a confirmed flow may have missed the other direction's last packets, so none
/// is over before it has been idle for that much longer.
fn age(oracle: &Oracle, protocol: Protocol, flow: &Flow, now: u32) -> Age {
    let timeouts = &oracle.settings.timeouts;
    let (lifetime, lag) = match (protocol, flow.is_confirmed) {
        (Protocol::Tcp, _) if flow.is_closed() => (timeouts.tcp_closing_secs, 0),
        (Protocol::Tcp, true) => (timeouts.tcp_established_secs, RENEWAL_LAG_SECS),
        (Protocol::Tcp, false) => (timeouts.tcp_handshake_secs, 0),
        (_, true) => (timeouts.udp_stream_secs, RENEWAL_LAG_SECS),
        (_, false) => (timeouts.udp_unreplied_secs, 0),
    };
    match now - flow.last_seen {
        idle if idle <= lifetime => Age::Live,
        idle if idle <= lifetime + lag => Age::Late,
        _ => Age::Over,
    }
}

/// S-124: true if the destination is a frontend of the service port, and nobody else's.
fn is_frontend_of(oracle: &Oracle, key: &Key, service: &PortKey) -> bool {
    let (protocol, _, dialed) = *key;
    let owner = oracle.dialed(dialed, protocol);
    owner.is_some_and(|frontend| frontend.port.key == *service)
}
