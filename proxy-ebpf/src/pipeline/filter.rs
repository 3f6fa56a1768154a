//! Stage 2: can this packet be ours at all? Exact as a superset, and cheap: what is not ours must
//! not pay for us (design rule P-14).

use proxy_common::{Config, Counter, Side, Tuple};

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
            let protocol = headers.protocol;
            known(
                tables,
                (protocol, Side::Destination, tuple.dport.get()),
                &tuple.dst,
            ) || known(
                tables,
                (protocol, Side::Source, tuple.sport.get()),
                &tuple.src,
            ) || known(
                tables,
                (protocol, Side::Source, tuple.dport.get()),
                &tuple.dst,
            )
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

/// True for a packet with ports that may be to a frontend, or to another address of the Services.
#[inline(always)]
pub fn may_be_dialed<F: Family, T: Tables<F>>(
    tables: &T,
    config: &Config,
    headers: &Headers<F>,
) -> bool {
    let Tuple { dst, dport, .. } = &headers.tuple;
    let port = (headers.protocol, Side::Destination, dport.get());
    known(tables, port, dst) || F::config(config).is_service_address(dst)
}

#[inline(always)]
fn known<F: Family, T: Tables<F>>(
    tables: &T,
    (protocol, side, port): (u8, Side, u16),
    addr: &F::Addr,
) -> bool {
    tables.port_known(protocol, side, port) && tables.address_known(addr)
}
