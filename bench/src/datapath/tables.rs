//! What the maps hold: the world of the cases, more Services, and flows.

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use bench_ebpf::{CHOICES_LEN, place};
use proxy_common::flow::path;
use proxy_common::*;
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Family, V4, V6};
use proxy_userspace::datapath::sys;
use tests::cases::flows::{Entry, by, stack};
use tests::cases::packets::mac_of;
use tests::cases::tables::{backend_id, publish};
use tests::cases::world::*;

use super::measure::Setting;
use super::programs::Program;
use super::what::WITHOUT_ENDPOINTS;

/// Backends of each Service beside those of the cases' world.
const BACKENDS_PER_SERVICE: u32 = 2;
/// Elements of SLOTS for each of their frontends: header, tail, one pair of backends.
const REGION_LEN: u32 = 3;
/// The first id and region that the cases' world does not use.
const FIRST_ID: u32 = 1000;
const FIRST_REGION: u32 = 4096;
/// How many addresses the first of these Services is behind the cases' ClusterIP.
const FIRST_ADDR: u32 = 256;

/// Backends of the cases' Service. With another source each flow needs a port of its own towards
/// its backend: a million of flows are more than one backend has ports for.
const BACKENDS: u16 = 64;

/// The world in which packets are measured: pods are told by their interfaces, because the
/// addresses of a million of them are in no range of the cases.
pub fn world() -> World {
    World {
        detector: Detector::Interface,
        snat_ports: [[1024, u16::MAX], [1, 0]],
        backends: vec![backend(Role::RemoteBackend); BACKENDS.into()],
        ..World::default()
    }
}

/// The service tables, with `services` Services beside that of the cases; the first of them has no
/// endpoints.
pub fn services<F: CaseFamily>(services: u32, hz: u32) -> HostTables<F> {
    let mut tables = world().tables::<F>(hz, 0);
    // Nobody listens.
    tables.monitor = None;
    for ip_protocol in [protocol::TCP, protocol::UDP] {
        for position in 0..BACKENDS {
            let id = backend_id(ip_protocol, position.into());
            let backend = tables
                .backends
                .get_mut(&id)
                .expect("a backend of the world");
            backend.port = Be16::new(TARGET + position);
        }
    }
    for service in 0..services {
        let addr = if service == 0 {
            F::address(WITHOUT_ENDPOINTS)
        } else {
            let first = low_word(F::address(Role::ClusterIp));
            with_low_word(F::address(Role::ClusterIp), first + FIRST_ADDR + service)
        };
        let whole = <F::Addr as Address>::BITS;
        tables
            .cluster_ips
            .insert((whole, addr), node::cluster_ip::ACTIVE);
        for (position, protocol) in (0..).zip([protocol::TCP, protocol::UDP]) {
            let key = FrontendKey {
                addr,
                port: Be16::new(PORT),
                protocol,
                pad: 0,
            };
            frontend(&mut tables, service * 2 + position, service != 0, key);
        }
    }
    tables
}

fn frontend<F: CaseFamily>(
    tables: &mut HostTables<F>,
    index: u32,
    has_endpoints: bool,
    key: FrontendKey<F::Addr>,
) {
    let (id, region) = (FIRST_ID + index, FIRST_REGION + index * REGION_LEN);
    let first_backend = FIRST_ID + index * BACKENDS_PER_SERVICE;
    let header = RegionHeader {
        cluster_count: if has_endpoints {
            BACKENDS_PER_SERVICE
        } else {
            0
        },
        local_count: 0,
        flags: if has_endpoints {
            frontend::flags::HAS_ENDPOINTS
        } else {
            0
        },
        kind: FrontendKind::ClusterIp as u8,
    };
    let tail = RegionTail {
        service_port: id,
        affinity_timeout_secs: 0,
    };
    let pair = u64::from(first_backend) | u64::from(first_backend + 1) << 32;
    for (offset, element) in (0..).zip([header.pack(), tail.pack(), pair]) {
        tables.slots.insert(region + offset, element);
    }
    for backend in 0..BACKENDS_PER_SERVICE {
        let value = Backend {
            addr: F::address(Role::RemoteBackend),
            port: Be16::new(TARGET),
            state: BackendState::Active as u8,
            flags: 0,
            generation: GENERATION,
            service_port: id,
        };
        tables.backends.insert(first_backend + backend, value);
    }
    let (index, bit) = port_filter::address(&key.addr);
    *tables.port_filter.entry(index).or_default() |= bit;
    publish(tables, key, id, region);
}

/// The last 32 bits of the first client's address, in host order.
pub fn first_client<F: Family>() -> u32 {
    if F::VERSION == 4 {
        u32::from_be_bytes([100, 64, 0, 0])
    } else {
        1 << 16
    }
}

fn low_word<A: Address>(addr: A) -> u32 {
    let bytes = bytemuck::bytes_of(&addr);
    let mut low = [0; 4];
    low.copy_from_slice(&bytes[bytes.len() - 4..]);
    u32::from_be_bytes(low)
}

fn with_low_word<A: Address>(mut addr: A, low: u32) -> A {
    let bytes = bytemuck::bytes_of_mut(&mut addr);
    let start = bytes.len() - 4;
    bytes[start..].copy_from_slice(&low.to_be_bytes());
    addr
}

/// Both entries of flow `index`, as the wrapper varies packets.
fn entries<F: CaseFamily>(template: &[Entry<F>; 2], index: u32) -> [Entry<F>; 2] {
    let (offset, port) = place(index);
    let low = first_client::<F>() + offset;
    let client = with_low_word(template[0].0.tuple.src, low);
    let port = Be16::new(port);
    let [(mut key, mut original), (mut reply_key, mut reply)] = *template;
    for (addr, its_port) in [
        (&mut key.tuple.src, &mut key.tuple.sport),
        (&mut original.to.src, &mut original.to.sport),
        (&mut reply_key.tuple.dst, &mut reply_key.tuple.dport),
        (&mut reply.to.dst, &mut reply.to.dport),
    ] {
        *addr = client;
        *its_port = port;
    }
    original.tag = key.tag();
    reply.tag = reply_key.tag();
    [(key, original), (reply_key, reply)]
}

/// The entries of an established flow of a setting.
fn template<F: CaseFamily>(setting: &Setting, now: u32) -> [Entry<F>; 2] {
    let program = setting.program;
    let mut flow = stack(
        (program.client(), 0),
        (program.dialed(), PORT),
        (Role::RemoteBackend, TARGET),
    );
    flow.protocol = setting.protocol;
    if program == Program::Xdp {
        flow.path = by(path::INGRESS_NEIGH, UPLINK);
        flow.reply_path = flow.path;
    }
    let mut entries = flow.entries::<F>(1, backend_id(setting.protocol, 0), now);
    if program == Program::Xdp {
        for (_, connection) in &mut entries {
            connection.next_hop = NextHop {
                dst: ROUTER_MAC,
                src: mac_of(UPLINK),
            };
        }
    }
    entries
}

/// Flows whose entries are written in one call.
const BATCH: u32 = 4096;

/// Writes the established flows of a setting into every map of `maps`, last seen at `now`.
pub fn fill_flows<F: CaseFamily>(
    maps: &[BorrowedFd<'_>],
    setting: &Setting,
    now: u32,
) -> Result<()> {
    let template = template::<F>(setting, now);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for first in (0..setting.flows).step_by(BATCH as usize) {
        keys.clear();
        values.clear();
        for index in first..setting.flows.min(first + BATCH) {
            for (key, connection) in entries::<F>(&template, index) {
                keys.push(key);
                values.push(connection);
            }
        }
        for map in maps {
            sys::map_update_batch(*map, &keys, &values).context("writing flows")?;
        }
    }
    Ok(())
}

/// Writes the backends that the second yardstick reads.
pub fn fill_choices<F: CaseFamily>(map: BorrowedFd<'_>) -> Result<()> {
    let choice = Tuple {
        src: F::Addr::UNSPECIFIED,
        dst: F::address(Role::RemoteBackend),
        sport: Be16::new(0),
        dport: Be16::new(TARGET),
    };
    for index in 0..CHOICES_LEN {
        sys::map_update(map, &index.to_ne_bytes(), bytemuck::bytes_of(&choice))?;
    }
    Ok(())
}

/// The suffix of a family's maps.
pub fn suffix<F: Family>() -> &'static str {
    const { assert!(V4::VERSION == 4 && V6::VERSION == 6) };
    if F::VERSION == 4 { "4" } else { "6" }
}
