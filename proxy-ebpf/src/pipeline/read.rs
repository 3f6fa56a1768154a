//! The steps of stage 1: what is it, and where did it want to go if that cannot be read?

use proxy_common::Counter;

use super::parse::{self, Transport};
use super::{Scratch, Step, frontend};
use crate::{Family, Packet, Stop, Tables};

/// Stage 1: what is it? `l3` is the offset of its IP header.
#[inline(always)]
pub fn begin<F: Family, P: Packet>(
    packet: &P,
    scratch: &mut Scratch<F>,
    l3: usize,
) -> Result<Step, Stop> {
    let headers = &mut scratch.headers;
    match parse::parse::<F, P>(packet, l3, headers) {
        Ok(()) if matches!(headers.transport, Transport::IcmpError) => Ok(Step::Quote),
        Ok(()) => Ok(Step::Track),
        Err(stop) => or_unreadable(stop),
    }
}

/// Stage 1 for an ICMP error: what is it about? A step of its own, so that the verifier follows the
/// headers of the quoted packet once, and not once for each number of headers in front of them.
#[inline(always)]
pub fn quote<F: Family, P: Packet>(packet: &P, scratch: &mut Scratch<F>) -> Result<Step, Stop> {
    match parse::quoted::<F, P>(packet, &mut scratch.headers) {
        Ok(()) => Ok(Step::Track),
        Err(stop) => or_unreadable(stop),
    }
}

#[inline(always)]
fn or_unreadable(stop: Stop) -> Result<Step, Stop> {
    match stop {
        Stop::Pass(reason @ (Counter::Truncated | Counter::TooManyHeaders)) => {
            Ok(Step::Unreadable(reason))
        }
        stop => Err(stop),
    }
}

/// Stage 1, where the headers cannot be read: what wants to a Service is not let through
/// untranslated (S-133).
#[inline(always)]
pub fn unreadable<F: Family, P: Packet, T: Tables<F>>(
    packet: &P,
    tables: &T,
    l3: usize,
    reason: Counter,
) -> Result<Step, Stop> {
    let config = tables.config().ok_or(Stop::Pass(Counter::Unconfigured))?;
    let dst: F::Addr = parse::destination::<F, P>(packet, l3)?;
    if frontend::is_served(tables, config, &dst) {
        return Err(Stop::Drop(Counter::Unparsable));
    }
    Err(Stop::Pass(reason))
}
