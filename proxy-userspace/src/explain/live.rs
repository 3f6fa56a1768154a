//! A world from the pinned maps of this node: read only, with or without an agent.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use proxy_common::config::flags;
use proxy_common::interface::flags as interface_flags;
use proxy_common::node::address_flags;
use proxy_common::{Config, Interface};
use proxy_ebpf::Family;
use proxy_ebpf::tables::host::HostTables;

use super::world::{Entries, World};
use crate::agent::names;
use crate::config::Given;
use crate::datapath::interfaces::Detect;
use crate::datapath::maps::KernelMaps;
use crate::datapath::netlink::{NetlinkError, Reader};
use crate::datapath::pin::{PinError, Pins};
use crate::family::IpFamily;
use crate::pipeline::LocalAddress;
use crate::pipeline::desired::node::{self, NodeFacts};
use crate::settings::{DetectLocalMode, NodePortAddress, Settings};

/// Why the node could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// No maps, or none that this version understands.
    #[error("reading the pinned maps (or name --manifests)")]
    Pins(#[from] PinError),
    /// The routing table cannot be asked.
    #[error("asking for routes")]
    Routes(#[from] NetlinkError),
    /// No runtime.
    #[error("starting the runtime")]
    Runtime(#[source] io::Error),
    /// A flag that has no meaning here.
    #[error("{option}: {message}")]
    Flag {
        /// The flag.
        option: &'static str,
        /// Why.
        message: &'static str,
    },
}

/// What is decided otherwise than the agent did.
#[derive(Debug)]
pub struct Overrides<'a> {
    /// What was given, by flags or file.
    pub given: &'a Given,
    /// The same, resolved.
    pub settings: &'a Settings,
    /// Further addresses of this node.
    pub addresses: &'a [IpAddr],
}

/// Reads the maps below the pins, the names of the agent that made them, and the routes.
pub fn world(pins: &Pins, overrides: &Overrides<'_>) -> Result<World, LiveError> {
    check(overrides)?;
    let maps = KernelMaps::open(pins)?;
    let mut interfaces = maps.interfaces();
    let names = interface_names(&interfaces);
    detect(&mut interfaces, &names, overrides);
    let entries = names.iter().map(|(ifindex, name)| (name.clone(), *ifindex));
    let entries = Entries::Live(entries.collect());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LiveError::Runtime)?;
    let reader = runtime.block_on(async { Reader::open() })?;
    let routes = Box::new(move |dst| runtime.block_on(reader.route(dst)));
    let mut world = World::of_maps(&maps, interfaces, entries, routes);
    world.v4.config = world.v4.config.map(|config| changed(config, overrides));
    world.v6.config = world.v4.config;
    addresses(&mut world.v4, overrides);
    addresses(&mut world.v6, overrides);
    match names::ask(pins) {
        Some(services) => world.name_services(services),
        None => world
            .complaints
            .push("no agent answers: Services are named by their ids in the maps".to_owned()),
    }
    Ok(world)
}

/// Refuses what the maps cannot answer: they hold what the agent made of the objects.
fn check(overrides: &Overrides<'_>) -> Result<(), LiveError> {
    let given = overrides.given;
    let wrong = |option, message| Err(LiveError::Flag { option, message });
    let objects = "needs the objects: name --manifests too";
    if given.proxy_name.is_some() {
        return wrong("proxy-name", objects);
    }
    if given.external_ips.is_some() {
        return wrong("external-ips", objects);
    }
    if is_detector_given(given) && overrides.settings.detect_local == DetectLocalMode::NodeCidr {
        return wrong("detect-local-mode", objects);
    }
    let entries = &overrides.settings.node_port_addresses;
    let is_primary = entries.contains(&NodePortAddress::Primary);
    if given.nodeport_addresses.is_some() && is_primary && given.bind_address.is_none() {
        return wrong(
            "nodeport-addresses",
            "primary: name the address by --bind-address",
        );
    }
    Ok(())
}

fn is_detector_given(given: &Given) -> bool {
    given.detect_local_mode.is_some() || given.cluster_cidr.is_some()
}

/// CONFIG with what was given put in its place.
fn changed(config: Config, overrides: &Overrides<'_>) -> Config {
    let given = overrides.given;
    let wanted = node::config(overrides.settings, &NodeFacts::default(), &[]);
    let mut mask = 0;
    let mut set = |flag, is_given| mask |= if is_given { flag } else { 0 };
    set(flags::MASQUERADE_ALWAYS, given.masquerade.is_some());
    set(flags::MASQUERADE_ALL, given.masquerade_all.is_some());
    set(flags::KEEP_UNALLOCATED, given.keep_unallocated.is_some());
    set(
        flags::LOOPBACK_NODE_PORTS4 | flags::LOOPBACK_NODE_PORTS6,
        given.nodeport_addresses.is_some(),
    );
    let mut changed = config;
    changed.flags = config.flags & !mask | wanted.flags & mask;
    if is_detector_given(given) {
        changed.detect_local = wanted.detect_local;
        changed.v4.pods = wanted.v4.pods;
        changed.v6.pods = wanted.v6.pods;
    }
    changed
}

/// Interfaces by what a detector that was given says of them.
fn detect(
    interfaces: &mut [(u32, Interface)],
    names: &BTreeMap<u32, String>,
    overrides: &Overrides<'_>,
) {
    if overrides.given.detect_local_mode.is_none() {
        return;
    }
    let detect = Detect::from(&overrides.settings.detect_local);
    for (ifindex, interface) in interfaces {
        // Netfilter's input interface of what enters by a port is the bridge.
        let seen = match interface.bridge {
            0 => *ifindex,
            bridge => bridge,
        };
        interface.flags &= !interface_flags::DETECTED;
        if names.get(&seen).is_some_and(|name| detect.matches(name)) {
            interface.flags |= interface_flags::DETECTED;
        }
    }
}

/// NODE_ADDRESSES with further addresses, and by other `nodePortAddresses` where they are given.
fn addresses<F: Family<Addr: IpFamily>>(tables: &mut HostTables<F>, overrides: &Overrides<'_>) {
    let settings = overrides.settings;
    for addr in overrides
        .addresses
        .iter()
        .copied()
        .filter_map(F::Addr::from_ip)
    {
        *tables.node_addresses.entry(addr).or_default() |= address_flags::OWN;
    }
    if overrides.given.nodeport_addresses.is_none() {
        return;
    }
    let own = tables.node_addresses.keys().map(|addr| LocalAddress {
        addr: addr.to_ip(),
        ifindex: 0,
        is_on_loopback: addr.to_ip().is_loopback(),
    });
    let own: Vec<_> = own.collect();
    let facts = NodeFacts::of(settings, None);
    tables.node_addresses = node::addresses(settings, &facts, &own);
}

fn interface_names(interfaces: &[(u32, Interface)]) -> BTreeMap<u32, String> {
    let indices = interfaces.iter().map(|(ifindex, _)| *ifindex);
    let names = indices.filter_map(|ifindex| {
        let name = crate::datapath::interface_name(ifindex)?;
        Some((ifindex, name))
    });
    names.collect()
}
