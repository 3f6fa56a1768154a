//! The checksum of SCTP (S-129): a CRC32c of the whole packet, which covers no addresses.

use proxy_common::{Counter, Tuple};

use crate::pipeline::parse::{self, Fragment, Headers};
use crate::wire::{crc32c, sctp};
use crate::{Family, Packet, Stop};

/// Makes it right for the ports of `new`. 0 is none yet: the stack or the device computes it over
/// the packet as it leaves.
#[inline(always)]
pub(super) fn rewrite_checksum<F: Family, P: Packet>(
    packet: &mut P,
    headers: &Headers<F>,
    new: &Tuple<F::Addr>,
) -> Result<(), Stop> {
    let ports = |tuple: &Tuple<F::Addr>| (tuple.dport.0 as u32) << 16 | tuple.sport.0 as u32;
    let difference = ports(&headers.tuple) ^ ports(new);
    if difference == 0 {
        return Ok(());
    }
    let at = headers.l4.get() + sctp::CHECKSUM;
    let unreadable = |_| Stop::Drop(Counter::Unparsable);
    let old: u32 = packet.read(at).map_err(unreadable)?;
    if old == 0 {
        return Ok(());
    }
    // The length of the whole is in its last fragment only.
    if let Fragment::First = headers.fragment {
        return Err(Stop::Drop(Counter::SctpFragment));
    }
    let len = parse::transport_len(packet, headers)?;
    packet.write(at, &(old ^ crc32c::change(difference, len)))
}
