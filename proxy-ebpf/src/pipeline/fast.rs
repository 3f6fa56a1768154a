//! The short way, which nearly all packets take: the same stages, with most of their branches
//! decided beforehand. A whole TCP or UDP packet without options ends here if the filter knows none
//! of its ports and addresses, if it belongs to a connection in FLOWS and nothing has to be written
//! but to its own entry, or if it is past every frontend. Any other goes the long way as it came:
//! until it is clear that a packet ends here, nothing is changed and nothing counted.

use bytemuck::Zeroable;
use proxy_common::{Connection, Counter, FlowKey};

use super::parse::Headers;
use super::{Step, conntrack, filter, nat, needs_next_hop, parse, translate, translated, verdict};
use crate::wire::tcp;
use crate::{Environment, Family, FlowTable, Packet, Stop, Tables};

/// Takes a packet the short way, or tells that it has to go the long one ([`Step::Begin`]). `l3` is
/// the offset of its IP header.
#[inline(always)]
pub fn fast<F, P, T, E>(packet: &mut P, tables: &T, env: &E, l3: usize) -> Result<Step, Stop>
where
    F: Family,
    P: Packet,
    T: Tables<F>,
    E: Environment<F>,
{
    let Some(headers) = parse::plain::<F, P>(packet, l3) else {
        return Ok(Step::Begin);
    };
    let Some(config) = tables.config() else {
        return Ok(Step::Begin);
    };
    let knows_frontend = filter::knows_frontend(tables, &headers);
    let may_be_dialed =
        || knows_frontend || F::config(config).is_service_address(&headers.tuple.dst);
    if !knows_frontend && !filter::knows_backend(tables, &headers) && !may_be_dialed() {
        return Err(Stop::Pass(Counter::Foreign));
    }
    // What begins a connection to a frontend is in no entry that need not be written.
    if headers.tcp_flags & tcp::SYN != 0 && may_be_dialed() {
        return Ok(Step::Begin);
    }
    let mut key = FlowKey::new(headers.tuple, headers.protocol);
    let mut connection = Connection::zeroed();
    let now = env.now_secs(config.hz);
    let Some(entry) = tables.entry(FlowTable::Flows, &key, &mut connection) else {
        if may_be_dialed() {
            return Ok(Step::Begin);
        }
        return past_frontends(tables, &headers, &mut key, &mut connection);
    };
    if !conntrack::is_settled(tables, env, &headers, (&key, &connection), now)
        || needs_next_hop(env, config, &connection)
    {
        return Ok(Step::Begin);
    }
    verdict::at_this_hook(env, &connection)?;
    if !nat::rewrite_plain::<F, P, E>(packet, env, &headers, &connection) {
        translate(packet, env, &headers, &connection)?;
    }
    if now == connection.last_seen_secs {
        tables.carry(entry, headers.len);
    } else {
        tables.see(entry, now, headers.len);
    }
    Ok(translated(&headers, &connection))
}

/// Ends a packet that is not in FLOWS and cannot be to a frontend, if it is in no other table
/// either, and if its answers cannot be taken for those of a flow: what pods and backends send to
/// each other past every frontend, such as all that was translated at a socket hook.
#[inline(always)]
fn past_frontends<F, T>(
    tables: &T,
    headers: &Headers<F>,
    key: &mut FlowKey<F::Addr>,
    found: &mut Connection<F::Addr>,
) -> Result<Step, Stop>
where
    F: Family,
    T: Tables<F>,
{
    if tables.flow(FlowTable::Handshakes, key, found)
        || conntrack::starts_flow(headers) && conntrack::may_clash(tables, key, found)
    {
        return Ok(Step::Begin);
    }
    Err(Stop::Pass(Counter::NotFrontend))
}
