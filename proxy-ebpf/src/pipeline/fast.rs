//! The short way, which nearly all packets take: the same stages, with most of their branches
//! decided beforehand. A whole TCP or UDP packet without options ends here if the port filter knows
//! neither port, or if it belongs to a connection in FLOWS and nothing has to be written of it. Any
//! other goes the long way as it came: until it is clear that a packet ends here, nothing is
//! changed and nothing counted.

use bytemuck::Zeroable;
use proxy_common::{Connection, FlowKey};

use super::{Step, conntrack, filter, needs_next_hop, parse, translate, translated};
use crate::wire::tcp;
use crate::{Environment, Family, Packet, Stop, Tables};

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
    let Some(entry) = conntrack::settled(tables, &headers, &key, &mut connection, now) else {
        return Ok(Step::Begin);
    };
    if needs_next_hop(env, &connection) {
        return Ok(Step::Begin);
    }
    translate(packet, env, &headers, &connection)?;
    tables.carry(entry, headers.len);
    Ok(translated(&headers, &connection))
}
