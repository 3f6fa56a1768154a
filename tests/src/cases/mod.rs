//! The Case table: what the datapath does, as data.
//!
//! A [`Case`] is a world, a packet, and everything that must come of it: the verdict, every byte
//! of the packet that leaves, and the counters that change. It is written once with roles and runs
//! for both families: on the host ([`host`]) and in the kernel ([`kernel`]), by the programs that
//! the agent attaches.

pub mod build;
pub mod events;
pub mod flows;
pub mod host;
pub mod kernel;
pub mod packets;
pub mod random;
pub mod raw_map;
pub mod table;
pub mod tables;
pub mod verify;
pub mod world;
pub mod xdp;

use std::collections::BTreeMap;

use proxy_common::Counter;
use proxy_ebpf::{Hook, Verdict};

use flows::Flow;
use packets::PacketSpec;
use world::{Binding, CaseFamily, POD, World};

/// What leaves.
#[derive(Clone, Debug)]
pub enum Out {
    /// The packet as it came.
    Unchanged,
    /// Another one.
    Packet(PacketSpec),
}

/// A world, a packet, and what must come of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// A sentence.
    pub name: String,
    /// The rules that it shows.
    pub rules: &'static [&'static str],
    /// Where the program runs.
    pub hook: Hook,
    /// Interface of the hook.
    pub ifindex: u32,
    /// What is configured and known.
    pub world: World,
    /// The packet.
    pub packet: PacketSpec,
    /// Bytes cut off its end.
    pub cut: usize,
    /// A byte of the IP header that is overwritten: offset and value.
    pub poke: Option<(usize, u8)>,
    /// Payload of each segment; 0 for a single packet.
    pub segment_len: u32,
    /// The mark that it carries.
    pub mark: u32,
    /// The families that it holds for.
    pub families: Families,
    /// What becomes of it.
    pub verdict: Verdict,
    /// What leaves, unless it is dropped.
    pub out: Out,
    /// The reason, and every other counter that changes, by one each.
    pub counters: Vec<Counter>,
    /// The flows that are known afterwards, where the case says so.
    pub flows_after: Option<Vec<Flow>>,
    /// Who is bound to what afterwards, where the case says so.
    pub bindings_after: Option<Vec<Binding>>,
}

/// The families that a case holds for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Families {
    /// IPv4 and IPv6.
    Both,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// What happened to a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// Every byte; empty for a dropped packet.
    pub bytes: Vec<u8>,
    /// Counters that changed.
    pub counters: BTreeMap<Counter, u64>,
}

/// A case that shows `rules`, to be completed.
pub fn case(name: impl Into<String>, rules: &'static [&'static str], packet: PacketSpec) -> Case {
    Case {
        name: name.into(),
        rules,
        hook: Hook::Ingress,
        ifindex: POD,
        world: World::default(),
        packet,
        cut: 0,
        poke: None,
        segment_len: 0,
        mark: 0,
        families: Families::Both,
        verdict: Verdict::Pass,
        out: Out::Unchanged,
        counters: Vec::new(),
        flows_after: None,
        bindings_after: None,
    }
}

impl Case {
    /// At the ingress of an interface.
    pub fn ingress(mut self, ifindex: u32) -> Self {
        self.hook = Hook::Ingress;
        self.ifindex = ifindex;
        self
    }

    /// At the egress of an interface.
    pub fn egress(mut self, ifindex: u32) -> Self {
        self.hook = Hook::Egress;
        self.ifindex = ifindex;
        self
    }

    /// In another world.
    pub fn world(mut self, world: World) -> Self {
        self.world = world;
        self
    }

    /// With a known flow.
    pub fn flow(mut self, flow: Flow) -> Self {
        self.world.flows.push(flow);
        self
    }

    /// These flows are known afterwards, and no others.
    pub fn leaves(mut self, flows: &[Flow]) -> Self {
        self.flows_after = Some(flows.to_vec());
        self
    }

    /// These clients are bound afterwards, and no others.
    pub fn binds(mut self, bindings: &[Binding]) -> Self {
        self.bindings_after = Some(bindings.to_vec());
        self
    }

    /// True if the case holds for `F`.
    pub fn holds_for<F: CaseFamily>(&self) -> bool {
        match self.families {
            Families::Both => true,
            Families::V4 => F::VERSION == 4,
            Families::V6 => F::VERSION == 6,
        }
    }

    /// It is left alone, for this reason.
    pub fn left_alone(self, reason: Counter) -> Self {
        self.ends(Verdict::Pass, Out::Unchanged, &[reason])
    }

    /// It is dropped, for this reason.
    pub fn dropped(self, reason: Counter) -> Self {
        self.ends(Verdict::Drop, Out::Unchanged, &[reason])
    }

    /// It is answered.
    pub fn answered(self, answer: PacketSpec, reason: Counter) -> Self {
        self.ends(Verdict::Return, Out::Packet(answer), &[reason])
    }

    /// It goes on to the stack as another packet.
    pub fn passed(self, out: PacketSpec, counters: &[Counter]) -> Self {
        self.ends(Verdict::Pass, Out::Packet(out), counters)
    }

    /// It is redirected; `out` is said as it would be without the hop.
    pub fn redirected(self, ifindex: u32, out: PacketSpec, counters: &[Counter]) -> Self {
        let ttl = out.ttl;
        let out = Out::Packet(out.ttl(ttl - 1));
        self.ends(Verdict::Redirect(ifindex), out, counters)
    }

    /// Verdict, packet and counters.
    pub fn ends(mut self, verdict: Verdict, out: Out, counters: &[Counter]) -> Self {
        self.verdict = verdict;
        self.out = out;
        self.counters = counters.to_vec();
        self
    }

    /// The packet that comes.
    pub fn bytes<F: CaseFamily>(&self) -> Vec<u8> {
        let mut bytes = self.packet.bytes::<F>();
        bytes.truncate(bytes.len() - self.cut);
        if let Some((at, value)) = self.poke {
            bytes[packets::L3 + at] = value;
        }
        bytes
    }

    /// What must come of it.
    pub fn expected<F: CaseFamily>(&self) -> Outcome {
        let bytes = match (&self.out, self.verdict) {
            (_, Verdict::Drop) => Vec::new(),
            (Out::Unchanged, _) => self.bytes::<F>(),
            (Out::Packet(packet), _) => {
                let mut bytes = packet.bytes::<F>();
                if !packet.is_answer {
                    bytes.truncate(bytes.len() - self.cut);
                }
                bytes
            }
        };
        let mut counters = BTreeMap::new();
        for counter in &self.counters {
            *counters.entry(*counter).or_default() += 1;
        }
        Outcome {
            verdict: self.verdict,
            bytes,
            counters,
        }
    }
}

impl Outcome {
    /// Of a run that left these bytes: those of a dropped packet do not matter.
    pub fn of_run(verdict: Verdict, bytes: Vec<u8>, counters: BTreeMap<Counter, u64>) -> Self {
        Self {
            verdict,
            bytes: match verdict {
                Verdict::Drop => Vec::new(),
                _ => bytes,
            },
            counters,
        }
    }

    /// The difference to what was expected, in words; `None` where there is none.
    pub fn differs(&self, expected: &Self) -> Option<String> {
        if self == expected {
            return None;
        }
        let mut text = String::new();
        if self.verdict != expected.verdict || self.counters != expected.counters {
            text = format!(
                "\n  {:?} {:?}\n  expected {:?} {:?}",
                self.verdict, self.counters, expected.verdict, expected.counters
            );
        }
        if self.bytes != expected.bytes {
            let (ours, theirs) = (hex(&self.bytes), hex(&expected.bytes));
            text += &format!("\n  bytes    {ours}\n  expected {theirs}");
        }
        Some(text)
    }
}

fn hex(bytes: &[u8]) -> String {
    let words = bytes.chunks(2).map(|pair| {
        let digits = pair.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    });
    words.collect::<Vec<_>>().join(" ")
}
