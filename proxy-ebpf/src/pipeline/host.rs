//! The path on the host: the same steps, called one after the other.

use bytemuck::{Pod, Zeroable};
use proxy_common::{Backend, Counter, Tuple};

use super::conntrack::Entries;
use super::frontend::{Origin, Place};
use super::parse::{Fragment, Fragmenting, Headers, Transport};
use super::select::{Choice, Masquerade};
use super::{Refusal, Scratch, Step, Steps, or_stop};
use crate::packet::Offset;
use crate::{Answer, Environment, Family, FlowTable, Packet, Tables, Verdict, tell};

/// One packet on its way.
pub struct HostSteps<'a, F: Family, P, T, E> {
    packet: &'a mut P,
    tables: &'a T,
    env: &'a E,
    l3: usize,
    may_be_fast: bool,
    scratch: Scratch<F>,
}

impl<F, P, T, E> HostSteps<'_, F, P, T, E>
where
    F: Family,
    P: Packet,
    T: Tables<F>,
    E: Environment<F>,
{
    /// Sends `packet` down the path and counts where it ends. `l3` is the offset of its IP header.
    pub fn run(packet: &mut P, tables: &T, env: &E, l3: usize) -> (Verdict, Counter) {
        Self::send(packet, tables, env, l3, true)
    }

    /// The same, never by the short way: the end must be the same too.
    pub fn run_long(packet: &mut P, tables: &T, env: &E, l3: usize) -> (Verdict, Counter) {
        Self::send(packet, tables, env, l3, false)
    }

    fn send(
        packet: &mut P,
        tables: &T,
        env: &E,
        l3: usize,
        may_be_fast: bool,
    ) -> (Verdict, Counter) {
        let mut steps = HostSteps {
            packet,
            tables,
            env,
            l3,
            may_be_fast,
            scratch: used_scratch(),
        };
        let (verdict, reason) = super::run(&mut steps);
        tables.count(reason);
        (verdict, reason)
    }
}

/// Headers of nothing.
pub fn no_headers<F: Family>() -> Headers<F> {
    Headers {
        tuple: Tuple::zeroed(),
        l3: Offset::ZERO,
        l4: Offset::ZERO,
        quoted: Offset::ZERO,
        quoted_l4: Offset::ZERO,
        len: 0,
        fragment_id: 0,
        protocol: 0,
        tcp_flags: 0,
        ttl: 0,
        transport: Transport::Other,
        fragment: Fragment::No,
        fragmenting: Fragmenting::Forbidden,
    }
}

/// As earlier packets leave it, at its worst: no packet may depend on what it finds here.
fn used_scratch<F: Family>() -> Scratch<F> {
    Scratch {
        headers: Headers {
            tuple: ones(),
            l3: Offset::MAX,
            l4: Offset::MAX,
            quoted: Offset::MAX,
            quoted_l4: Offset::MAX,
            len: u32::MAX,
            fragment_id: u32::MAX,
            protocol: u8::MAX,
            tcp_flags: u8::MAX,
            ttl: u8::MAX,
            transport: Transport::IcmpError,
            fragment: Fragment::Later,
            fragmenting: Fragmenting::Allowed,
        },
        entries: Entries {
            key: ones(),
            connection: ones(),
            other_key: ones(),
            other: ones(),
            found: ones(),
            table: FlowTable::Handshakes,
            uncounted: u32::MAX,
        },
        choice: Choice {
            frontend: u32::MAX,
            backend_id: u32::MAX,
            backend: ones::<Backend<F::Addr>>(),
            origin: Origin {
                place: Place::Node,
                is_pod: true,
                has_detector: true,
                bridge: u32::MAX,
            },
            masquerade: Masquerade::Yes,
        },
    }
}

fn ones<T: Pod>() -> T {
    let mut value = T::zeroed();
    bytemuck::bytes_of_mut(&mut value).fill(0xff);
    value
}

impl<F, P, T, E> Steps for HostSteps<'_, F, P, T, E>
where
    F: Family,
    P: Packet,
    T: Tables<F>,
    E: Environment<F>,
{
    fn fast(&mut self) -> Step {
        if !self.may_be_fast {
            return Step::Begin;
        }
        or_stop(super::fast::<F, _, _, _>(
            self.packet,
            self.tables,
            self.env,
            self.l3,
        ))
    }

    fn begin(&mut self) -> Step {
        or_stop(super::begin(self.packet, &mut self.scratch, self.l3))
    }

    fn quote(&mut self) -> Step {
        or_stop(super::quote(self.packet, &mut self.scratch))
    }

    fn unreadable(&mut self, reason: Counter) -> Step {
        or_stop(super::unreadable::<F, _, _>(
            self.packet,
            self.tables,
            self.l3,
            reason,
        ))
    }

    fn track(&mut self) -> Step {
        or_stop(super::track(self.tables, self.env, &mut self.scratch))
    }

    fn refresh(&mut self) -> Step {
        or_stop(super::refresh(self.tables, self.env, &mut self.scratch))
    }

    fn choose(&mut self) -> Step {
        or_stop(super::choose(self.tables, self.env, &mut self.scratch))
    }

    fn create(&mut self) -> Step {
        or_stop(super::create(self.tables, self.env, &mut self.scratch))
    }

    fn finish(&mut self) -> Step {
        or_stop(super::finish(
            self.packet,
            self.tables,
            self.env,
            &mut self.scratch,
        ))
    }

    fn answer(&mut self, reason: Counter, answer: Answer) -> Step {
        let refusal = Refusal {
            l3: self.l3,
            reason,
            answer,
        };
        super::answer::<F, _, _, _>(self.packet, self.tables, self.env, refusal)
    }

    fn tell_begun(&mut self) -> Step {
        tell::begun(self.tables, self.env, &self.scratch.entries);
        Step::Finish
    }

    fn tell_ended(&mut self, step: Step) {
        if let Some(end) = tell::wanted(self.tables, self.env, step) {
            tell::ended(self.packet, self.tables, self.env, end, self.l3);
        }
    }
}
