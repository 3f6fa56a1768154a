//! Stage 2: can this packet be ours at all? Exact as a superset, and cheap: what is not ours must
//! not pay for us (design rule P-14).

use proxy_common::{Config, Counter, Side};

use super::parse::{Headers, Transport};
use crate::{Family, Stop, Tables};

/// Stops a packet that no flow and no frontend can match.
#[inline(always)]
pub fn check<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    headers: &Headers<F>,
) -> Result<(), Stop> {
    let tuple = &headers.tuple;
    let known = match headers.transport {
        // To a frontend, from a backend, or to a backend past every frontend: its answers may look
        // like those of a flow (conntrack::clashes). The port says it of most packets, the address
        // of those that share it.
        Transport::Ports => {
            let known = |side, port, addr| {
                tables.port_known(headers.protocol, side, port) && tables.address_known(addr)
            };
            known(Side::Destination, tuple.dport.get(), &tuple.dst)
                || known(Side::Source, tuple.sport.get(), &tuple.src)
                || known(Side::Source, tuple.dport.get(), &tuple.dst)
        }
        // About a packet to a backend, or from a frontend: the sides are the other way round.
        Transport::IcmpError => {
            tables.port_known(headers.protocol, Side::Source, tuple.dport.get())
                || tables.port_known(headers.protocol, Side::Destination, tuple.sport.get())
        }
        Transport::Other => false,
    };
    if known || F::config(config).is_service_address(&tuple.dst) {
        return Ok(());
    }
    Err(Stop::Pass(match headers.transport {
        Transport::Other => Counter::NoPorts,
        Transport::Ports | Transport::IcmpError => Counter::Foreign,
    }))
}
