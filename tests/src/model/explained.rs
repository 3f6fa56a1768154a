//! `shunt explain` against the oracle: the same objects, the same packet, the same answer.

use std::net::SocketAddr;

use proxy_userspace::explain::{self, Answer, Query, World, explain};

use super::node::{list, own_addresses};
use crate::oracle::decide::{Decision, From, Packet, Verdict};
use crate::oracle::{Oracle, Protocol};

/// What `explain` builds from the objects, kept until they change.
#[derive(Debug, Default)]
pub struct Explained {
    world: Option<World>,
}

impl Explained {
    /// The objects changed.
    pub fn forget(&mut self) {
        self.world = None;
    }

    /// How the answer differs from the oracle's, in words; `None` for a packet that cannot be
    /// asked about.
    pub fn differs(
        &mut self,
        oracle: &Oracle,
        packet: &Packet,
        decision: &Decision,
    ) -> Option<String> {
        let query = query(packet)?;
        let world = self.world.get_or_insert_with(|| {
            let events = list(&oracle.objects, &oracle.settings.node_name);
            World::of_objects(&oracle.settings, events, &oracle.own)
        });
        let answer = explain(world, &query);
        let is_right = is_right(&answer, packet, decision);
        (!is_right).then(|| format!("explain says {answer:#?}\n  {decision:?}"))
    }
}

fn query(packet: &Packet) -> Option<Query> {
    let protocol = match packet.protocol {
        Protocol::Tcp => explain::Protocol::Tcp,
        Protocol::Udp => explain::Protocol::Udp,
        Protocol::Sctp => explain::Protocol::Sctp,
        Protocol::Echo => return None,
    };
    let from = match packet.from {
        From::Pod => explain::From::Pod,
        From::Node => explain::From::Node,
        From::External => explain::From::External,
    };
    Some(Query {
        src: packet.src.ip(),
        sport: packet.src.port(),
        dst: packet.dst.ip(),
        dport: packet.dst.port(),
        protocol,
        from: Some(from),
        in_interface: packet.interface.clone(),
    })
}

fn is_right(answer: &Answer, packet: &Packet, decision: &Decision) -> bool {
    let verdict = match decision.verdict {
        Verdict::Dnat => explain::Verdict::Dnat,
        Verdict::Reject => explain::Verdict::Reject,
        Verdict::Drop => explain::Verdict::Drop,
        Verdict::None => explain::Verdict::None,
    };
    let service = decision.service.as_ref();
    let service = service.map(|key| format!("{}/{}:{}", key.namespace, key.service, key.port));
    let mut backends: Vec<String> = decision
        .backends
        .keys()
        .map(SocketAddr::to_string)
        .collect();
    backends.sort();
    if answer.verdict != verdict
        || answer.service != service
        || answer.kind != decision.kind
        || answer.backends != backends
    {
        return false;
    }
    let chosen = answer
        .chosen
        .as_ref()
        .map(|text| text.parse::<SocketAddr>());
    match chosen {
        None => verdict != explain::Verdict::Dnat,
        Some(Err(_)) => false,
        Some(Ok(chosen)) => {
            let is_hairpin = chosen.ip() == packet.src.ip();
            // S-096: nothing replaces the source of what is delivered to this node.
            let is_delivered = own_addresses().contains(&chosen.ip());
            decision.backends.get(&chosen) == Some(&answer.snat)
                && answer.hairpin == is_hairpin
                && (answer.snat_address.is_some() == answer.snat || is_delivered)
        }
    }
}
