//! A [`Step`] in the one register that a subprogram returns.

use proxy_common::Counter;

use crate::pipeline::Step;
use crate::{Answer, Verdict};

/// Kind, detail, counter and a number.
#[inline(always)]
pub fn pack(step: Step) -> u64 {
    let (kind, detail, reason, number) = match step {
        Step::Create => (0, 0, 0, 0),
        Step::Finish => (1, 0, 0, 0),
        Step::Refresh => (4, 0, 0, 0),
        Step::Track => (5, 0, 0, 0),
        Step::Unreadable(reason) => (6, 0, reason as u64, 0),
        Step::Choose => (7, 0, 0, 0),
        Step::Begin => (8, 0, 0, 0),
        Step::Quote => (9, 0, 0, 0),
        Step::Begun => (10, 0, 0, 0),
        Step::Answer(reason, Answer::Refused) => (2, 0, reason as u64, 0),
        Step::Answer(reason, Answer::TimeExceeded) => (2, 1, reason as u64, 0),
        Step::Answer(reason, Answer::TooBig(mtu)) => (2, 2, reason as u64, mtu as u32),
        Step::End(Verdict::Pass, reason) => (3, 0, reason as u64, 0),
        Step::End(Verdict::Drop, reason) => (3, 1, reason as u64, 0),
        Step::End(Verdict::Return, reason) => (3, 2, reason as u64, 0),
        Step::End(Verdict::Redirect(ifindex), reason) => (3, 3, reason as u64, ifindex),
        Step::End(Verdict::Deliver(ifindex), reason) => (3, 4, reason as u64, ifindex),
    };
    kind << 56 | detail << 48 | reason << 32 | number as u64
}

/// What [`pack`] was given.
#[inline(always)]
pub fn unpack(packed: u64) -> Step {
    let number = packed as u32;
    let reason = Counter::from_number((packed >> 32) as u16 as u32);
    match (packed >> 56, packed >> 48 & 0xff) {
        (0, _) => Step::Create,
        (1, _) => Step::Finish,
        (4, _) => Step::Refresh,
        (5, _) => Step::Track,
        (6, _) => Step::Unreadable(reason),
        (7, _) => Step::Choose,
        (8, _) => Step::Begin,
        (9, _) => Step::Quote,
        (10, _) => Step::Begun,
        (2, 0) => Step::Answer(reason, Answer::Refused),
        (2, 1) => Step::Answer(reason, Answer::TimeExceeded),
        (2, _) => Step::Answer(reason, Answer::TooBig(number as u16)),
        (_, 0) => Step::End(Verdict::Pass, reason),
        (_, 1) => Step::End(Verdict::Drop, reason),
        (_, 2) => Step::End(Verdict::Return, reason),
        (_, 3) => Step::End(Verdict::Redirect(number), reason),
        (_, _) => Step::End(Verdict::Deliver(number), reason),
    }
}
