//! The product on a node: the agent over fake maps, the pipeline over what it wrote, and the
//! stack's routing around it.

mod meddler;
mod programs;

use std::cell::Cell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytemuck::Zeroable;
use proxy_common::interface::{Interface, flags};
use proxy_ebpf::tables::host::HostTables;
use proxy_ebpf::{Hook, V4, V6, Verdict};
use proxy_userspace::fake_maps::{Failures, FakeMaps};
use proxy_userspace::family::IpFamily;
use proxy_userspace::maps::{Capacity, Maps};
use proxy_userspace::objects::ObjectEvent;
use proxy_userspace::pipeline::watch::KINDS;
use proxy_userspace::pipeline::{LocalAddress, Reconciler};
use proxy_userspace::settings::{DetectLocalMode, Settings};

use self::programs::{ModelEnvironment, run, show};
use super::plan::Trouble;
use super::wire;
use crate::cases::packets::{L3, mac_of};
use crate::cases::world::{CaseFamily, DEVICES, OWN, UPLINK, route};
use crate::oracle::Objects;

/// Reconciles until writes that fail at random must have succeeded.
const ROUNDS_MAX: usize = 1000;

/// All of them together: before the re-verification would repair what was forgotten.
const SETTLING_MAX: Duration = Duration::from_secs(600);

/// A family of both worlds.
pub trait ModelFamily: CaseFamily<Addr: IpFamily> {}
impl ModelFamily for V4 {}
impl ModelFamily for V6 {}

/// Where a packet enters the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// By an interface.
    Interface(u32),
    /// From a process.
    Process,
}

/// Where a packet is in the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// Delivered to this node.
    Local(Vec<u8>),
    /// Sent out by an interface.
    Out(u32, Vec<u8>),
    /// Discarded.
    Dropped,
    /// Its sender got this.
    Answered(Vec<u8>),
}

/// The product.
#[derive(Debug)]
pub struct Node {
    settings: Settings,
    maps: FakeMaps,
    reconciler: Reconciler,
    clock: Instant,
    /// Addresses of this node.
    pub own: Vec<IpAddr>,
    /// Seconds of the datapath's clock.
    pub now: u32,
    seed: Cell<u32>,
    v4: HostTables<V4>,
    v6: HostTables<V6>,
    /// Counters of the last packet.
    pub counters: String,
}

/// The name of an interface.
pub fn interface_name(ifindex: u32) -> String {
    format!("dev{ifindex}")
}

/// The node's addresses that never change.
pub fn own_addresses() -> Vec<IpAddr> {
    let both = |role| [V4::address(role).to_ip(), V6::address(role).to_ip()];
    OWN.iter().flat_map(|(role, _)| both(*role)).collect()
}

impl Node {
    /// An agent on empty maps.
    pub fn new(settings: Settings, seed: u32) -> Self {
        let capacity = Capacity {
            frontends: 256,
            backends: 512,
            slots: 4096,
        };
        let mut node = Self {
            reconciler: Reconciler::new(settings.clone(), capacity),
            settings,
            maps: FakeMaps::new(capacity),
            clock: Instant::now(),
            own: own_addresses(),
            now: 1_000_000,
            seed: Cell::new(seed | 1),
            v4: HostTables::default(),
            v6: HostTables::default(),
            counters: String::new(),
        };
        node.write_interfaces();
        node
    }

    /// The agent is told something.
    pub fn tell(&mut self, event: ObjectEvent) {
        self.reconciler.handle(event);
    }

    /// Time passes.
    pub fn advance(&mut self, secs: u32) {
        self.now += secs;
        self.clock += Duration::from_secs(secs.into());
    }

    /// The agent starts anew on the maps and lists everything.
    pub fn restart(&mut self, settings: &Settings, objects: &Objects) {
        self.settings = settings.clone();
        self.maps.set_failures(Failures::Never);
        self.write_interfaces();
        self.reconciler = Reconciler::restore(settings.clone(), &self.maps);
        for event in list(objects, &settings.node_name) {
            self.tell(event);
        }
    }

    /// Reconciles until the agent is at rest, then shows the maps to the programs.
    pub fn sync(&mut self, objects: &Objects, trouble: Trouble) -> Result<()> {
        match trouble {
            Trouble::None => {}
            Trouble::Failing(seed) => {
                self.maps
                    .set_failures(Failures::Percent { percent: 10, seed });
            }
            Trouble::Killed(writes) => {
                self.set_addresses();
                self.maps
                    .set_failures(Failures::After(self.maps.writes() + writes));
                self.reconciler.reconcile(&mut self.maps, self.clock);
                self.check()?;
                self.restart(&self.settings.clone(), objects);
            }
        }
        self.set_addresses();
        self.settle()?;
        self.maps.set_failures(Failures::Never);
        let writes = self.maps.writes();
        self.reconciler.reconcile(&mut self.maps, self.clock);
        if self.maps.writes() != writes {
            bail!("S-006: writes although nothing changed");
        }
        show(&self.maps, &mut self.v4);
        show(&self.maps, &mut self.v6);
        Ok(())
    }

    /// Somebody writes into the maps; an audit finds out, and nothing is different afterwards.
    pub fn meddle(&mut self, seed: u64) -> Result<()> {
        let before = meddler::state(&self.maps);
        let writes = meddler::meddle(&mut self.maps, seed);
        let drift = self.reconciler.audit(&mut self.maps, self.clock);
        self.settle()?;
        let after = meddler::state(&self.maps);
        if (drift > 0) != (writes > 0) {
            bail!("S-010: {drift} entries were wrong after {writes} foreign writes");
        }
        if after != before {
            bail!("S-010: {before}instead of {after}");
        }
        show(&self.maps, &mut self.v4);
        show(&self.maps, &mut self.v6);
        Ok(())
    }

    /// All flows are forgotten, as if others had been more recent.
    pub fn evict(&mut self) {
        evict(&mut self.v4);
        evict(&mut self.v6);
    }

    fn settle(&mut self) -> Result<()> {
        let start = self.clock;
        for _ in 0..ROUNDS_MAX {
            let report = self.reconciler.reconcile(&mut self.maps, self.clock);
            self.check()?;
            if report.pending == 0 {
                return Ok(());
            }
            let is_in_time = self.clock - start < SETTLING_MAX;
            ensure!(is_in_time, "settles too late: {report:?}");
            let wakeup = self.reconciler.next_wakeup();
            let wakeup = wakeup.context("pending without a wakeup")?;
            self.clock = wakeup.max(self.clock + Duration::from_millis(1));
        }
        bail!("does not converge")
    }

    fn check(&self) -> Result<()> {
        self.maps.check().map_err(|error| anyhow!(error))
    }

    fn set_addresses(&mut self) {
        let fixed = own_addresses();
        let addresses = self.own.iter().map(|addr| LocalAddress {
            addr: *addr,
            ifindex: UPLINK,
            is_on_loopback: !fixed.contains(addr),
        });
        self.reconciler.set_local_addresses(addresses.collect());
    }

    /// What `datapath::interfaces` would write; S-083's interface modes are by name.
    fn write_interfaces(&mut self) {
        for device in DEVICES {
            let name = interface_name(device.ifindex);
            let is_detected = match &self.settings.detect_local {
                DetectLocalMode::BridgeInterface(found) => *found == name,
                DetectLocalMode::InterfaceNamePrefix(prefix) => name.starts_with(prefix),
                _ => false,
            };
            let mut value = Interface::zeroed();
            value.flags = device.flags | if is_detected { flags::DETECTED } else { 0 };
            value.mtu = device.mtu;
            value.bridge = device.bridge;
            value.mac = mac_of(device.ifindex);
            if let Some(role) = device.address {
                V4::set_masquerade(&mut value, V4::address(role));
                V6::set_masquerade(&mut value, V6::address(role));
            }
            let written = self.maps.insert_interface(device.ifindex, &value);
            written.expect("no failures are set here");
        }
    }

    /// The interface that the stack routes `addr` to; `None` for this node.
    pub fn route(&self, addr: IpAddr) -> Option<u32> {
        if self.own.contains(&addr) {
            return None;
        }
        match addr {
            IpAddr::V4(addr) => route::<V4>(&addr.into()),
            IpAddr::V6(addr) => route::<V6>(&addr.into()),
        }
    }

    /// The masquerade address of an interface (S-095).
    pub fn masquerade(&self, ifindex: u32, is_v4: bool) -> Option<IpAddr> {
        let device = DEVICES.iter().find(|device| device.ifindex == ifindex)?;
        let role = device.address?;
        Some(if is_v4 {
            V4::address(role).to_ip()
        } else {
            V6::address(role).to_ip()
        })
    }

    /// A packet's whole way through the node.
    pub fn walk(&mut self, entry: Entry, bytes: Vec<u8>) -> End {
        self.counters.clear();
        let mut bytes = bytes;
        if let Entry::Interface(ifindex) = entry
            && is_attached(ifindex)
        {
            let (verdict, out) = self.program(Hook::Ingress, ifindex, bytes);
            match verdict {
                Verdict::Pass => bytes = out,
                verdict => return end(verdict, out),
            }
        }
        let Some(ifindex) = self.route(wire::ends(&bytes).dst.ip()) else {
            return End::Local(bytes);
        };
        if entry != Entry::Process {
            forward(&mut bytes);
        }
        if !is_attached(ifindex) {
            return End::Out(ifindex, bytes);
        }
        let (verdict, out) = self.program(Hook::Egress, ifindex, bytes);
        match verdict {
            Verdict::Pass => End::Out(ifindex, out),
            verdict => end(verdict, out),
        }
    }

    fn program(&mut self, hook: Hook, ifindex: u32, bytes: Vec<u8>) -> (Verdict, Vec<u8>) {
        let env = ModelEnvironment {
            hook,
            ifindex,
            now: self.now,
            seed: &self.seed,
            own: &self.own,
        };
        let is_v4 = wire::ends(&bytes).src.is_ipv4();
        let (verdict, bytes, counters) = if is_v4 {
            run(&self.v4, &env, bytes)
        } else {
            run(&self.v6, &env, bytes)
        };
        self.counters += &format!("{hook:?} dev{ifindex}: {verdict:?} {counters}; ");
        (verdict, bytes)
    }
}

/// A complete list of all kinds.
pub fn list(objects: &Objects, node_name: &str) -> Vec<ObjectEvent> {
    let mut events: Vec<ObjectEvent> = KINDS.map(ObjectEvent::Restarted).into();
    let visible = objects.all.values();
    let visible = visible.filter(|object| Objects::is_visible(object, node_name));
    events.extend(visible.cloned().map(ObjectEvent::Applied));
    events.extend(KINDS.map(ObjectEvent::Listed));
    events
}

fn evict<F: ModelFamily>(tables: &mut HostTables<F>) {
    let written = tables.written.get_mut();
    written.handshakes.clear();
    written.flows.clear();
}

fn is_attached(ifindex: u32) -> bool {
    let mut devices = DEVICES.iter();
    devices.any(|device| device.ifindex == ifindex && device.flags & flags::ATTACHED != 0)
}

fn end(verdict: Verdict, bytes: Vec<u8>) -> End {
    match verdict {
        Verdict::Pass => unreachable!("the walk goes on"),
        Verdict::Drop => End::Dropped,
        Verdict::Return => End::Answered(bytes),
        Verdict::Redirect(ifindex) => End::Out(ifindex, bytes),
        Verdict::Deliver(_) => End::Local(bytes),
    }
}

/// What the stack does to a packet that it forwards.
fn forward(bytes: &mut [u8]) {
    let is_v4 = bytes[L3] >> 4 == 4;
    let ttl = if is_v4 { L3 + 8 } else { L3 + 7 };
    bytes[ttl] -= 1;
    if is_v4 {
        bytes[L3 + 10..L3 + 12].fill(0);
        let checksum = crate::cases::build::internet_checksum(&bytes[L3..L3 + 20]);
        bytes[L3 + 10..L3 + 12].copy_from_slice(&checksum.to_be_bytes());
    }
}
