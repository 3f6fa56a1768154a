//! The short way, which nearly all packets take: the same stages, with most of their branches
//! decided beforehand. A whole TCP or UDP packet without options ends here if the filter knows none
//! of its ports and addresses, if it belongs to a connection in FLOWS and nothing has to be written
//! of it, or if it is in the middle of a TCP connection past every frontend. Any other goes the
//! long way as it came: until it is clear that a packet ends here, nothing is changed and nothing
//! counted.

use bytemuck::Zeroable;
use proxy_common::{Config, Connection, Counter, FlowKey, protocol};

use super::parse::Headers;
use super::{Step, conntrack, filter, needs_next_hop, parse, translate, translated};
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
    filter::check(tables, config, &headers)?;
    // What begins a connection is in no entry that need not be written.
    if headers.tcp_flags & tcp::SYN != 0 {
        return Ok(Step::Begin);
    }
    let key = FlowKey::new(headers.tuple, headers.protocol);
    let mut connection = Connection::zeroed();
    let now = env.now_secs(config.hz);
    let Some(entry) = tables.entry(FlowTable::Flows, &key, &mut connection) else {
        return is_past_frontends(tables, config, &headers, &key, &mut connection);
    };
    if !conntrack::is_settled(tables, &headers, &key, &connection, now)
        || needs_next_hop(env, &connection)
    {
        return Ok(Step::Begin);
    }
    translate(packet, env, &headers, &connection)?;
    tables.carry(entry, headers.len);
    Ok(translated(&headers, &connection))
}

/// Ends a TCP packet in the middle of a connection that is not in FLOWS, if it is in no other table
/// either and cannot be to a frontend: what pods and backends send to each other past every
/// frontend, such as all connections that were translated at a socket hook.
#[inline(always)]
fn is_past_frontends<F, T>(
    tables: &T,
    config: &Config,
    headers: &Headers<F>,
    key: &FlowKey<F::Addr>,
    found: &mut Connection<F::Addr>,
) -> Result<Step, Stop>
where
    F: Family,
    T: Tables<F>,
{
    if headers.protocol != protocol::TCP
        || filter::may_be_dialed(tables, config, headers)
        || tables.flow(FlowTable::Handshakes, key, found)
    {
        return Ok(Step::Begin);
    }
    Err(Stop::Pass(Counter::NotFrontend))
}
