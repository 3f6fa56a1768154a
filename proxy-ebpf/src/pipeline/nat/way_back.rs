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
    let of_frontend = answers_leave_by(env, headers, &headers.tuple);
    of_backend == of_frontend && of_backend != NO_ROUTE && is_attached(tables, of_backend)
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
    out != NO_ROUTE && !is_attached(tables, out)
}

/// No interface has this index. A number, because kernel 5.10 refuses to compare two `Option`s of
/// which one is without a value: it would read what nobody has written.
const NO_ROUTE: u32 = 0;

/// The interface that answers to a packet with `tuple` leave by, or [`NO_ROUTE`].
#[inline(always)]
fn answers_leave_by<F: Family, E: Environment<F>>(
    env: &E,
    headers: &Headers<F>,
    tuple: &Tuple<F::Addr>,
) -> u32 {
    let answers = RouteQuery {
        tuple: tuple.reversed(),
        protocol: headers.protocol,
    };
    env.route(&answers).unwrap_or(NO_ROUTE)
}

#[inline(always)]
fn is_attached<F: Family, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    let found = tables.interface(ifindex);
    found.is_some_and(|found| found.flags & interface::flags::ATTACHED != 0)
}
