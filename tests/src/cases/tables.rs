//! From a [`World`] to the contents of the maps.

use bytemuck::Zeroable;
use proxy_common::port_filter::{bit, index};
use proxy_common::*;
use proxy_ebpf::Family;
use proxy_ebpf::tables::host::HostTables;

use super::events;
use super::flows::{Age, Halves};
use super::world::*;

/// The service ports, in the order of their ids.
const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];
/// Elements of SLOTS between two regions.
const REGION_LEN: u32 = 64;
/// Addresses of frontends and of this node, and those of backends, of whichever world.
const KNOWN: [Role; 13] = [
    Role::ClusterIp,
    Role::Vip,
    Role::Node,
    Role::PodGateway,
    Role::OverlayGateway,
    Role::BridgeGateway,
    Role::Pod,
    Role::LocalBackend,
    Role::RemoteBackend,
    Role::OverlayBackend,
    Role::BareBackend,
    Role::LostBackend,
    Role::BridgedBackend,
];
/// Ids between the backends of two service ports.
const BACKENDS: u32 = 100;

fn row(protocol: u8) -> u32 {
    match protocol {
        protocol::TCP => 0,
        protocol::UDP => 1,
        _ => 2,
    }
}

/// The frontends of each service port.
const KINDS: [FrontendKind; 3] = [
    FrontendKind::ClusterIp,
    FrontendKind::NodePort,
    FrontendKind::LoadBalancer,
];

/// FrontendId of a protocol's frontend of a kind.
fn frontend_id(protocol: u8, kind: FrontendKind) -> u32 {
    let position = KINDS.iter().position(|other| *other == kind);
    1 + row(protocol) * KINDS.len() as u32 + position.expect("a frontend of the world") as u32
}

/// BackendId of the backend in a position.
pub fn backend_id(protocol: u8, position: usize) -> u32 {
    1 + row(protocol) * BACKENDS + position as u32
}

impl World {
    /// The maps, with flows as old as they are said to be at `now`.
    pub fn tables<F: CaseFamily>(&self, hz: u32, now: u32) -> HostTables<F> {
        let mut tables = HostTables::default();
        if self.is_configured == Configured::Yes {
            tables.config = Some(self.config::<F>(hz));
        }
        for device in DEVICES {
            tables
                .interfaces
                .insert(device.ifindex, self.interface::<F>(&device));
        }
        for (role, flags) in OWN {
            tables.node_addresses.insert(F::address(role), flags);
        }
        let addr = F::address(Role::ClusterIp);
        if self.cluster_ip != 0 {
            let key = (<F::Addr as Address>::BITS, addr);
            tables.cluster_ips.insert(key, self.cluster_ip);
        }
        let (len, network, _) = service_cidr::<F>();
        tables
            .cluster_ips
            .insert((len, network), node::cluster_ip::UNALLOCATED);
        let key = (<F::Addr as Address>::BITS, F::address(Role::Vip));
        tables.cluster_ips.insert(key, node::cluster_ip::FRONTEND);
        let key = (<F::Addr as Address>::BITS, F::address(Role::OtherClusterIp));
        tables.cluster_ips.insert(key, node::cluster_ip::ACTIVE);
        for protocol in PROTOCOLS {
            self.service_port(&mut tables, protocol);
        }
        for role in KNOWN {
            let (index, bit) = port_filter::address(&F::address(role));
            *tables.port_filter.entry(index).or_default() |= bit;
        }
        self.flows(&mut tables, now);
        self.fragments(&mut tables);
        self.bindings(&mut tables, now);
        tables.monitor = Some(events::monitor(now));
        tables.written.get_mut().answers = (now, self.answers_given);
        tables.written.get_mut().new_flows = (now, self.new_flows_begun);
        tables
    }

    fn config<F: CaseFamily>(&self, hz: u32) -> Config {
        let mut config = Config::zeroed();
        config.abi_version = ABI_VERSION;
        config.hz = hz;
        config.flags = self.config_flags;
        config.redirect_mark = MARK;
        config.snat_ports = self.snat_ports;
        config.detect_local = match self.detector {
            Detector::None => DetectLocal::None,
            Detector::Cidr => DetectLocal::Cidr,
            Detector::Interface => DetectLocal::Interface,
        } as u32;
        config.timeouts = config::Timeouts::default();
        config.answers_per_sec = self.answers_per_sec;
        config.new_flows_per_sec = self.new_flows_per_sec;
        let family = F::config_mut(&mut config);
        let (_, network, mask) = pod_cidr::<F>();
        family.pods = Cidr {
            network,
            mask,
            used: 1,
        };
        let (_, network, mask) = service_cidr::<F>();
        family.service_cidrs[0] = Cidr {
            network,
            mask,
            used: 1,
        };
        let (_, network, mask) = prefix::<F>(Role::OtherClusterIp, whole::<F>());
        family.service_cidrs[1] = Cidr {
            network,
            mask,
            used: 1,
        };
        family.primary = F::address(Role::Node);
        config
    }

    fn interface<F: CaseFamily>(&self, device: &Device) -> Interface {
        let mut value = interface::<F>(device);
        if self.detector == Detector::Interface && device.flags & interface::flags::POD_SIDE != 0 {
            value.flags |= interface::flags::DETECTED;
        }
        value
    }

    fn service_port<F: CaseFamily>(&self, tables: &mut HostTables<F>, protocol: u8) {
        let mut cluster = Vec::new();
        let mut local = Vec::new();
        set_port(tables, protocol, Side::Destination, PORT);
        set_port(tables, protocol, Side::Destination, NODE_PORT);
        for (position, spec) in self.backends.iter().enumerate() {
            let id = backend_id(protocol, position);
            let is_local = is_local(spec.role);
            let is_member = spec.in_cluster == Membership::In;
            let mut flags = spec.departures << backend::flags::DEPARTURES_SHIFT;
            if is_local {
                flags |= backend::flags::LOCAL;
            }
            if self.affinity_secs != 0 && is_member {
                flags |= backend::flags::IN_CLUSTER;
                if is_local {
                    flags |= backend::flags::IN_LOCAL;
                }
            }
            let value = Backend {
                addr: F::address(spec.role),
                port: Be16::new(TARGET),
                state: spec.state,
                flags,
                generation: GENERATION,
                service_port: frontend_id(protocol, FrontendKind::ClusterIp),
            };
            tables.backends.insert(id, value);
            set_port(tables, protocol, Side::Source, TARGET);
            if is_member {
                cluster.push(id);
                if is_local {
                    local.push(id);
                }
            }
        }
        for kind in KINDS {
            self.frontend(tables, protocol, kind, [&cluster, &local]);
        }
    }

    fn frontend<F: CaseFamily>(
        &self,
        tables: &mut HostTables<F>,
        protocol: u8,
        kind: FrontendKind,
        [cluster, local]: [&[u32]; 2],
    ) {
        let id = frontend_id(protocol, kind);
        let key = match kind {
            FrontendKind::ClusterIp => frontend_key::<F>(Role::ClusterIp, PORT, protocol),
            FrontendKind::LoadBalancer => frontend_key::<F>(Role::Vip, PORT, protocol),
            _ => frontend_key::<F>(Role::Unspecified, NODE_PORT, protocol),
        };
        let region = id * REGION_LEN;
        let mut flags = self.frontend_flags;
        if !self.source_ranges.is_empty() {
            flags |= frontend::flags::SOURCE_RANGES;
        }
        let header = RegionHeader {
            cluster_count: cluster.len() as u32,
            local_count: local.len() as u32,
            flags,
            kind: kind as u8,
        };
        let tail = RegionTail {
            service_port: frontend_id(protocol, FrontendKind::ClusterIp),
            affinity_timeout_secs: self.affinity_secs,
        };
        for role in &self.source_ranges {
            let range = (
                tail.service_port,
                <F::Addr as Address>::BITS,
                F::address(*role),
            );
            tables.source_ranges.push(range);
        }
        tables.slots.insert(region, header.pack());
        tables.slots.insert(region + 1, tail.pack());
        let parts = [
            (frontend::CLUSTER_START, cluster),
            (header.local_start(), local),
        ];
        for (start, ids) in parts {
            for (element, pair) in ids.chunks(2).enumerate() {
                let high = pair.get(1).copied().unwrap_or(0);
                let packed = u64::from(pair[0]) | u64::from(high) << 32;
                tables.slots.insert(region + start + element as u32, packed);
            }
        }
        publish(tables, key, id, region);
    }

    fn flows<F: CaseFamily>(&self, tables: &mut HostTables<F>, now: u32) {
        let written = tables.written.get_mut();
        for flow in &self.flows {
            let kind = match flow.dialed.0 {
                Role::Node => FrontendKind::NodePort,
                Role::Vip => FrontendKind::LoadBalancer,
                _ => FrontendKind::ClusterIp,
            };
            let frontend = frontend_id(flow.protocol, kind);
            let backend = backend_id(flow.protocol, 0);
            let table = match flow.age {
                Age::Handshake | Age::Closed => &mut written.handshakes,
                Age::Established => &mut written.flows,
            };
            let [original, reply] = flow.entries::<F>(frontend, backend, now);
            if flow.halves != Halves::ReplyOnly {
                table.insert(original.0, original.1);
            }
            if flow.halves != Halves::OriginalOnly {
                table.insert(reply.0, reply.1);
            }
        }
    }

    fn bindings<F: CaseFamily>(&self, tables: &mut HostTables<F>, now: u32) {
        let written = tables.written.get_mut();
        for binding in &self.bindings {
            let key = AffinityKey {
                client: F::address(binding.client),
                service_port: frontend_id(binding.protocol, FrontendKind::ClusterIp),
            };
            let entry = AffinityEntry {
                backend: backend_id(binding.protocol, binding.position),
                generation: binding.generation,
                last_used_secs: now.wrapping_sub(binding.idle_secs),
                tag: key.hash(binding.departures.into()),
            };
            let key = bytemuck::bytes_of(&key).to_vec();
            written.affinity.insert(key, entry);
        }
    }

    fn fragments<F: CaseFamily>(&self, tables: &mut HostTables<F>) {
        let written = tables.written.get_mut();
        for (src, dst, id, protocol) in &self.fragments {
            let id = match F::VERSION {
                4 => u32::from(id.to_be()),
                _ => u32::from(*id).to_be(),
            };
            let key = FragmentKey {
                src: F::address(src.0),
                dst: F::address(dst.0),
                id,
                protocol: *protocol,
                pad: [0; 3],
            };
            let ports = FragmentPorts {
                sport: Be16::new(src.1),
                dport: Be16::new(dst.1),
            };
            let key = bytemuck::bytes_of(&key).to_vec();
            written.fragments.insert(key, ports);
        }
    }
}

fn frontend_key<F: CaseFamily>(role: Role, port: u16, protocol: u8) -> FrontendKey<F::Addr> {
    FrontendKey {
        addr: F::address(role),
        port: Be16::new(port),
        protocol,
        pad: 0,
    }
}

fn interface<F: CaseFamily>(device: &Device) -> Interface {
    let mut value = Interface::zeroed();
    value.flags = device.flags;
    value.mtu = device.mtu;
    value.bridge = device.bridge;
    value.mac = super::packets::mac_of(device.ifindex);
    if let Some(role) = device.address {
        F::set_masquerade(&mut value, F::address(role));
    }
    value
}

fn set_port<F: CaseFamily>(tables: &mut HostTables<F>, protocol: u8, side: Side, port: u16) {
    let index = index(protocol, side, port).expect("a protocol with ports");
    *tables.port_filter.entry(index).or_default() |= bit(port);
}

/// Length, network and mask of the pods' addresses.
fn pod_cidr<F: CaseFamily>() -> (u32, F::Addr, F::Addr) {
    prefix::<F>(Role::Pod, if F::VERSION == 4 { 16 } else { 48 })
}

/// Length of a whole address.
fn whole<F: CaseFamily>() -> u32 {
    <F::Addr as Address>::BITS
}

/// Length, network and mask of the ServiceCIDR.
fn service_cidr<F: CaseFamily>() -> (u32, F::Addr, F::Addr) {
    prefix::<F>(Role::ClusterIp, if F::VERSION == 4 { 16 } else { 48 })
}

fn prefix<F: CaseFamily>(role: Role, len: u32) -> (u32, F::Addr, F::Addr) {
    let mut network = F::address(role);
    let mut mask = F::Addr::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut mask);
    bytes[..len as usize / 8].fill(0xff);
    let masks = bytemuck::bytes_of(&mask).to_vec();
    let bytes = bytemuck::bytes_of_mut(&mut network);
    for (byte, mask) in bytes.iter_mut().zip(masks) {
        *byte &= mask;
    }
    (len, network, mask)
}

/// Makes a frontend with a region that is written.
pub fn publish<F: Family>(
    tables: &mut HostTables<F>,
    key: FrontendKey<F::Addr>,
    id: u32,
    region: u32,
) {
    let word = Word {
        region,
        generation: 1,
    };
    let value = Frontend {
        word: word.pack(),
        key,
        pad: Default::default(),
    };
    tables.frontend_ids.insert(key, id);
    tables.frontends.insert(id, value);
}
