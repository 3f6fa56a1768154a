//! The maps, read into the collections that the pipeline runs over on the host.

use proxy_common::frontend::{CLUSTER_START, Word};
use proxy_common::port_filter::PORT_FILTER_LEN;
use proxy_common::{Interface, RegionHeader};
use proxy_ebpf::Family;
use proxy_ebpf::tables::host::HostTables;

use crate::family::IpFamily;
use crate::maps::{FamilyMaps, Maps};
use crate::pipeline::actual::members;

/// Everything that decides on a new flow of one family. Connections are left out: a first packet
/// has none.
pub fn read<F, M>(maps: &M, interfaces: impl IntoIterator<Item = (u32, Interface)>) -> HostTables<F>
where
    F: Family<Addr: IpFamily>,
    M: Maps + FamilyMaps<F::Addr>,
{
    let mut tables = HostTables::<F> {
        config: maps.config(),
        interfaces: interfaces.into_iter().collect(),
        node_addresses: FamilyMaps::<F::Addr>::node_addresses(maps)
            .into_iter()
            .collect(),
        ..HostTables::default()
    };
    tables.port_filter = (0..PORT_FILTER_LEN)
        .filter_map(|index| Some((index, maps.port_filter(index)?)))
        .filter(|(_, bits)| *bits != 0)
        .collect();
    tables.cluster_ips = FamilyMaps::<F::Addr>::cluster_ips(maps)
        .into_iter()
        .map(|(key, value)| ((key.prefix_len, key.addr), value))
        .collect();
    tables.source_ranges = FamilyMaps::<F::Addr>::source_ranges(maps)
        .into_iter()
        .map(|key| {
            (
                key.service_port,
                key.prefix_len.saturating_sub(32),
                key.addr,
            )
        })
        .collect();
    for (key, id) in FamilyMaps::<F::Addr>::frontend_ids(maps) {
        tables.frontend_ids.insert(key, id);
        if let Some(frontend) = FamilyMaps::<F::Addr>::frontend(maps, id) {
            tables.frontends.insert(id, frontend);
            region(maps, &mut tables, Word::unpack(frontend.word).region);
        }
    }
    tables
}

/// One region with its backends.
fn region<F, M>(maps: &M, tables: &mut HostTables<F>, start: u32)
where
    F: Family<Addr: IpFamily>,
    M: Maps + FamilyMaps<F::Addr>,
{
    let Some(header) = maps.slot(start).filter(|_| start != 0) else {
        return;
    };
    let len = RegionHeader::unpack(header).region_len().max(CLUSTER_START);
    let content: Vec<u64> = (start..start + len)
        .map(|index| maps.slot(index).unwrap_or_default())
        .collect();
    for id in members(&content) {
        if let Some(backend) = FamilyMaps::<F::Addr>::backend(maps, id) {
            tables.backends.insert(id, backend);
        }
    }
    tables.slots.extend((start..).zip(content));
}
