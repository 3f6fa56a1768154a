//! The pipeline over what the agent wrote.

use std::cell::Cell;
use std::net::IpAddr;

use proxy_common::{Tuple, port_filter};
use proxy_ebpf::environment::RouteQuery;
use proxy_ebpf::packet::host::HostPacket;
use proxy_ebpf::pipeline::host::HostSteps;
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Environment, Hook, Verdict};
use proxy_userspace::fake_maps::FakeMaps;
use proxy_userspace::family::IpFamily;
use proxy_userspace::maps::{FamilyMaps, Maps};

use super::ModelFamily;
use crate::cases::packets::L3;
use crate::cases::world::route;

pub(super) fn run<F: ModelFamily>(
    tables: &HostTables<F>,
    env: &ModelEnvironment<'_>,
    bytes: Vec<u8>,
) -> (Verdict, Vec<u8>, String) {
    tables.written.borrow_mut().counters.clear();
    let mut packet = HostPacket::new(bytes);
    let (verdict, _) = HostSteps::<F, _, _, _>::run(&mut packet, tables, env, L3);
    let counters = tables.written.borrow().counters.clone();
    let names: Vec<String> = counters.keys().map(|name| format!("{name:?}")).collect();
    (verdict, packet.bytes, names.join(" "))
}

/// What userspace wrote becomes what programs read; what programs wrote stays.
pub(super) fn show<F: ModelFamily>(maps: &FakeMaps, tables: &mut HostTables<F>)
where
    FakeMaps: FamilyMaps<F::Addr>,
{
    let capacity = maps.capacity();
    let family: &dyn FamilyMaps<F::Addr> = maps;
    tables.config = maps.config();
    tables.port_filter = (0..port_filter::PORT_FILTER_LEN)
        .filter_map(|index| Some((index, maps.port_filter(index)?)))
        .collect();
    tables.frontend_ids = family.frontend_ids().into_iter().collect();
    tables.frontends = (1..capacity.frontends)
        .filter_map(|id| Some((id, family.frontend(id)?)))
        .collect();
    tables.backends = (1..capacity.backends)
        .filter_map(|id| Some((id, family.backend(id)?)))
        .collect();
    tables.slots = (1..capacity.slots)
        .filter_map(|index| Some((index, maps.slot(index).filter(|slot| *slot != 0)?)))
        .collect();
    tables.node_addresses = family.node_addresses().into_iter().collect();
    let cluster_ips = family.cluster_ips().into_iter();
    tables.cluster_ips = cluster_ips
        .map(|(key, value)| ((key.prefix_len, key.addr), value))
        .collect();
    let ranges = family.source_ranges().into_iter();
    tables.source_ranges = ranges
        .map(|key| (key.service_port, key.prefix_len - 32, key.addr))
        .collect();
    tables.interfaces = maps.interfaces().clone();
}

/// The kernel around a packet.
#[derive(Debug)]
pub(super) struct ModelEnvironment<'a> {
    pub(super) hook: Hook,
    pub(super) ifindex: u32,
    pub(super) now: u32,
    pub(super) seed: &'a Cell<u32>,
    pub(super) own: &'a [IpAddr],
}

impl<F: ModelFamily> Environment<F> for ModelEnvironment<'_> {
    fn hook(&self) -> Hook {
        self.hook
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn now_secs(&self, _hz: u32) -> u32 {
        self.now
    }

    fn random(&self) -> u32 {
        // xorshift32 (Marsaglia).
        let mut state = self.seed.get();
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        self.seed.set(state);
        state
    }

    fn route(&self, query: &RouteQuery<F>) -> Option<u32> {
        let dst = query.tuple.dst;
        if self.own.contains(&dst.to_ip()) {
            return None;
        }
        route::<F>(&dst)
    }

    fn socket_owns(&self, _tuple: &Tuple<F::Addr>, _protocol: u8) -> bool {
        false
    }
}
