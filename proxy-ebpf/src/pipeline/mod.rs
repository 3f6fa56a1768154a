//! The packet's path. The stages in order:
//!
//! parse -> filter -> conntrack -> frontend -> select -> nat -> verdict
//!
//! This file holds the branching between them; a stage never calls another stage. The path has
//! six steps, so that in the kernel each can be a subprogram with a stack of its own, verified
//! once: [`begin`] (what is it), [`track`] (whose is it), [`refresh`] (keep its flow alive),
//! [`create`] (a new flow), [`finish`] (translate), [`answer`] (refuse). An established packet
//! takes the first two and [`finish`]. What one step leaves to the next is in [`Scratch`].

pub mod conntrack;
pub mod filter;
pub mod frontend;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
pub mod nat;
pub mod parse;
pub mod select;
pub mod verdict;

use proxy_common::Counter;

use crate::{Answer, Environment, Family, Packet, Stop, Tables, Verdict};
use conntrack::{Entries, Tracked};
use parse::Headers;

/// What one step leaves to the next: per CPU and hook in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch<F: Family> {
    /// Of the packet.
    pub headers: Headers<F>,
    /// Of the connection that it belongs to.
    pub entries: Entries<F>,
}

/// What comes after a step.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// [`track`]: the headers are known.
    Track,
    /// [`create`]: no flow is known.
    Create,
    /// [`refresh`]: the flow is known, and its entries have to be written.
    Refresh,
    /// [`finish`]: the flow is known.
    Finish,
    /// [`answer`]: the packet is refused.
    Answer(Counter, Answer),
    /// The end.
    End(Verdict, Counter),
}

/// The steps with everything that they need; see [`run`].
pub trait Steps {
    /// [`begin`].
    fn begin(&mut self) -> Step;
    /// [`track`].
    fn track(&mut self) -> Step;
    /// [`refresh`].
    fn refresh(&mut self) -> Step;
    /// [`create`].
    fn create(&mut self) -> Step;
    /// [`finish`].
    fn finish(&mut self) -> Step;
    /// [`answer`].
    fn answer(&mut self, reason: Counter, answer: Answer) -> Step;
}

/// Sends one packet down the path, and returns what to do with it and why.
#[inline(always)]
pub fn run(steps: &mut impl Steps) -> (Verdict, Counter) {
    let mut step = steps.begin();
    if let Step::Track = step {
        step = steps.track();
    }
    if let Step::Refresh = step {
        step = steps.refresh();
    }
    if let Step::Create = step {
        step = steps.create();
    }
    if let Step::Finish = step {
        step = steps.finish();
    }
    if let Step::Answer(reason, answer) = step {
        step = steps.answer(reason, answer);
    }
    match step {
        Step::End(verdict, reason) => (verdict, reason),
        // The order above leaves nothing else.
        Step::Track | Step::Refresh | Step::Create | Step::Finish | Step::Answer(..) => {
            (Verdict::Drop, Counter::AnswerSuppressed)
        }
    }
}

/// Stage 1: what is it? `l3` is the offset of its IP header.
#[inline(always)]
pub fn begin<F: Family, P: Packet>(
    packet: &P,
    scratch: &mut Scratch<F>,
    l3: usize,
) -> Result<Step, Stop> {
    parse::parse::<F, P>(packet, l3, &mut scratch.headers)?;
    Ok(Step::Track)
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
    parse::complete_fragment(tables, headers)?;
    filter::check(tables, config, headers)?;
    let now = env.now_secs(config.hz);
    Ok(
        match conntrack::track(tables, config, headers, &mut scratch.entries, now) {
            Tracked::New => Step::Create,
            Tracked::Stale => Step::Refresh,
            Tracked::Known | Tracked::Related => Step::Finish,
        },
    )
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
    let now = env.now_secs(config.hz);
    Ok(
        match conntrack::refresh(tables, &scratch.headers, &mut scratch.entries, now) {
            Tracked::New => Step::Create,
            Tracked::Known | Tracked::Stale | Tracked::Related => Step::Finish,
        },
    )
}

/// Stages 4 to 6 for a new flow: which frontend, which backend, which addresses; then both entries.
#[inline(always)]
pub fn create<F, T, E>(tables: &T, env: &E, scratch: &mut Scratch<F>) -> Result<Step, Stop>
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let config = tables.config().ok_or(Stop::Pass(Counter::Unconfigured))?;
    let headers = &scratch.headers;
    let origin = frontend::origin(tables, env, config, headers)?;
    let entries = &mut scratch.entries;
    let port = match frontend::find(tables, config, headers) {
        Ok(frontend) => {
            frontend::admit(tables, env, headers, &frontend)?;
            let choice = select::select(tables, config, headers, &frontend, origin)?;
            nat::plan(tables, env, headers, &choice, &mut entries.connection)?
        }
        // Not to a frontend: ours only if its answers would be taken for those of a flow.
        Err(stop)
            if conntrack::starts_directly(headers, origin)
                && conntrack::clashes(tables, config, entries, env.now_secs(config.hz)) =>
        {
            nat::plan_direct(headers, origin, stop, &mut entries.connection)?
        }
        Err(stop) => return Err(stop),
    };
    conntrack::create(tables, env, config, &mut scratch.entries, port)?;
    Ok(Step::Finish)
}

/// Stages 6 and 7: the packet of a known flow.
#[inline(always)]
pub fn finish<F, P, E>(packet: &mut P, env: &E, scratch: &Scratch<F>) -> Result<Step, Stop>
where
    F: Family,
    P: Packet,
    E: Environment<F>,
{
    let (headers, connection) = (&scratch.headers, &scratch.entries.connection);
    verdict::at_this_hook(env, connection)?;
    if let parse::Transport::IcmpError = headers.transport {
        verdict::redirectable_error(headers, connection)?;
        nat::related::<F, P>(packet, headers, connection)?;
    } else {
        verdict::redirectable(packet, headers, connection)?;
        nat::rewrite::<F, P>(packet, headers, connection)?;
    }
    let (verdict, reason) = verdict::translated(headers, connection);
    Ok(Step::End(verdict, reason))
}

/// Turns the packet into an answer to its sender.
#[inline(always)]
pub fn answer<F: Family, P: Packet>(
    packet: &mut P,
    l3: usize,
    reason: Counter,
    answer: Answer,
) -> Step {
    match crate::answer::write::<F, P>(packet, l3, answer) {
        Ok(()) => Step::End(Verdict::Return, reason),
        Err(_) => Step::End(Verdict::Drop, Counter::AnswerSuppressed),
    }
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
