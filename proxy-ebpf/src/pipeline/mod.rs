//! The packet's path. The stages in order:
//!
//! parse -> filter -> conntrack -> frontend -> select -> nat -> verdict
//!
//! This file holds the branching between them; a stage never calls another stage. The path has
//! ten steps, so that in the kernel each can be a subprogram with a stack of its own, verified
//! once: [`fast`] (all of it at once, for most packets), [`begin`] (what is it), [`quote`] (what is
//! an ICMP error about), [`unreadable`] (where did it want to go), [`track`] (whose is it),
//! [`refresh`] (keep its flow alive), [`choose`] (who gets a new flow), [`create`] (a new flow),
//! [`finish`] (translate), [`answer`] (refuse). What one step leaves to the next is in [`Scratch`].
//! Between them monitors are told that a connection begins, or that a packet ends here
//! ([`tell`](crate::tell)).

pub mod affinity;
pub mod conntrack;
mod fast;
pub mod filter;
pub mod frontend;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
pub mod nat;
pub mod parse;
mod read;
pub mod select;
pub mod verdict;

use proxy_common::{Config, Connection, Counter};

use crate::{Answer, Environment, Family, Hook, Packet, Stop, Tables, Verdict};
use conntrack::{Creator, Entries, Tracked};
pub use fast::fast;
use parse::Headers;
pub use read::{begin, quote, unreadable};
use select::{Choice, Takers};

/// What one step leaves to the next: per CPU and hook in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch<F: Family> {
    /// Of the packet.
    pub headers: Headers<F>,
    /// Of the connection that it belongs to.
    pub entries: Entries<F>,
    /// Who gets a new flow.
    pub choice: Choice<F>,
}

/// What comes after a step.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// [`begin`]: the short way is not for this packet.
    Begin,
    /// [`quote`]: the packet is an ICMP error.
    Quote,
    /// [`track`]: the headers are known.
    Track,
    /// [`unreadable`]: the headers cannot be read, for this reason.
    Unreadable(Counter),
    /// [`choose`]: no flow is known.
    Choose,
    /// [`create`]: a flow starts.
    Create,
    /// [`refresh`]: the flow is known, and its entries have to be written.
    Refresh,
    /// [`tell::begun`](crate::tell::begun): this packet has created the flow.
    Begun,
    /// [`finish`]: the flow is known.
    Finish,
    /// [`answer`]: the packet is refused.
    Answer(Counter, Answer),
    /// The end.
    End(Verdict, Counter),
}

/// The steps with everything that they need; see [`run`].
pub trait Steps {
    /// [`fast`].
    fn fast(&mut self) -> Step;
    /// [`begin`].
    fn begin(&mut self) -> Step;
    /// [`quote`].
    fn quote(&mut self) -> Step;
    /// [`unreadable`].
    fn unreadable(&mut self, reason: Counter) -> Step;
    /// [`track`].
    fn track(&mut self) -> Step;
    /// [`refresh`].
    fn refresh(&mut self) -> Step;
    /// [`choose`].
    fn choose(&mut self) -> Step;
    /// [`create`].
    fn create(&mut self) -> Step;
    /// [`tell::begun`](crate::tell::begun).
    fn tell_begun(&mut self) -> Step;
    /// [`finish`].
    fn finish(&mut self) -> Step;
    /// [`answer`].
    fn answer(&mut self, reason: Counter, answer: Answer) -> Step;
    /// [`tell::ended`](crate::tell::ended): the packet is refused or dropped.
    fn tell_ended(&mut self, step: Step);
}

/// Sends one packet down the path, and returns what to do with it and why.
#[inline(always)]
pub fn run(steps: &mut impl Steps) -> (Verdict, Counter) {
    let mut step = steps.fast();
    if let Step::Begin = step {
        step = steps.begin();
    }
    if let Step::Quote = step {
        step = steps.quote();
    }
    if let Step::Unreadable(reason) = step {
        step = steps.unreadable(reason);
    }
    if let Step::Track = step {
        step = steps.track();
    }
    if let Step::Refresh = step {
        step = steps.refresh();
    }
    if let Step::Choose = step {
        step = steps.choose();
    }
    if let Step::Create = step {
        step = steps.create();
    }
    if let Step::Begun = step {
        step = steps.tell_begun();
    }
    if let Step::Finish = step {
        step = steps.finish();
    }
    if let Step::Answer(reason, answer) = step {
        steps.tell_ended(step);
        step = steps.answer(reason, answer);
    } else if let Step::End(Verdict::Drop, _) = step {
        steps.tell_ended(step);
    }
    match step {
        Step::End(verdict, reason) => (verdict, reason),
        // The order above leaves nothing else.
        Step::Begin
        | Step::Quote
        | Step::Unreadable(_)
        | Step::Track
        | Step::Refresh
        | Step::Choose
        | Step::Create
        | Step::Begun
        | Step::Finish
        | Step::Answer(..) => (Verdict::Drop, Counter::AnswerSuppressed),
    }
}

/// Stages 2 and 3: whose is it?
#[inline(always)]
pub fn track<F, T, E>(tables: &T, env: &E, scratch: &mut Scratch<F>) -> Result<Step, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let config = tables.config().ok_or(Stop::Pass(Counter::Unconfigured))?;
    let headers = &mut scratch.headers;
    if let Err(stop) = parse::complete_fragment(tables, headers) {
        return Err(if frontend::is_served(tables, config, &headers.tuple.dst) {
            Stop::Drop(Counter::FrontendFragment)
        } else {
            stop
        });
    }
    filter::check(tables, config, headers)?;
    let now = env.now_secs(config.hz);
    let tracked = conntrack::track(tables, config, headers, &mut scratch.entries, now);
    if !matches!(tracked, Tracked::New) {
        // The other hook writes what there is to write.
        verdict::at_this_hook(env, &scratch.entries.connection)?;
        if matches!(env.hook(), Hook::Xdp) {
            verdict::out_of_turn(&scratch.entries.connection, now)?;
        }
    }
    scratch.entries.uncounted = match tracked {
        Tracked::Known => headers.len,
        _ => 0,
    };
    Ok(match tracked {
        Tracked::New => Step::Choose,
        Tracked::Known if needs_next_hop(env, config, &scratch.entries.connection) => Step::Refresh,
        Tracked::Stale => Step::Refresh,
        Tracked::Known | Tracked::Related => Step::Finish,
    })
}

/// True at XDP for a flow whose next hop has not been found yet, or may be another by now.
#[inline(always)]
fn needs_next_hop<F: Family, E: Environment<F>>(
    env: &E,
    config: &Config,
    connection: &Connection<F::Addr>,
) -> bool {
    matches!(env.hook(), Hook::Xdp)
        && (!connection.next_hop.is_known() || connection.next_hops != config.next_hops as u8)
}

/// Stage 3, where the entries have to be written.
#[inline(always)]
pub fn refresh<F, T, E>(tables: &T, env: &E, scratch: &mut Scratch<F>) -> Result<Step, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let config = tables.config().ok_or(Stop::Pass(Counter::Unconfigured))?;
    let Scratch {
        headers, entries, ..
    } = scratch;
    Ok(
        match conntrack::refresh(tables, env, config, headers, entries) {
            Tracked::New => Step::Choose,
            Tracked::Known | Tracked::Stale | Tracked::Related => Step::Finish,
        },
    )
}

/// Stages 4 and 5 for a new flow: which frontend, and which backend.
#[inline(always)]
pub fn choose<F, T, E>(tables: &T, env: &E, scratch: &mut Scratch<F>) -> Result<Step, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let config = tables.config().ok_or(Stop::Pass(Counter::Unconfigured))?;
    let headers = &scratch.headers;
    frontend::may_start(tables, env, headers)?;
    match frontend::find(tables, config, headers) {
        Ok(frontend) => {
            let origin = frontend::origin(tables, env, config, headers);
            let asked = (&frontend, origin, Takers::of(origin));
            let chosen = frontend::admit(tables, env, headers, &frontend)
                .and_then(|()| select::select(tables, env, config, headers, asked));
            scratch.choice = chosen.inspect_err(|stop| tables.count_stop(frontend.id, stop))?;
        }
        // Not to a frontend: ours only if its answers would be taken for those of a flow.
        Err(stop @ Stop::Pass(Counter::NotFrontend)) => {
            if !conntrack::starts_flow(headers) {
                return Err(stop);
            }
            let origin = frontend::origin(tables, env, config, headers);
            if !conntrack::starts_directly(origin)
                || !conntrack::clashes(
                    tables,
                    config,
                    &mut scratch.entries,
                    env.now_secs(config.hz),
                )
            {
                return Err(stop);
            }
            scratch.choice = Choice::direct(origin);
        }
        Err(stop) => return Err(stop),
    }
    Ok(Step::Create)
}

/// Stage 6 for a new flow: which addresses and which way; then both entries.
#[inline(always)]
pub fn create<F, T, E>(tables: &T, env: &E, scratch: &mut Scratch<F>) -> Result<Step, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let config = tables.config().ok_or(Stop::Pass(Counter::Unconfigured))?;
    let (headers, choice) = (&scratch.headers, &scratch.choice);
    let entries = &mut scratch.entries;
    let port = if choice.is_direct() {
        nat::plan_direct(headers, choice.origin, &mut entries.connection)
    } else {
        nat::plan(tables, env, headers, choice, &mut entries.connection)?
    };
    if matches!(env.hook(), Hook::Xdp) {
        verdict::at_this_hook(env, &entries.connection)?;
        if !conntrack::find_next_hop(env, config, &entries.key, &mut entries.connection) {
            return Err(Stop::Pass(Counter::OtherHook));
        }
    }
    let creator = conntrack::create(tables, env, config, entries, (port, headers.len))?;
    Ok(match creator {
        Creator::This => Step::Begun,
        Creator::Other => Step::Finish,
    })
}

/// Stages 6 and 7: the packet of a known flow.
#[inline(always)]
pub fn finish<F, P, T, E>(
    packet: &mut P,
    tables: &T,
    env: &E,
    scratch: &mut Scratch<F>,
) -> Result<Step, Stop>
where
    F: Family,
    P: Packet,
    T: Tables<F>,
    E: Environment<F>,
{
    translate(packet, env, &scratch.headers, &scratch.entries.connection)?;
    conntrack::count(tables, &mut scratch.entries);
    Ok(translated(&scratch.headers, &scratch.entries.connection))
}

/// Stages 6 and 7 for the packet with these headers, of this direction of a connection.
#[inline(always)]
fn translate<F, P, E>(
    packet: &mut P,
    env: &E,
    headers: &Headers<F>,
    connection: &Connection<F::Addr>,
) -> Result<(), Stop>
where
    F: Family,
    P: Packet,
    E: Environment<F>,
{
    verdict::at_this_hook(env, connection)?;
    verdict::sendable(packet, env, headers, connection)?;
    if let parse::Transport::IcmpError = headers.transport {
        verdict::redirectable_error(headers, connection)?;
        nat::related::<F, P>(packet, headers, connection)?;
    } else {
        verdict::redirectable(packet, headers, connection)?;
        nat::rewrite::<F, P>(packet, headers, connection)?;
    }
    if matches!(env.hook(), Hook::Xdp) {
        verdict::address_frame(packet, &connection.next_hop)?;
    }
    Ok(())
}

/// The end of a packet that is translated. Made last of all: what other verdicts hold is nothing in
/// this one, and a register that stays free for nothing may have a pointer by then.
#[inline(always)]
fn translated<F: Family>(headers: &Headers<F>, connection: &Connection<F::Addr>) -> Step {
    let (verdict, reason) = verdict::translated(headers, connection);
    Step::End(verdict, reason)
}

/// Turns the packet into an answer to its sender, unless this CPU has given enough of them in this
/// second (S-104).
#[inline(always)]
pub fn answer<F, P, T, E>(packet: &mut P, tables: &T, env: &E, refusal: Refusal) -> Step
where
    F: Family,
    P: Packet,
    T: Tables<F>,
    E: Environment<F>,
{
    let limit = tables.config().map_or(0, |config| config.answers_per_sec);
    let hz = tables.config().map_or(0, |config| config.hz);
    if limit != 0 && !tables.may_answer(env.now_secs(hz), limit) {
        return Step::End(Verdict::Drop, Counter::AnswerLimited);
    }
    match crate::answer::write::<F, P>(packet, refusal.l3, refusal.answer) {
        Ok(()) => Step::End(Verdict::Return, refusal.reason),
        Err(_) => Step::End(Verdict::Drop, Counter::AnswerSuppressed),
    }
}

/// Why a packet is refused, and what its sender is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Offset of its IP header.
    pub l3: usize,
    /// The reason.
    pub reason: Counter,
    /// What the sender is told.
    pub answer: Answer,
}

/// The step that a stop leads to.
#[inline(always)]
pub fn or_stop(result: Result<Step, Stop>) -> Step {
    match result {
        Ok(step) => step,
        Err(Stop::Pass(reason)) => Step::End(Verdict::Pass, reason),
        Err(Stop::Drop(reason)) => Step::End(Verdict::Drop, reason),
        Err(Stop::Reject(reason, answer)) => Step::Answer(reason, answer),
    }
}
