//! The maps as the pipeline uses them: one trait, with BPF maps behind it in the kernel and plain
//! collections on the host.

#[cfg(target_arch = "bpf")]
pub mod bpf;
#[cfg(target_arch = "bpf")]
mod exchange;
#[cfg(target_arch = "bpf")]
mod flows;
#[cfg(not(target_arch = "bpf"))]
pub mod host;

use proxy_common::{
    AffinityEntry, AffinityKey, Backend, Config, Connection, Counter, Event, FlowKey, FragmentKey,
    FragmentPorts, FrontendKey, Interface, Monitor, Side, SocketEntry, SocketKey,
};

use crate::{Family, Stop};

/// Which of the two flow tables, in the order in which a connection is in them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FlowTable {
    /// Connections that are not established yet, or closed: a flood ends here.
    Handshakes,
    /// Connections that both sides keep up.
    Flows,
}

/// Whether an insert may replace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insert {
    /// Only where the key is absent: of several CPUs one wins.
    NoExist,
    /// In any case.
    Any,
}

/// What was read of a frontend: both must be checked by the reader.
#[derive(Clone, Copy, Debug)]
pub struct FrontendRead<F: Family> {
    /// The published word, by one 8-byte load.
    pub word: u64,
    /// The key of the element.
    pub key: FrontendKey<F::Addr>,
}

/// What a packet tells of its flow. Bits are told one by one, because two CPUs may tell at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// Seconds of the jiffies clock.
    pub now: u32,
    /// Bits of `seen` that are true.
    pub gained: u8,
    /// Bits of `seen` that are no longer true: resets that were ignored.
    pub lost: u8,
    /// Length of the packet from its IP header on, if it is counted now; else 0.
    pub bytes: u32,
}

impl Sighting {
    /// `seen` after it.
    #[inline(always)]
    pub fn on(self, seen: u8) -> u8 {
        seen & !self.lost | self.gained
    }
}

/// The maps. Counters never change a verdict; failures of the rest are visible in the results.
pub trait Tables<F: Family> {
    /// Where an entry of a flow table is.
    type Entry: Copy;

    /// CONFIG, or `None` before the agent wrote it.
    fn config(&self) -> Option<&Config>;
    /// PORT_FILTER: true if the bit is set; false too for a protocol without ports.
    fn port_known(&self, protocol: u8, side: Side, port: u16) -> bool;
    /// PORT_FILTER: true if the address's bit is set.
    fn address_known(&self, addr: &F::Addr) -> bool;
    /// HANDSHAKES or FLOWS: copies the entry to `found`, and says where it is; `None` where there
    /// is none. The caller checks the tag.
    fn entry(
        &self,
        table: FlowTable,
        key: &FlowKey<F::Addr>,
        found: &mut Connection<F::Addr>,
    ) -> Option<Self::Entry>;
    /// The same, for readers: false where there is none.
    #[inline(always)]
    fn flow(
        &self,
        table: FlowTable,
        key: &FlowKey<F::Addr>,
        found: &mut Connection<F::Addr>,
    ) -> bool {
        self.entry(table, key, found).is_some()
    }
    /// Adds a packet of this length to what an entry's direction has carried.
    fn carry(&self, entry: Self::Entry, bytes: u32);
    /// The same for the first packet in a second: writes that its direction was seen then, and
    /// tells BACKEND_COUNTS what it has carried.
    fn see(&self, entry: Self::Entry, now: u32, bytes: u32);
    /// Inserts; false if it exists (`NoExist`) or there is no room.
    fn insert_flow(
        &self,
        table: FlowTable,
        key: &FlowKey<F::Addr>,
        value: &Connection<F::Addr>,
        how: Insert,
    ) -> bool;
    /// Removes.
    fn remove_flow(&self, table: FlowTable, key: &FlowKey<F::Addr>);
    /// Writes a sighting where the entry still is this key's (by its tag), and what it has carried
    /// to BACKEND_COUNTS; false if it is gone.
    fn touch_flow(&self, table: FlowTable, key: &FlowKey<F::Addr>, sighting: Sighting) -> bool;
    /// FRONTEND_IDS.
    fn frontend_id(&self, key: &FrontendKey<F::Addr>) -> Option<u32>;
    /// FRONTENDS.
    fn frontend(&self, id: u32) -> Option<FrontendRead<F>>;
    /// SLOTS.
    fn slot(&self, index: u32) -> Option<u64>;
    /// BACKENDS, a copy.
    fn backend(&self, id: u32) -> Option<Backend<F::Addr>>;
    /// NODE_ADDRESSES: flags; 0 for an address that is not this node's.
    fn node_address(&self, addr: &F::Addr) -> u32;
    /// CLUSTER_IPS: the value of the longest prefix; 0 if none.
    fn cluster_ip(&self, addr: &F::Addr) -> u32;
    /// SOURCE_RANGES: true if a range of `service_port` contains `addr`.
    fn source_range(&self, service_port: u32, addr: &F::Addr) -> bool;
    /// INTERFACES, a copy.
    fn interface(&self, ifindex: u32) -> Option<Interface>;
    /// AFFINITY, a copy. The caller checks the tag.
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<AffinityEntry>;
    /// AFFINITY: binds, or binds anew.
    fn insert_affinity(&self, key: &AffinityKey<F::Addr>, value: &AffinityEntry);
    /// ANSWERS: true for the first `limit` calls of this CPU in the second `now`.
    fn may_answer(&self, now: u32, limit: u32) -> bool;
    /// NEW_FLOWS: the same for new flows.
    fn may_begin(&self, now: u32, limit: u32) -> bool;
    /// FRAGMENTS: the ports of a datagram's first fragment.
    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<FragmentPorts>;
    /// FRAGMENTS: remembers them.
    fn insert_fragment(&self, key: &FragmentKey<F::Addr>, ports: &FragmentPorts);
    /// SOCKETS, a copy.
    fn socket(&self, key: &SocketKey<F::Addr>) -> Option<SocketEntry<F::Addr>>;
    /// SOCKETS: remembers.
    fn insert_socket(&self, key: &SocketKey<F::Addr>, value: &SocketEntry<F::Addr>);
    /// MONITORS: what is to be told of.
    fn monitor(&self) -> Option<Monitor>;
    /// EVENTS: tells, with the time of now. Where there is no room, `EventLost` counts it.
    fn tell(&self, event: &Event);
    /// COUNTERS: one more.
    fn count(&self, counter: Counter);
    /// FRONTEND_COUNTS and BACKEND_COUNTS: a connection begins; with a packet of `bytes` to the
    /// backend, unless they are 0.
    fn count_connection(&self, frontend: u32, backend: u32, bytes: u32);
    /// FRONTEND_COUNTS: one is refused.
    fn count_refused(&self, frontend: u32);
    /// FRONTEND_COUNTS: one is dropped.
    fn count_dropped(&self, frontend: u32);
    /// FRONTEND_COUNTS: one ends here. A pass is neither refused nor dropped.
    #[inline(always)]
    fn count_stop(&self, frontend: u32, stop: &Stop) {
        match stop {
            Stop::Reject(..) => self.count_refused(frontend),
            Stop::Drop(_) => self.count_dropped(frontend),
            Stop::Pass(_) => {}
        }
    }
}
