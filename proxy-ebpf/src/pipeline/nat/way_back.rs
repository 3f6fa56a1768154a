//! The way of a local backend's answers: may the source of a flow be kept (P-4)?

use proxy_common::{Tuple, interface};

use crate::environment::RouteQuery;
use crate::pipeline::parse::Headers;
use crate::{Environment, Family, Tables};

/// True if the backend's answer to the client leaves by an interface with our programs, and by the
/// one that an answer of the frontend itself would take: a policy route for the frontend's address
/// says where its clients are (P-4).
#[inline(always)]
pub fn returns_here<F, T, E>(tables: &T, env: &E, headers: &Headers<F>, to: &Tuple<F::Addr>) -> bool
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let of_backend = answers_leave_by(env, headers, to);
    of_backend == answers_leave_by(env, headers, &headers.tuple)
        && of_backend.is_some_and(|ifindex| is_attached(tables, ifindex))
}

/// True if the backend's answer to the client leaves by an interface without our programs.
#[inline(always)]
pub fn leaves_unseen<F, T, E>(
    tables: &T,
    env: &E,
    headers: &Headers<F>,
    to: &Tuple<F::Addr>,
) -> bool
where
    F: Family,
    T: Tables<F>,
    E: Environment<F>,
{
    let out = answers_leave_by(env, headers, to);
    out.is_some_and(|ifindex| !is_attached(tables, ifindex))
}

/// The interface that answers to a packet with `tuple` leave by.
#[inline(always)]
fn answers_leave_by<F: Family, E: Environment<F>>(
    env: &E,
    headers: &Headers<F>,
    tuple: &Tuple<F::Addr>,
) -> Option<u32> {
    env.route(&RouteQuery {
        tuple: tuple.reversed(),
        protocol: headers.protocol,
    })
}

#[inline(always)]
fn is_attached<F: Family, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    let found = tables.interface(ifindex);
    found.is_some_and(|found| found.flags & interface::flags::ATTACHED != 0)
}
