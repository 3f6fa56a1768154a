//! The maps as text, without ids and generations: equal content gives equal text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use proxy_common::frontend::flags;
use proxy_common::node::{address_flags, cluster_ip};
use proxy_common::{
    Addr4, Addr6, Backend, BackendState, Cidr, Config, FrontendKey, FrontendKind, RegionHeader,
    RegionTail, Word,
};

use crate::family::{Endpoint, IpFamily, Prefix, frontend_text};
use crate::maps::{FamilyMaps, Maps};
use crate::pipeline::actual::members;

/// Everything but CONFIG, PORT_FILTER and INTERFACES, a line an entry, IPv4 before IPv6.
pub fn dump(maps: &impl Maps) -> String {
    let mut text = String::new();
    dump_family::<Addr4, _>(maps, &mut text);
    dump_family::<Addr6, _>(maps, &mut text);
    text
}

/// What depends on objects in CONFIG: pod networks and ServiceCIDRs.
pub fn dump_config(config: &Config) -> String {
    let mut text = String::new();
    dump_cidrs("pods", &[config.v4.pods], &mut text);
    dump_cidrs("pods", &[config.v6.pods], &mut text);
    dump_cidrs("service-cidr", &config.v4.service_cidrs, &mut text);
    dump_cidrs("service-cidr", &config.v6.service_cidrs, &mut text);
    text
}

fn dump_cidrs<A: IpFamily>(name: &str, cidrs: &[Cidr<A>], text: &mut String) {
    for cidr in cidrs.iter().filter(|cidr| cidr.used != 0) {
        let len: u32 = cidr
            .mask
            .words()
            .iter()
            .map(|word| word.get().count_ones())
            .sum();
        line(text, format_args!("{name} {}/{len}", cidr.network.to_ip()));
    }
}

/// What one published region leads to.
struct Reader<'a, A: IpFamily, M> {
    maps: &'a M,
    ranges: BTreeMap<u32, BTreeSet<Prefix<A>>>,
    /// Backends that some frontend leads to.
    used: BTreeSet<u32>,
    /// The first frontend of each service port.
    ports: BTreeMap<u32, String>,
}

fn dump_family<A: IpFamily, M: Maps + FamilyMaps<A>>(maps: &M, text: &mut String) {
    let mut ranges: BTreeMap<u32, BTreeSet<Prefix<A>>> = BTreeMap::new();
    for key in FamilyMaps::<A>::source_ranges(maps) {
        let range = Prefix {
            addr: key.addr,
            len: key.prefix_len.saturating_sub(32),
        };
        ranges.entry(key.service_port).or_default().insert(range);
    }
    let mut reader = Reader {
        maps,
        ranges,
        used: BTreeSet::new(),
        ports: BTreeMap::new(),
    };
    let mut keys = FamilyMaps::<A>::frontend_ids(maps);
    keys.sort_by_key(|(key, _)| (key.addr.to_ip(), key.port.get(), key.protocol));
    let reachable: BTreeSet<u32> = keys.iter().map(|(_, id)| *id).collect();
    for (key, id) in &keys {
        reader.frontend(key, *id, text);
    }
    for id in (1..maps.capacity().frontends).filter(|id| !reachable.contains(id)) {
        let element = FamilyMaps::<A>::frontend(maps, id).filter(|element| element.word != 0);
        if let Some(element) = element {
            line(
                text,
                format_args!("unreachable frontend {}", frontend_text(&element.key)),
            );
        }
    }
    reader.other_backends(text);
    reader.other_ranges(text);
    dump_addresses::<A>(maps, text);
}

impl<A: IpFamily, M: Maps + FamilyMaps<A>> Reader<'_, A, M> {
    fn frontend(&mut self, key: &FrontendKey<A>, id: u32, text: &mut String) {
        let key_text = frontend_text(key);
        let element = FamilyMaps::<A>::frontend(self.maps, id);
        let word = element
            .filter(|element| element.key == *key)
            .map_or(0, |found| found.word);
        if word == 0 {
            return line(text, format_args!("frontend {key_text} unpublished"));
        }
        let start = Word::unpack(word).region;
        let header = RegionHeader::unpack(self.maps.slot(start).unwrap_or_default());
        let content: Vec<u64> = (start..start + header.region_len())
            .map(|index| self.maps.slot(index).unwrap_or_default())
            .collect();
        let tail = RegionTail::unpack(content.get(1).copied().unwrap_or_default());
        self.ports
            .entry(tail.service_port)
            .or_insert_with(|| key_text.clone());
        let kind = FrontendKind::from_number(header.kind);
        let kind = kind.map_or_else(|| "unknown".into(), |kind| format!("{kind:?}"));
        let ids: Vec<u32> = members(&content).collect();
        let (cluster, local) = ids.split_at((header.cluster_count as usize).min(ids.len()));
        let _ = write!(
            text,
            "frontend {key_text} {kind} cluster=[{}]",
            self.part(cluster)
        );
        if header.flags & flags::LOCAL_POLICY != 0 {
            let _ = write!(text, " local=[{}]", self.part(local));
        }
        if header.flags & flags::HAS_ENDPOINTS == 0 {
            text.push_str(" no-endpoints");
        }
        if tail.affinity_timeout_secs != 0 {
            let _ = write!(text, " affinity={}", tail.affinity_timeout_secs);
        }
        if header.flags & flags::SOURCE_RANGES != 0 {
            let ranges = self.ranges.get(&tail.service_port);
            let ranges: Vec<String> = ranges.into_iter().flatten().map(prefix_text).collect();
            let _ = write!(text, " from=[{}]", ranges.join(" "));
        }
        if header.flags & flags::ADOPTS != 0 {
            text.push_str(" adopts");
        }
        if header.flags & flags::SOURCE_RANGES_NODE != 0 {
            text.push_str(" from-node");
        }
        text.push('\n');
        self.used.extend(ids);
    }

    /// The backends of a part, in order; of a lookup table with the number of their entries.
    fn part(&self, ids: &[u32]) -> String {
        let mut entries: BTreeMap<u32, usize> = BTreeMap::new();
        for id in ids {
            *entries.entry(*id).or_default() += 1;
        }
        let mut backends: Vec<(Endpoint<A>, String)> = entries
            .into_iter()
            .map(|(id, entries)| {
                let (endpoint, mut text) = match FamilyMaps::<A>::backend(self.maps, id) {
                    Some(backend) => (endpoint(&backend), backend_text(&backend)),
                    None => (
                        Endpoint {
                            addr: A::UNSPECIFIED,
                            port: 0,
                        },
                        "missing".into(),
                    ),
                };
                if entries > 1 {
                    let _ = write!(text, " x{entries}");
                }
                (endpoint, text)
            })
            .collect();
        backends.sort_by_key(|(endpoint, _)| (endpoint.addr.to_ip(), endpoint.port));
        let texts: Vec<String> = backends.into_iter().map(|(_, text)| text).collect();
        texts.join(" ")
    }

    /// Backends that no frontend leads to, but flows may.
    fn other_backends(&self, text: &mut String) {
        let mut lines = BTreeSet::new();
        for id in (1..self.maps.capacity().backends).filter(|id| !self.used.contains(id)) {
            let backend = FamilyMaps::<A>::backend(self.maps, id);
            let Some(backend) = backend.filter(|found| found.state != BackendState::Free as u8)
            else {
                continue;
            };
            let port = self
                .ports
                .get(&backend.service_port)
                .map_or("nothing", String::as_str);
            lines.insert(format!("backend {} of {port}", backend_text(&backend)));
        }
        for text_line in lines {
            line(text, format_args!("{text_line}"));
        }
    }

    /// Source ranges that no frontend asks for.
    fn other_ranges(&self, text: &mut String) {
        let others = self
            .ranges
            .iter()
            .filter(|(id, _)| !self.ports.contains_key(id));
        for range in others.flat_map(|(_, ranges)| ranges) {
            line(
                text,
                format_args!("source-range {} of nothing", prefix_text(range)),
            );
        }
    }
}

fn dump_addresses<A: IpFamily>(maps: &impl FamilyMaps<A>, text: &mut String) {
    let prefixes: BTreeMap<(std::net::IpAddr, u32), u32> = maps
        .cluster_ips()
        .into_iter()
        .map(|(key, value)| ((key.addr.to_ip(), key.prefix_len), value))
        .collect();
    for ((addr, len), value) in prefixes {
        let value = match value {
            cluster_ip::ACTIVE => "active",
            cluster_ip::UNALLOCATED => "unallocated",
            cluster_ip::FRONTEND => "frontend",
            _ => "unknown",
        };
        line(text, format_args!("cluster-ip {addr}/{len} {value}"));
    }
    let addresses: BTreeMap<std::net::IpAddr, u32> = maps
        .node_addresses()
        .into_iter()
        .map(|(addr, flags)| (addr.to_ip(), flags))
        .collect();
    for (addr, flags) in addresses {
        let node_port = match flags & address_flags::NODE_PORT {
            0 => "",
            _ => " node-port",
        };
        line(text, format_args!("node-address {addr}{node_port}"));
    }
}

fn endpoint<A: IpFamily>(backend: &Backend<A>) -> Endpoint<A> {
    Endpoint {
        addr: backend.addr,
        port: backend.port.get(),
    }
}

/// `address:port`, then what is not ordinary: `*` for this node, `!` terminating, `?` quarantined.
fn backend_text<A: IpFamily>(backend: &Backend<A>) -> String {
    let mut text = endpoint(backend).to_string();
    if backend.flags & proxy_common::backend::flags::LOCAL != 0 {
        text.push('*');
    }
    match backend.state {
        state if state == BackendState::Active as u8 => {}
        state if state == BackendState::Terminating as u8 => text.push('!'),
        state if state == BackendState::Quarantined as u8 => text.push('?'),
        _ => text.push_str("(free)"),
    }
    text
}

fn prefix_text<A: IpFamily>(prefix: &Prefix<A>) -> String {
    format!("{}/{}", prefix.addr.to_ip(), prefix.len)
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
    text.push('\n');
}
