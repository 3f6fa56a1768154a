//! Tracked flows of a case, by both of their entries.

use bytemuck::Zeroable;
use proxy_common::flow::{Path, flags, path, path_flags, seen};
use proxy_common::{Be16, Connection, FlowKey, Tuple, interface, protocol};

use super::world::{At, CaseFamily, GENERATION};

/// Which entries exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Halves {
    /// Both.
    Both,
    /// The Reply direction was evicted.
    OriginalOnly,
    /// The Original direction was evicted.
    ReplyOnly,
}

/// Which table holds them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Age {
    /// HANDSHAKES: not established yet.
    Handshake,
    /// FLOWS.
    Established,
    /// HANDSHAKES: it has been established.
    Closed,
}

/// One known connection.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// IP protocol.
    pub protocol: u8,
    /// Who dials.
    pub client: At,
    /// What is dialed.
    pub dialed: At,
    /// The source that the backend sees.
    pub source: At,
    /// The backend.
    pub backend: At,
    /// BackendId: 0 means that of the first backend for the protocol.
    pub backend_id: u32,
    /// The backend's generation at the decision.
    pub generation: u32,
    /// Way of the Original direction.
    pub path: Path,
    /// Way of the Reply direction.
    pub reply_path: Path,
    /// In which table.
    pub age: Age,
    /// Seconds since the last packet.
    pub idle_secs: u32,
    /// `flow::seen` bits.
    pub seen: u8,
    /// `flow::flags` beside REPLY and CONFIRMED.
    pub flags: u16,
    /// Which entries exist.
    pub halves: Halves,
}

/// A path of `kind` by `ifindex`, with the usual MTU where it redirects.
pub fn by(kind: u8, ifindex: u32) -> Path {
    let mut devices = super::world::DEVICES.iter();
    let device = devices.find(|device| device.ifindex == ifindex);
    let of_device = device.map_or(0, |device| device.flags);
    let mut flags = 0;
    for (of_interface, of_path) in [
        (interface::flags::TAKES_LARGER, path_flags::TAKES_LARGER),
        (interface::flags::XDP, path_flags::XDP),
    ] {
        flags |= if of_device & of_interface != 0 {
            of_path
        } else {
            0
        };
    }
    let mtu = device.map_or(0, |device| device.mtu as u16);
    Path {
        kind,
        flags,
        mtu,
        ifindex,
    }
}

/// An established TCP flow through the stack: source kept.
pub fn stack(client: At, dialed: At, backend: At) -> Flow {
    Flow {
        protocol: protocol::TCP,
        client,
        dialed,
        source: client,
        backend,
        backend_id: 0,
        generation: GENERATION,
        path: by(path::INGRESS_STACK, 0),
        reply_path: by(path::EGRESS_STACK, 0),
        age: Age::Established,
        idle_secs: 0,
        seen: seen::ANSWER,
        flags: 0,
        halves: Halves::Both,
    }
}

/// An established TCP flow that is redirected both ways, out by the one interface and
/// back by the other, with SNAT to `source`.
pub fn snat(client: At, dialed: At, source: At, backend: At, [out, back]: [u32; 2]) -> Flow {
    Flow {
        source,
        path: by(path::INGRESS_NEIGH, out),
        reply_path: by(path::INGRESS_NEIGH, back),
        flags: flags::SNAT,
        ..stack(client, dialed, backend)
    }
}

impl Flow {
    /// The same over UDP.
    pub fn udp(self) -> Self {
        Self {
            protocol: protocol::UDP,
            ..self
        }
    }

    /// The same before the backend has answered.
    pub fn unanswered(self) -> Self {
        Self {
            age: Age::Handshake,
            seen: 0,
            ..self
        }
    }

    /// The same when the backend has answered, and no more.
    pub fn answered(self) -> Self {
        Self {
            seen: seen::ANSWER,
            ..self.unanswered()
        }
    }

    /// The same when the ends `bits` were seen.
    pub fn ended(self, bits: u8) -> Self {
        Self {
            seen: seen::ANSWER | bits,
            ..self
        }
    }

    /// The same, closed by the ends `bits`.
    pub fn closed(self, bits: u8) -> Self {
        Self {
            age: Age::Closed,
            ..self.ended(bits)
        }
    }

    /// The same, not used for this long.
    pub fn idle(self, idle_secs: u32) -> Self {
        Self { idle_secs, ..self }
    }

    /// Both entries: key and value of the Original, then of the Reply direction.
    pub fn entries<F: CaseFamily>(&self, frontend: u32, backend: u32, now: u32) -> [Entry<F>; 2] {
        let tuple = |src: At, dst: At| Tuple {
            src: F::address(src.0),
            dst: F::address(dst.0),
            sport: Be16::new(src.1),
            dport: Be16::new(dst.1),
        };
        let key = FlowKey::new(tuple(self.client, self.dialed), self.protocol);
        let reply_key = FlowKey::new(tuple(self.backend, self.source), self.protocol);
        let replied = match self.age {
            Age::Handshake => 0,
            Age::Established | Age::Closed => flags::CONFIRMED,
        };
        let mut original = Connection::zeroed();
        original.to = reply_key.tuple.reversed();
        original.tag = key.tag();
        original.last_seen_secs = now.wrapping_sub(self.idle_secs);
        original.backend = if self.backend_id == 0 {
            backend
        } else {
            self.backend_id
        };
        original.generation = self.generation;
        original.frontend = frontend;
        original.path = self.path;
        original.other_path = self.reply_path;
        original.flags = self.flags | replied;
        original.seen = self.seen;
        let mut reply = original;
        reply.to = key.tuple.reversed();
        reply.tag = reply_key.tag();
        reply.path = self.reply_path;
        reply.other_path = self.path;
        reply.flags |= flags::REPLY;
        [(key, original), (reply_key, reply)]
    }
}

/// Key and value in HANDSHAKES or FLOWS.
pub type Entry<F> = (
    FlowKey<<F as proxy_ebpf::Family>::Addr>,
    Connection<<F as proxy_ebpf::Family>::Addr>,
);
