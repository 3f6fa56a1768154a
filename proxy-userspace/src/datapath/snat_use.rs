//! How many of the SNAT ports are in use.

use std::collections::BTreeMap;
use std::io;

use proxy_common::flow::flags;
use proxy_common::{Addr4, Addr6, Be16, Connection, FlowKey};

use super::catalog::{NAMES4, NAMES6};
use super::elements::AnyMap;
use crate::family::IpFamily;

/// What shares one set of ports: protocol, source address, and the backend's address and port.
type Sharers<A> = (u8, A, A, Be16);

/// Counts masqueraded connections while flow tables are read.
#[derive(Debug, Default)]
pub struct SnatUse {
    v4: BTreeMap<Sharers<Addr4>, u64>,
    v6: BTreeMap<Sharers<Addr6>, u64>,
    /// Flow tables that were read.
    tables: usize,
}

impl SnatUse {
    /// Counts the elements of any map, and looks at those of a flow table.
    pub fn count(&mut self, name: &str, map: &AnyMap) -> io::Result<usize> {
        let counted = match name {
            _ if [NAMES4.handshakes, NAMES4.flows].contains(&name) => walk(map, &mut self.v4),
            _ if [NAMES6.handshakes, NAMES6.flows].contains(&name) => walk(map, &mut self.v6),
            _ => return map.count(),
        }?;
        self.tables += 1;
        Ok(counted)
    }

    /// The masqueraded connections to one backend from one address, where they are most; `None`
    /// where a flow table was not read.
    pub fn most(self) -> Option<u64> {
        const TABLES: usize = 4;
        let counts = self.v4.into_values().chain(self.v6.into_values());
        (self.tables == TABLES).then(|| counts.max().unwrap_or_default())
    }
}

fn walk<A: IpFamily>(table: &AnyMap, counts: &mut BTreeMap<Sharers<A>, u64>) -> io::Result<usize> {
    let sizes = [size_of::<FlowKey<A>>(), size_of::<Connection<A>>()];
    if [table.info.key_size as usize, table.info.value_size as usize] != sizes {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut all = 0;
    table.each(|key, value| {
        all += 1;
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
    })?;
    Ok(all)
}
