//! The yardsticks: the least that a packet of a flow can cost, with keys and values as large as
//! those of FLOWS. Nothing here is robust; it is what any load balancer has to do.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap};
use bytemuck::{Pod, Zeroable};
use proxy_common::flow::flags;
use proxy_common::{Addr4, Addr6, Address, Be16, Connection, FlowKey, Tuple, protocol};

use crate::CHOICES_LEN;

/// Where the IP header begins.
const L3: usize = 14;

/// A family with its tables.
pub trait Family: Sized {
    /// Its addresses.
    type Addr: Address;
    /// EtherType, as in the packet.
    const ETHERTYPE: u16;
    /// Offset of the source address in the header; the destination is behind it.
    const SRC: usize;
    /// Offset of the protocol in the header.
    const PROTOCOL: usize;
    /// Length of the header.
    const LEN: usize;

    /// The flow of a key.
    fn flow(key: &FlowKey<Self::Addr>) -> Option<*const Connection<Self::Addr>>;
    /// The same among the flows of the second yardstick.
    fn new_flow(key: &FlowKey<Self::Addr>) -> Option<*const Connection<Self::Addr>>;
    /// Enters a flow there.
    fn insert(key: &FlowKey<Self::Addr>, value: &Connection<Self::Addr>) -> bool;
    /// A backend.
    fn choice(index: u32) -> Option<*const Tuple<Self::Addr>>;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

macro_rules! family {
    (
        $family:ty, $addr:ty, $ethertype:expr, $src:expr, $protocol:expr, $len:expr,
        $flows:ident, $new_flows:ident, $choices:ident
    ) => {
        #[map]
        static $flows: LruHashMap<FlowKey<$addr>, Connection<$addr>> =
            LruHashMap::with_max_entries(1, 0);
        #[map]
        static $new_flows: LruHashMap<FlowKey<$addr>, Connection<$addr>> =
            LruHashMap::with_max_entries(1, 0);
        #[map]
        static $choices: Array<Tuple<$addr>> = Array::with_max_entries(CHOICES_LEN, 0);

        impl Family for $family {
            type Addr = $addr;
            const ETHERTYPE: u16 = $ethertype;
            const SRC: usize = $src;
            const PROTOCOL: usize = $protocol;
            const LEN: usize = $len;

            #[inline(always)]
            fn flow(key: &FlowKey<$addr>) -> Option<*const Connection<$addr>> {
                $flows.get_ptr(key)
            }

            #[inline(always)]
            fn new_flow(key: &FlowKey<$addr>) -> Option<*const Connection<$addr>> {
                $new_flows.get_ptr(key)
            }

            #[inline(always)]
            fn insert(key: &FlowKey<$addr>, value: &Connection<$addr>) -> bool {
                $new_flows.insert(key, value, 0).is_ok()
            }

            #[inline(always)]
            fn choice(index: u32) -> Option<*const Tuple<$addr>> {
                $choices.get_ptr(index)
            }
        }
    };
}

family!(
    V4,
    Addr4,
    0x0800,
    12,
    9,
    20,
    YARDSTICKS4,
    NEW_YARDSTICKS4,
    CHOICES4
);
family!(
    V6,
    Addr6,
    0x86dd,
    8,
    6,
    40,
    YARDSTICKS6,
    NEW_YARDSTICKS6,
    CHOICES6
);

/// Parse, one lookup, rewrite, checksums. False where any of it fails.
#[inline(always)]
pub fn established<F: Family>(data: usize, end: usize) -> bool {
    let Some(headers) = parse::<F>(data, end) else {
        return false;
    };
    let Some(connection) = F::flow(&headers.key) else {
        return false;
    };
    // SAFETY: an element of the map, valid for the program run.
    rewrite::<F>(data, &headers, unsafe { &(*connection).to });
    true
}

/// Parse, one miss, one array read, two inserts, rewrite, checksums.
#[inline(always)]
pub fn new<F: Family>(data: usize, end: usize) -> bool {
    let Some(headers) = parse::<F>(data, end) else {
        return false;
    };
    if F::new_flow(&headers.key).is_some() {
        return false;
    }
    let index = headers.key.tuple.sport.get() as u32 & (CHOICES_LEN - 1);
    let Some(choice) = F::choice(index) else {
        return false;
    };
    let mut connection = Connection::<F::Addr>::zeroed();
    // SAFETY: an element of the map, valid for the program run.
    unsafe {
        connection.to = Tuple {
            dst: (*choice).dst,
            dport: (*choice).dport,
            ..headers.key.tuple
        };
    }
    if !F::insert(&headers.key, &connection) {
        return false;
    }
    let to = connection.to;
    let reply = FlowKey::new(to.reversed(), headers.key.protocol);
    connection.to = headers.key.tuple.reversed();
    connection.flags = flags::REPLY;
    if !F::insert(&reply, &connection) {
        return false;
    }
    rewrite::<F>(data, &headers, &to);
    true
}

/// What is read of a packet.
struct Headers<F: Family> {
    key: FlowKey<F::Addr>,
    /// Offset of the transport checksum.
    sum_at: usize,
}

#[inline(always)]
fn parse<F: Family>(data: usize, end: usize) -> Option<Headers<F>> {
    if data + L3 + F::LEN + 20 > end || read::<u16>(data + L3 - 2) != F::ETHERTYPE.to_be() {
        return None;
    }
    // No options.
    if F::LEN == 20 && read::<u8>(data + L3) != 0x45 {
        return None;
    }
    let l4 = L3 + F::LEN;
    let protocol: u8 = read(data + L3 + F::PROTOCOL);
    let sum_at = match protocol {
        protocol::TCP => l4 + 16,
        protocol::UDP => l4 + 6,
        _ => return None,
    };
    let size = size_of::<F::Addr>();
    let tuple = Tuple {
        src: read(data + L3 + F::SRC),
        dst: read(data + L3 + F::SRC + size),
        sport: read(data + l4),
        dport: read(data + l4 + 2),
    };
    Some(Headers {
        key: FlowKey::new(tuple, protocol),
        sum_at,
    })
}

/// Writes addresses, ports and checksums; the caller has parsed the packet.
#[inline(always)]
fn rewrite<F: Family>(data: usize, headers: &Headers<F>, to: &Tuple<F::Addr>) {
    let old = &headers.key.tuple;
    let addresses = change(&old.src, &to.src) + change(&old.dst, &to.dst);
    let ports = half(old.sport, to.sport) + half(old.dport, to.dport);
    update(data + headers.sum_at, addresses + ports);
    if F::LEN == 20 {
        update(data + L3 + 10, addresses);
    }
    write(data + L3 + F::SRC, to.src);
    write(data + L3 + F::SRC + size_of::<F::Addr>(), to.dst);
    write(data + L3 + F::LEN, [to.sport, to.dport]);
}

#[inline(always)]
fn change<A: Address>(old: &A, new: &A) -> u64 {
    let (old, new) = (old.words(), new.words());
    let mut sum = new[0].0 as u64 + !old[0].0 as u64;
    if A::BITS > 32 {
        sum += new[1].0 as u64 + !old[1].0 as u64;
        sum += new[2].0 as u64 + !old[2].0 as u64;
        sum += new[3].0 as u64 + !old[3].0 as u64;
    }
    sum
}

#[inline(always)]
fn half(old: Be16, new: Be16) -> u64 {
    new.0 as u64 + !old.0 as u64
}

/// RFC 1624, equation 3.
#[inline(always)]
fn update(at: usize, delta: u64) {
    let old: u16 = read(at);
    let sum = (!old) as u64 + delta;
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    write(at, !(sum as u16));
}

#[inline(always)]
fn read<T: Pod>(at: usize) -> T {
    // SAFETY: `parse` has checked the bounds; the kernel takes values at any address of a packet.
    unsafe { *(at as *const T) }
}

#[inline(always)]
fn write<T: Pod>(at: usize, value: T) {
    // SAFETY: as in `read`.
    unsafe { *(at as *mut T) = value };
}
