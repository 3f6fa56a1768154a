//! Live connections, as the flow tables hold them.
//!
//! A connection is two entries; here it is one value. Connections that the socket hooks have
//! translated are in no flow table: their packets need none.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use proxy_common::config::Timeouts;
use proxy_common::flow::{Carried, flags, path, seen};
use proxy_common::{ABI_VERSION, Be16, Connection, FlowKey, Tuple};
use proxy_ebpf::FlowTable;
use proxy_ebpf::pipeline::conntrack::{is_reply, lifetime};
use serde::{Deserialize, Serialize};

use crate::agent::names::Names;
use crate::datapath::catalog::{FamilyNames, NAMES4, NAMES6};
use crate::datapath::elements::AnyMap;
use crate::datapath::maps::KernelMaps;
use crate::datapath::pin::{PinError, PinKind, Pins};
use crate::datapath::{environment, interface_name, load};
use crate::family::{IpFamily, protocol_name};
use crate::maps::{FamilyMaps, Maps as _};

/// Why the flow tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// A pin is missing, or is not ours.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The datapath has not been configured: it has no flows.
    #[error("the datapath is not configured yet: it has no flows")]
    Unconfigured,
    /// The clock of the entries.
    #[error("reading the datapath's clock")]
    Clock(#[source] io::Error),
    /// A table.
    #[error("reading {map}")]
    Read {
        /// Which.
        map: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum FlowState {
    /// The backend has not answered.
    Unanswered,
    /// The backend has answered.
    Answered,
    /// Both sides keep it up.
    Established,
    /// One side has sent FIN.
    Closing,
    /// Both sides have sent FIN.
    Closed,
    /// One side has sent RST.
    Reset,
}

/// One connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowView {
    /// `ns/name:port`; `#ID` where no agent tells names, absent where the frontend is gone, and for
    /// a client that dialed a backend itself.
    pub service: Option<String>,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// Who dialed.
    pub client: SocketAddr,
    /// What was dialed.
    pub frontend: SocketAddr,
    /// Where it goes.
    pub backend: SocketAddr,
    /// Who the backend sees.
    pub source: SocketAddr,
    /// True if `source` is not the client.
    pub snat: bool,
    /// True if the backend is the client itself.
    pub hairpin: bool,
    /// How far it has come.
    pub state: FlowState,
    /// Seconds since it began; absent where an earlier version made it.
    pub age_secs: Option<u32>,
    /// What it has carried.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Seconds since the last packet of either direction; the datapath notes it once a second.
    pub idle_secs: u32,
    /// Seconds until it is forgotten, should no packet come.
    pub expires_secs: u32,
    /// The interface that packets to the backend are redirected to; absent where the stack routes
    /// them.
    pub redirected_to: Option<String>,
}

/// What went to a backend, and what came from it. A packet is what a hook sees: segments that the
/// kernel has put together are one. Bytes are from the IP header on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Packets to the backend.
    pub packets_to: u64,
    /// Bytes to it.
    pub bytes_to: u64,
    /// Packets from it.
    pub packets_from: u64,
    /// Bytes from it.
    pub bytes_from: u64,
}

impl Traffic {
    /// What one entry has counted: its own direction.
    fn of<A: IpFamily>(entry: &Connection<A>) -> Self {
        let more = Carried::unpack(entry.carried);
        let (packets, bytes) = (entry.packets + more.packets, entry.bytes + more.bytes);
        match is_reply(entry) {
            true => Self {
                packets_from: packets,
                bytes_from: bytes,
                ..Self::default()
            },
            false => Self {
                packets_to: packets,
                bytes_to: bytes,
                ..Self::default()
            },
        }
    }

    /// Of each the larger one: an entry on its way from table to table may be in both.
    fn or_more(self, other: Self) -> Self {
        Self {
            packets_to: self.packets_to.max(other.packets_to),
            bytes_to: self.bytes_to.max(other.bytes_to),
            packets_from: self.packets_from.max(other.packets_from),
            bytes_from: self.bytes_from.max(other.bytes_from),
        }
    }
}

/// One connection as its client's packets show it.
#[derive(Clone, Copy, Debug)]
struct Found<A: IpFamily> {
    original: Connection<A>,
    table: FlowTable,
    traffic: Traffic,
}

type FoundFlows<A> = BTreeMap<(u8, Tuple<A>), Found<A>>;

/// All live connections below these pins, sorted. `names`: what the agent says, if one runs.
pub fn read(pins: &Pins, names: Option<&Names>) -> Result<Vec<FlowView>, FlowsError> {
    let maps = KernelMaps::open(pins)?;
    let config = maps
        .config()
        .filter(|config| config.abi_version == ABI_VERSION);
    let config = config.ok_or(FlowsError::Unconfigured)?;
    let jiffies = pins.open(PinKind::Programs, load::JIFFIES)?;
    let jiffies = jiffies.ok_or(FlowsError::Unconfigured)?;
    let now = environment::now_secs(jiffies.as_fd(), config.hz).map_err(FlowsError::Clock)?;
    let reading = Reading {
        maps: &maps,
        names,
        timeouts: config.timeouts,
        now,
    };
    let mut all = reading.views(&entries::<proxy_common::Addr4>(pins, &NAMES4)?);
    all.extend(reading.views(&entries::<proxy_common::Addr6>(pins, &NAMES6)?));
    all.sort();
    Ok(all)
}

/// Both tables of one family, a connection once.
fn entries<A: IpFamily>(pins: &Pins, names: &FamilyNames) -> Result<FoundFlows<A>, FlowsError> {
    let mut found = FoundFlows::new();
    // The second one wins: a connection on its way from table to table may be in both.
    for (map, table) in [
        (names.handshakes, FlowTable::Handshakes),
        (names.flows, FlowTable::Flows),
    ] {
        let (fd, info) = pins.map(map)?;
        let sizes = [size_of::<FlowKey<A>>(), size_of::<Connection<A>>()];
        pins.check_sizes(map, &info, sizes)?;
        let entries = AnyMap::new(fd).and_then(|map| map.entries());
        for (key, value) in entries.map_err(|source| FlowsError::Read { map, source })? {
            let key = bytemuck::pod_read_unaligned(&key);
            add(
                &mut found,
                &key,
                bytemuck::pod_read_unaligned(&value),
                table,
            );
        }
    }
    Ok(found)
}

/// Adds one entry to what is known of its connection.
fn add<A: IpFamily>(
    found: &mut FoundFlows<A>,
    key: &FlowKey<A>,
    entry: Connection<A>,
    table: FlowTable,
) {
    // An element that is being reused.
    if entry.tag != key.tag() {
        return;
    }
    let (tuple, mut original) = (key.tuple, entry);
    let tuple = if is_reply(&entry) {
        original.to = tuple.reversed();
        original.path = entry.other_path;
        original.other_path = entry.path;
        entry.to.reversed()
    } else {
        tuple
    };
    let slot = found.entry((key.protocol, tuple)).or_insert(Found {
        original,
        table,
        traffic: Traffic::default(),
    });
    slot.traffic = slot.traffic.or_more(Traffic::of(&entry));
    if slot.table < table {
        (slot.original, slot.table) = (original, table);
        return;
    }
    let (ours, its) = (&mut slot.original, original);
    let is_later = its.last_seen_secs.wrapping_sub(ours.last_seen_secs) < u32::MAX / 2;
    if is_later {
        ours.last_seen_secs = its.last_seen_secs;
    }
    ours.seen |= its.seen;
}

/// What turns entries into views.
struct Reading<'a> {
    maps: &'a KernelMaps,
    names: Option<&'a Names>,
    timeouts: Timeouts,
    now: u32,
}

impl Reading<'_> {
    fn views<A: IpFamily>(&self, found: &FoundFlows<A>) -> Vec<FlowView>
    where
        KernelMaps: FamilyMaps<A>,
    {
        let live = found.iter().filter_map(|((protocol, tuple), found)| {
            let service = self.service(*protocol, tuple, found.original.frontend);
            view(*protocol, tuple, found, (&self.timeouts, self.now))
                .map(|view| FlowView { service, ..view })
        });
        live.collect()
    }

    /// Whose connection it is: the id may have another owner since.
    fn service<A: IpFamily>(&self, protocol: u8, dialed: &Tuple<A>, id: u32) -> Option<String>
    where
        KernelMaps: FamilyMaps<A>,
    {
        let frontend = FamilyMaps::<A>::frontend(self.maps, id).filter(|_| id != 0)?;
        let key = frontend.key;
        let is_it = (key.addr == dialed.dst || key.addr == A::UNSPECIFIED)
            && (key.port, key.protocol) == (dialed.dport, protocol);
        if frontend.word == 0 || !is_it {
            return None;
        }
        match self.names {
            Some(names) => names
                .get(&(key.addr.to_ip(), key.port.get(), protocol))
                .cloned(),
            None => Some(format!("#{id}")),
        }
    }
}

/// `None` for a connection whose time is over. `now`: seconds of the jiffies clock.
fn view<A: IpFamily>(
    protocol: u8,
    tuple: &Tuple<A>,
    found: &Found<A>,
    (timeouts, now): (&Timeouts, u32),
) -> Option<FlowView> {
    let original = &found.original;
    // An entry may be written after the clock was read.
    let idle = match now.wrapping_sub(original.last_seen_secs) {
        ahead if ahead > u32::MAX / 2 => 0,
        idle => idle,
    };
    let expires_secs = lifetime(timeouts, original, protocol).checked_sub(idle)?;
    let is_redirected = matches!(
        original.path.kind,
        path::INGRESS_NEIGH | path::EGRESS_NEIGH | path::INGRESS_LOCAL
    );
    let redirected_to = is_redirected.then(|| {
        let ifindex = original.path.ifindex;
        interface_name(ifindex).unwrap_or_else(|| format!("#{ifindex}"))
    });
    Some(FlowView {
        service: None,
        protocol: protocol_name(protocol).to_owned(),
        client: socket_addr(tuple.src, tuple.sport),
        frontend: socket_addr(tuple.dst, tuple.dport),
        backend: socket_addr(original.to.dst, original.to.dport),
        source: socket_addr(original.to.src, original.to.sport),
        snat: original.flags & flags::SNAT != 0,
        hairpin: original.flags & flags::HAIRPIN != 0,
        state: state(original.seen, found.table),
        age_secs: (original.began_secs != 0).then(|| now.saturating_sub(original.began_secs)),
        traffic: found.traffic,
        idle_secs: idle,
        expires_secs,
        redirected_to,
    })
}

fn socket_addr<A: IpFamily>(addr: A, port: Be16) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port.get())
}

fn state(bits: u8, table: FlowTable) -> FlowState {
    let has = |bit| bits & bit != 0;
    match (
        has(seen::FIN_ORIGINAL),
        has(seen::FIN_REPLY),
        has(seen::RST_ORIGINAL | seen::RST_REPLY),
    ) {
        (_, _, true) => FlowState::Reset,
        (true, true, false) => FlowState::Closed,
        (true, false, false) | (false, true, false) => FlowState::Closing,
        (false, false, false) => match table {
            FlowTable::Flows => FlowState::Established,
            FlowTable::Handshakes if has(seen::ANSWER) => FlowState::Answered,
            FlowTable::Handshakes => FlowState::Unanswered,
        },
    }
}

#[cfg(test)]
mod tests;
