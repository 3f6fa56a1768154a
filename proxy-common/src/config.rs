//! CONFIG: what holds for every packet. An array of one element, written by the agent.

use bytemuck::{Pod, Zeroable};

use crate::{Addr4, Addr6, Address, SERVICE_CIDRS_MAX, pod};

/// Value of CONFIG.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Config {
    /// Cookie of the node's own network namespace: tells host sockets from pod sockets.
    pub host_netns_cookie: u64,
    /// [`crate::ABI_VERSION`] of the writer; 0: nothing is configured, every program passes.
    pub abi_version: u32,
    /// Kernel ticks per second: the unit of the jiffies clock.
    pub hz: u32,
    /// [`flags`].
    pub flags: u32,
    /// Bit set in `skb->mark` of packets that we redirect, cleared by the next program (P-3).
    pub redirect_mark: u32,
    /// First and last port of two SNAT ranges (P-13), in host order.
    pub snat_ports: [[u16; 2]; 2],
    /// A [`DetectLocal`] as number.
    pub detect_local: u32,
    /// Idle lifetimes, in seconds.
    pub timeouts: Timeouts,
    /// Answers to refused packets that each CPU sends in a second (S-104); 0: no limit.
    pub answers_per_sec: u32,
    /// New flows that each CPU enters in a second; 0: no limit.
    pub new_flows_per_sec: u32,
    /// What differs in IPv4.
    pub v4: FamilyConfig<Addr4>,
    /// What differs in IPv6.
    pub v6: FamilyConfig<Addr6>,
    /// Another number whenever routes or neighbours have changed: next hops that flows hold are
    /// those of one number. A flow remembers its low 8 bits.
    pub next_hops: u32,
}
const _: () = assert!(size_of::<Config>() == 328);

/// Bits of [`Config::flags`].
pub mod flags {
    /// kube-proxy's SNAT rows exactly: `--masquerade=always` (S-091).
    pub const MASQUERADE_ALWAYS: u32 = 1 << 0;
    /// `masqueradeAll` (S-092).
    pub const MASQUERADE_ALL: u32 = 1 << 1;
    /// Translate connected UDP sockets too: `--socket-udp=connected` (P-11).
    pub const SOCKET_UDP_CONNECTED: u32 = 1 << 2;
    /// Socket LB for sockets of the node's own namespace only (S-206).
    pub const SOCKET_HOST_ONLY: u32 = 1 << 3;
    /// NodePorts on 127.0.0.0/8, by the socket hooks (S-119d).
    pub const LOOPBACK_NODE_PORTS4: u32 = 1 << 4;
    /// Leave unallocated ServiceCIDR addresses alone (the exemption of S-078).
    pub const KEEP_UNALLOCATED: u32 = 1 << 5;
    /// NodePorts on ::1, by the socket hooks (S-119d).
    pub const LOOPBACK_NODE_PORTS6: u32 = 1 << 6;
}

/// Idle lifetimes of flows, in seconds (S-122).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Timeouts {
    /// TCP, established by both sides.
    pub tcp_established_secs: u32,
    /// TCP, not established yet.
    pub tcp_handshake_secs: u32,
    /// TCP, closed by both sides or reset.
    pub tcp_closing_secs: u32,
    /// UDP and others, without traffic both ways in two different seconds.
    pub udp_unreplied_secs: u32,
    /// UDP and others, with it.
    pub udp_stream_secs: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established_secs: 24 * 3600,
            tcp_handshake_secs: 60,
            tcp_closing_secs: 120,
            udp_unreplied_secs: 30,
            udp_stream_secs: 120,
        }
    }
}

/// Who counts as a pod (S-083).
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DetectLocal {
    /// No detector: nobody does.
    None = 0,
    /// Source in [`FamilyConfig::pods`] (ClusterCIDR and NodeCIDR mode).
    Cidr = 1,
    /// Entered by an interface with [`crate::interface::flags::DETECTED`].
    Interface = 2,
}

/// The part of [`Config`] of one family.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FamilyConfig<A: Address> {
    /// Sources that are pods; not used: no detector in this family.
    pub pods: Cidr<A>,
    /// Prefixes that cover every ServiceCIDR and ClusterIP: a superset (S-077, S-078). What an
    /// address inside is, CLUSTER_IPS says.
    pub service_cidrs: [Cidr<A>; SERVICE_CIDRS_MAX],
    /// This node's primary address, or unspecified: the client of its own processes where their
    /// source is not known yet (S-101).
    pub primary: A,
}
pod!(FamilyConfig<A>, 64, 196);

impl<A: Address> FamilyConfig<A> {
    /// True if an address may be a ClusterIP or in a ServiceCIDR: other ports and protocols are
    /// ours there (S-077, S-078).
    #[inline(always)]
    pub fn is_service_address(&self, addr: &A) -> bool {
        let cidrs = &self.service_cidrs;
        cidrs[0].contains(addr)
            || cidrs[1].contains(addr)
            || cidrs[2].contains(addr)
            || cidrs[3].contains(addr)
    }
}

/// A CIDR as network and mask.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr<A: Address> {
    /// Network address.
    pub network: A,
    /// Mask.
    pub mask: A,
    /// 1: in use; 0: matches nothing.
    pub used: u32,
}
pod!(Cidr<A>, 12, 36);

impl<A: Address> Cidr<A> {
    /// True if it is in use and contains `addr`.
    #[inline(always)]
    pub fn contains(&self, addr: &A) -> bool {
        self.used != 0 && addr.is_in(&self.network, &self.mask)
    }
}
