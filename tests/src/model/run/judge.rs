//! What may come of a packet: every difference to the oracle, in words.

use std::net::{IpAddr, SocketAddr};

use proxy_common::FrontendKind;

use super::{Run, is_attached, spec};
use crate::model::node::End;
use crate::model::plan::{Sent, Tcp};
use crate::model::wire::{self, Spec, TTL};
use crate::oracle::Protocol;
use crate::oracle::decide::{Decision, From, Packet, Verdict};
use crate::oracle::flow::Taken;

impl Run {
    /// S-120: the stored translation.
    pub(super) fn follows(&self, sent: &Sent, spec: &Spec, end: &End) -> Result<(), String> {
        let key = (sent.protocol, sent.src, sent.dst);
        let flow = &self.flows.flows[&key];
        let expected = Spec {
            src: flow.source,
            dst: flow.backend,
            ..*spec
        };
        self.arrives(expected, sent.from, end)
            .map_err(|text| format!("S-120, follows {flow:?}: {text}"))
    }

    /// A packet that starts a flow; what was chosen for it, if something was.
    pub(super) fn decides(
        &mut self,
        sent: &Sent,
        packet: &Packet,
        decision: &Decision,
        end: &End,
    ) -> Result<Option<(SocketAddr, SocketAddr)>, String> {
        let spec = spec(sent);
        // S-214: an unknown segment in the middle of a connection may be refused.
        let is_midstream = sent.protocol == Protocol::Tcp && sent.tcp != Tcp::Syn;
        if is_midstream
            && decision.service.is_some()
            && let End::Answered(bytes) = end
        {
            self.count("unknown segment refused");
            return wire::wrong_answer(&spec, bytes).map_or(Ok(None), Err);
        }
        // S-119e: a NodePort may only be matched by what starts a flow.
        if is_midstream
            && decision.kind == Some(FrontendKind::NodePort)
            && self.arrives(spec, sent.from, end).is_ok()
        {
            self.count("unknown segment to a NodePort left alone");
            return Ok(None);
        }
        if self.is_limit(sent, decision, end) {
            self.count("a known limit");
            return Ok(None);
        }
        match (decision.verdict, end) {
            (Verdict::None, end) => {
                self.count("none");
                self.arrives(spec, sent.from, end)?;
                Ok(None)
            }
            (Verdict::Drop, End::Dropped) => {
                self.count("drop");
                Ok(None)
            }
            (Verdict::Reject, End::Answered(bytes)) => {
                self.count("reject");
                wire::wrong_answer(&spec, bytes).map_or(Ok(None), Err)
            }
            (Verdict::Dnat, End::Local(bytes) | End::Out(_, bytes)) => {
                let found = wire::ends(bytes);
                self.translated(sent, decision, (found.dst, found.src))?;
                let expected = Spec {
                    src: found.src,
                    dst: found.dst,
                    ..spec
                };
                self.arrives(expected, sent.from, end)?;
                self.bound(packet, decision, found.dst)?;
                Ok(Some((found.dst, found.src)))
            }
            _ => Err("another verdict".into()),
        }
    }

    /// What the packet path is known not to serve.
    fn is_limit(&self, sent: &Sent, decision: &Decision, end: &End) -> bool {
        let mut backends = decision.backends.keys();
        match sent.protocol {
            // P-8: a process and a backend of one node meet at the socket.
            _ if sent.from == From::Node => {
                backends.any(|backend| self.oracle.own.contains(&backend.ip()))
                    && self.arrives(spec(sent), sent.from, end).is_ok()
            }
            _ => false,
        }
    }

    /// Section 8.
    fn bound(
        &mut self,
        packet: &Packet,
        decision: &Decision,
        backend: SocketAddr,
    ) -> Result<(), String> {
        let bound = self.flows.bound(decision, packet.src.ip(), self.node.now);
        match bound {
            Some(bound) if bound != backend => Err(format!("S-101: bound to {bound}")),
            Some(_) => {
                self.count("affinity");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The backend and the source that it sees are right.
    fn translated(
        &mut self,
        sent: &Sent,
        decision: &Decision,
        (backend, source): (SocketAddr, SocketAddr),
    ) -> Result<(), String> {
        let Some(is_snat) = decision.backends.get(&backend) else {
            return Err(format!("{backend} may not be chosen"));
        };
        let key = (sent.protocol, sent.src, sent.dst);
        let now = self.node.now;
        let is_taken = |tuple| self.flows.is_taken(&self.oracle, &key, tuple, now);
        if is_taken((backend, source)) == Taken::Yes {
            return Err(format!("S-099: {backend} has a flow from {source}"));
        }
        let taken = is_taken((backend, sent.src));
        let is_kept = source == sent.src;
        let is_delivered = self.oracle.own.contains(&backend.ip());
        // P-4: the reply would leave by an interface without our programs.
        let is_dark = sent.from != From::Node && self.is_dark(sent.src.ip());
        let is_wanted = match (is_snat, taken) {
            // S-096: delivered to this host with its source.
            _ if is_delivered && taken == Taken::No => Some(false),
            (_, _) if is_delivered => None,
            (true, _) => Some(true),
            (false, Taken::Yes) => Some(true),
            (false, Taken::Perhaps) => None,
            (false, Taken::No) => (!is_dark).then_some(false),
        };
        let ifindex = self.node.route(backend.ip());
        let masquerade =
            ifindex.and_then(|ifindex| self.node.masquerade(ifindex, backend.is_ipv4()));
        match is_wanted {
            // The source may be the very address that it would be masqueraded with.
            Some(true) if is_kept && masquerade == Some(sent.src.ip()) && taken != Taken::Yes => {}
            Some(true) if is_kept => return Err("S-091: the source is kept".into()),
            Some(false) if !is_kept => return Err(format!("S-090: the source is {source}")),
            _ => {}
        }
        // S-099: where the tuple is taken, another port is enough.
        let is_port_enough = taken != Taken::No && source.ip() == sent.src.ip();
        if !is_kept && !is_port_enough && Some(source.ip()) != masquerade {
            return Err(format!(
                "S-095: the source is {source}, not of {masquerade:?}"
            ));
        }
        self.count(if is_kept { "dnat" } else { "dnat and snat" });
        Ok(())
    }

    /// True for a client that is answered by an interface without our programs.
    pub(super) fn is_dark(&self, client: IpAddr) -> bool {
        let ifindex = self.node.route(client);
        ifindex.is_some_and(|ifindex| !is_attached(ifindex))
    }

    /// `expected` got where its destination is, whole, and nothing else did.
    pub(super) fn arrives(&self, expected: Spec, from: From, end: &End) -> Result<(), String> {
        let route = self.node.route(expected.dst.ip());
        let bytes = match (route, end) {
            (None, End::Local(bytes)) => bytes,
            (Some(ifindex), End::Out(found, bytes)) if ifindex == *found => bytes,
            _ => return Err(format!("it should be at {route:?}")),
        };
        // A process' packet is no hop further before it leaves.
        let ttls = match (route, from) {
            (None, _) => TTL..=TTL,
            (Some(_), From::Node) => TTL - 1..=TTL,
            (Some(_), _) => TTL - 1..=TTL - 1,
        };
        for ttl in ttls {
            if (Spec { ttl, ..expected }).is(bytes) {
                return Ok(());
            }
        }
        Err(format!("other bytes than those of {expected:?}"))
    }
}
