//! Stage 2: can this packet be ours at all? Exact as a superset, and cheap: what is not ours must
//! not pay for us (design rule P-14).

use proxy_common::{Be16, Config, Counter, Side, Tuple};

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
        Transport::Ports => knows_frontend(tables, headers) || knows_backend(tables, headers),
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

/// True for a packet with ports that may be to a frontend.
#[inline(always)]
pub fn knows_frontend<F: Family, T: Tables<F>>(tables: &T, headers: &Headers<F>) -> bool {
    let Tuple { dst, dport, .. } = &headers.tuple;
    known(tables, (headers.protocol, Side::Destination, *dport), dst)
}

/// True for a packet with ports that may be from a backend, or to one past every frontend: its
/// answers may look like those of a flow (conntrack::clashes).
#[inline(always)]
pub fn knows_backend<F: Family, T: Tables<F>>(tables: &T, headers: &Headers<F>) -> bool {
    let Tuple {
        src,
        dst,
        sport,
        dport,
    } = &headers.tuple;
    known(tables, (headers.protocol, Side::Source, *sport), src)
        || known(tables, (headers.protocol, Side::Source, *dport), dst)
}

/// The port says it of most packets, the address of those that share it.
#[inline(always)]
fn known<F: Family, T: Tables<F>>(
    tables: &T,
    (protocol, side, port): (u8, Side, Be16),
    addr: &F::Addr,
) -> bool {
    tables.port_known(protocol, side, port.get()) && tables.address_known(addr)
}
