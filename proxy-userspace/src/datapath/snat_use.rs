//! How many of the SNAT ports are in use.

use std::collections::BTreeMap;
use std::io;

use proxy_common::flow::flags;
use proxy_common::{Addr4, Addr6, Be16, Connection, FlowKey};

use super::catalog::{NAMES4, NAMES6};
use super::elements::AnyMap;
use super::pin::Pins;
use crate::family::IpFamily;

/// What shares one set of ports: protocol, source address, and the backend's address and port.
type Sharers<A> = (u8, A, A, Be16);

/// The masqueraded connections to one backend from one address, where they are most; `None` where
/// the flow tables cannot be read. Reads them whole.
pub fn most_used(pins: &Pins) -> Option<u64> {
    let v4 = most::<Addr4>(pins, [NAMES4.handshakes, NAMES4.flows])?;
    let v6 = most::<Addr6>(pins, [NAMES6.handshakes, NAMES6.flows])?;
    Some(v4.max(v6))
}

fn most<A: IpFamily>(pins: &Pins, tables: [&'static str; 2]) -> Option<u64> {
    let mut counts = BTreeMap::<Sharers<A>, u64>::new();
    for name in tables {
        let (fd, info) = pins.map(name).ok()?;
        let sizes = [size_of::<FlowKey<A>>(), size_of::<Connection<A>>()];
        pins.check_sizes(name, &info, sizes).ok()?;
        count::<A>(&AnyMap::new(fd).ok()?, &mut counts).ok()?;
    }
    Some(counts.into_values().max().unwrap_or_default())
}

fn count<A: IpFamily>(table: &AnyMap, counts: &mut BTreeMap<Sharers<A>, u64>) -> io::Result<()> {
    table.each(|key, value| {
        let key: FlowKey<A> = bytemuck::pod_read_unaligned(key);
        let entry: Connection<A> = bytemuck::pod_read_unaligned(value);
        let is_snat = entry.flags & (flags::SNAT | flags::REPLY) == flags::SNAT;
        // An element that is being reused has another tag.
        if is_snat && entry.tag == key.tag() {
            let to = entry.to;
            *counts
                .entry((key.protocol, to.src, to.dst, to.dport))
                .or_default() += 1;
        }
    })
}
