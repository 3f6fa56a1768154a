//! One run: a plan through the product and the oracle, packet by packet.

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use proxy_common::interface::flags::ATTACHED;
use proxy_userspace::objects::{Object, ObjectEvent};

use super::explained::Explained;
use super::node::{End, Entry, Node, interface_name, list, own_addresses};
use super::plan::{Action, Plan, Sent, Tcp, Trouble};
use super::wire::{self, Spec, TTL};
use crate::cases::world::DEVICES;
use crate::oracle::decide::{From, Packet};
use crate::oracle::flow::{Flags, Flows, Hold, Key, Side};
use crate::oracle::{Objects, Oracle, Protocol};

/// What was compared, for a test that wants to know that it tests something.
pub type Seen = BTreeMap<&'static str, u64>;

/// A disagreement.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Position of the action.
    pub at: usize,
    /// What is wrong.
    pub text: String,
}

/// Everything in motion.
struct Run {
    node: Node,
    api: Objects,
    own: Vec<IpAddr>,
    oracle: Oracle,
    flows: Flows,
    entries: BTreeMap<Key, (From, u32)>,
    explained: Explained,
    seen: Seen,
}

/// Executes a plan; `seed` is that of the datapath's random numbers.
pub fn run(plan: &Plan, seed: u32) -> Result<Seen, Failure> {
    let mut run = Run::new(plan, seed);
    for (at, action) in plan.actions.iter().enumerate() {
        run.act(action).map_err(|text| Failure { at, text })?;
    }
    Ok(run.seen)
}

impl Run {
    fn new(plan: &Plan, seed: u32) -> Self {
        let settings = plan.settings.clone();
        let mut node = Node::new(settings.clone(), seed);
        for event in list(&Objects::default(), "") {
            node.tell(event);
        }
        Self {
            node,
            api: Objects::default(),
            own: own_addresses(),
            oracle: Oracle {
                objects: Objects::default(),
                settings,
                own: own_addresses(),
            },
            flows: Flows::default(),
            entries: BTreeMap::new(),
            explained: Explained::default(),
            seen: Seen::new(),
        }
    }

    fn act(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Apply(object) => {
                self.apply(object);
                Ok(())
            }
            Action::Delete(kind, name) => {
                if self.api.all.remove(&(*kind, name.clone())).is_some() {
                    self.node.tell(ObjectEvent::Deleted(*kind, name.clone()));
                }
                Ok(())
            }
            Action::Relist => {
                for event in list(&self.api, &self.oracle.settings.node_name) {
                    self.node.tell(event);
                }
                Ok(())
            }
            Action::Stale(object) => {
                self.tell_stale(object);
                Ok(())
            }
            Action::Meddle(seed) => {
                self.sync(Trouble::None)?;
                self.count("audited");
                let audited = self.node.meddle(*seed);
                audited.map_err(|error| format!("{error:#}"))
            }
            Action::Evict => {
                self.count("evicted");
                self.node.evict();
                self.flows.evict();
                Ok(())
            }
            Action::Addresses(extra) => {
                self.own = own_addresses();
                self.own.extend(extra);
                Ok(())
            }
            Action::Sync(trouble) => self.sync(*trouble),
            Action::Restart(settings) => {
                if let Some(settings) = settings {
                    self.oracle.settings = (**settings).clone();
                }
                self.node.restart(&self.oracle.settings, &self.api);
                self.sync(Trouble::None)
            }
            Action::Advance(secs) => {
                self.node.advance(*secs);
                Ok(())
            }
            Action::Send(sent) => self.send(sent),
            Action::Again(nth, tcp) => self.again(*nth, *tcp),
            Action::Reply(nth, tcp) => self.reply(*nth, *tcp),
        }
    }

    /// What a watch with our selectors tells of a new or changed object (S-002, S-004).
    fn apply(&mut self, object: &Object) {
        let (kind, name) = Objects::key(object);
        let event = if Objects::is_visible(object, &self.oracle.settings.node_name) {
            ObjectEvent::Applied(object.clone())
        } else {
            ObjectEvent::Deleted(kind, name.clone())
        };
        self.node.tell(event);
        self.api.all.insert((kind, name), object.clone());
    }

    /// An event that comes late, and the right one behind it.
    fn tell_stale(&mut self, object: &Object) {
        let (kind, name) = Objects::key(object);
        if Objects::is_visible(object, &self.oracle.settings.node_name) {
            self.node.tell(ObjectEvent::Applied(object.clone()));
        }
        let known = self.api.all.get(&(kind, name.clone()));
        let known =
            known.filter(|known| Objects::is_visible(known, &self.oracle.settings.node_name));
        self.node.tell(match known {
            Some(known) => ObjectEvent::Applied(known.clone()),
            None => ObjectEvent::Deleted(kind, name),
        });
    }

    fn sync(&mut self, trouble: Trouble) -> Result<(), String> {
        self.node.own.clone_from(&self.own);
        let synced = self.node.sync(&self.api, trouble);
        synced.map_err(|error| format!("{error:#}"))?;
        self.oracle.objects = self.api.clone();
        self.oracle.own.clone_from(&self.own);
        self.flows.synced(&self.oracle);
        self.explained.forget();
        Ok(())
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn again(&mut self, nth: usize, tcp: Tcp) -> Result<(), String> {
        let known = self.flows.known(&self.oracle, self.node.now);
        let Some(key) = known.get(nth % known.len().max(1)).copied() else {
            return Ok(());
        };
        let (from, ifindex) = self.entries[&key];
        let (protocol, src, dst) = key;
        self.send(&Sent {
            src,
            dst,
            protocol,
            tcp,
            from,
            ifindex,
        })
    }

    fn nth_live(&self, nth: usize) -> Option<Key> {
        let live = self.flows.live(&self.oracle, self.node.now);
        live.get(nth % live.len().max(1)).copied()
    }

    fn send(&mut self, sent: &Sent) -> Result<(), String> {
        let is_own = self.oracle.own.contains(&sent.dst.ip());
        let is_sender = self.oracle.own.contains(&sent.src.ip()) || sent.src.ip().is_loopback();
        // An address that went away sends nothing, and one that came is nobody else's.
        if (sent.from == From::Node) != is_sender {
            return Ok(());
        }
        self.explain(&packet(sent))?;
        // P-8: what a process sends to an own address reaches no interface of ours.
        if sent.from == From::Node && is_own {
            return Ok(());
        }
        let key = (sent.protocol, sent.src, sent.dst);
        let flags = flags(sent.tcp);
        let hold = self.flows.hold(&self.oracle, &key, flags, self.node.now);
        let is_tcp = sent.protocol == Protocol::Tcp;
        // What a reset without a flow becomes is free.
        if is_tcp && sent.tcp == Tcp::Rst && hold == Hold::Anew {
            return Ok(());
        }
        let spec = spec(sent);
        let entry = match sent.from {
            From::Node => Entry::Process,
            From::Pod | From::External => Entry::Interface(sent.ifindex),
        };
        let end = self.node.walk(entry, spec.bytes());
        let mut complaint = String::new();
        if hold != Hold::Anew {
            match self.follows(sent, &spec, &end) {
                Ok(()) => {
                    self.count("followed");
                    self.flows
                        .note_packet(&key, Side::Original, flags, self.node.now);
                    return Ok(());
                }
                Err(text) if hold == Hold::Follows => return Err(self.report(sent, &end, &text)),
                Err(text) => complaint = text,
            }
        }
        let packet = packet(sent);
        let decision = self.oracle.decide(&packet);
        let chosen = self.decides(sent, &packet, &decision, &end);
        let chosen = chosen.map_err(|text| {
            let text = format!("{complaint}{text}\n  {decision:?}");
            self.report(sent, &end, &text)
        })?;
        let Some(chosen) = chosen else {
            self.flows.forget(&key);
            return Ok(());
        };
        self.flows
            .note_new(&packet, &decision, chosen, self.node.now);
        self.flows
            .note_packet(&key, Side::Original, flags, self.node.now);
        self.entries.insert(key, (sent.from, sent.ifindex));
        Ok(())
    }

    /// What `shunt explain` says of a first packet.
    fn explain(&mut self, packet: &Packet) -> Result<(), String> {
        let decision = self.oracle.decide(packet);
        let difference = self.explained.differs(&self.oracle, packet, &decision);
        difference.map_or(Ok(()), |text| Err(format!("{packet:?}: {text}")))?;
        self.count("explained");
        Ok(())
    }

    fn reply(&mut self, nth: usize, tcp: Tcp) -> Result<(), String> {
        let Some(key) = self.nth_live(nth) else {
            return Ok(());
        };
        let flow = self.flows.flows[&key].clone();
        let (from, _) = self.entries[&key];
        let (protocol, client, dialed) = key;
        let own = &self.oracle.own;
        // The client's address went away, or came to this node.
        if (from == From::Node) != (own.contains(&client.ip()) || client.ip().is_loopback()) {
            return Ok(());
        }
        let is_delivered = own.contains(&flow.backend.ip());
        if is_delivered && own.contains(&flow.source.ip()) {
            return Ok(());
        }
        // Where S-091 keeps the source, the answer to a client behind an interface without our
        // programs is not ours to see.
        if flow.source == client && from != From::Node && self.is_dark(client.ip()) {
            return Ok(());
        }
        // A SYN-ACK without a SYN belongs to a client that dialed the backend itself.
        let tcp = match tcp {
            Tcp::Syn if flow.is_closed() || flow.fins.contains(&true) => Tcp::Data,
            tcp => tcp,
        };
        let (entry, sender) = match self.node.route(flow.backend.ip()) {
            None => (Entry::Process, From::Node),
            Some(ifindex) => (Entry::Interface(ifindex), From::External),
        };
        let sent = Spec {
            src: flow.backend,
            dst: flow.source,
            protocol,
            tcp,
            is_reply: true,
            ttl: TTL,
        };
        let end = self.node.walk(entry, sent.bytes());
        let expected = Spec {
            src: dialed,
            dst: client,
            ..sent
        };
        self.arrives(expected, sender, &end).map_err(|text| {
            let text = format!("the answer of {key:?} {flow:?}: {text}");
            self.describe(&sent, &end, &text)
        })?;
        self.count("answered by a backend");
        self.flows
            .note_packet(&key, Side::Reply, flags(tcp), self.node.now);
        Ok(())
    }

    fn report(&self, sent: &Sent, end: &End, text: &str) -> String {
        self.describe(&spec(sent), end, &format!("{:?}: {text}", sent.from))
    }

    fn describe(&self, spec: &Spec, end: &End, text: &str) -> String {
        let mut out = format!("{spec:?}\n  {text}\n  seen: {}", end_text(end));
        let _ = write!(out, "\n  programs: {}", self.node.counters);
        let _ = write!(out, "\n  own: {:?}", extra(&self.oracle.own));
        out
    }
}

fn extra(own: &[IpAddr]) -> BTreeSet<IpAddr> {
    let fixed = own_addresses();
    own.iter()
        .copied()
        .filter(|addr| !fixed.contains(addr))
        .collect()
}

fn end_text(end: &End) -> String {
    let text = |bytes: &[u8]| format!("{:?}", wire::ends(bytes));
    match end {
        End::Local(bytes) => format!("delivered {}", text(bytes)),
        End::Out(ifindex, bytes) => format!("out by dev{ifindex} {}", text(bytes)),
        End::Dropped => "dropped".into(),
        End::Answered(bytes) => format!("answered {}", text(bytes)),
    }
}

fn is_attached(ifindex: u32) -> bool {
    let mut devices = DEVICES.iter();
    devices.any(|device| device.ifindex == ifindex && device.flags & ATTACHED != 0)
}

fn flags(tcp: Tcp) -> Flags {
    Flags {
        syn: tcp == Tcp::Syn,
        fin: tcp == Tcp::Fin,
        rst: tcp == Tcp::Rst,
    }
}

fn spec(sent: &Sent) -> Spec {
    Spec {
        src: sent.src,
        dst: sent.dst,
        protocol: sent.protocol,
        tcp: sent.tcp,
        is_reply: false,
        ttl: TTL,
    }
}

fn packet(sent: &Sent) -> Packet {
    Packet {
        src: sent.src,
        dst: sent.dst,
        protocol: sent.protocol,
        from: sent.from,
        interface: (sent.from != From::Node).then(|| interface_name(sent.ifindex)),
    }
}
