//! COUNTERS: why a packet's way ended where it did. A per-CPU array of `u64` by [`Counter`].
//!
//! Numbers are stable and append-only: they stand in dashboards, events and golden dumps.

macro_rules! counters {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// One fact each; the number is the index in COUNTERS.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Counter {
            $(#[doc = $text] $name = $number,)*
        }

        impl Counter {
            /// All counters, in the order of their numbers.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];

            /// The counter with this number; the first one for a number that none has.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Counter {
                if number < Self::ALL.len() as u32 {
                    // SAFETY: the numbers are 0 to ALL.len() without a gap (asserted below), and
                    // the type is `repr(u32)`.
                    unsafe { core::mem::transmute::<u32, Counter>(number) }
                } else {
                    Counter::NotIp
                }
            }

            /// What it counts, in words.
            pub const fn text(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }

            /// Its name, as in the documentation.
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$name => stringify!($name),)* }
            }
        }
    };
}

counters! {
    // Passes: the packet is left alone or goes on to the stack.
    NotIp = 0, "neither IPv4 nor IPv6";
    Truncated = 1, "too short for its headers";
    BadHeader = 2, "a header that contradicts itself (version, length)";
    TooManyHeaders = 3, "more IPv6 extension headers than EXT_HEADERS_MAX";
    NoPorts = 4, "a protocol without ports that is not ours";
    Foreign = 5, "the port filter knows neither port";
    NotFrontend = 6, "no flow, and the destination is not a frontend";
    NotFlowStart = 7, "no flow, a NodePort number, but not a packet that starts a flow (S-119e)";
    Redirected = 8, "redirected by another program of ours: done already";
    FragmentUnknown = 9, "a later fragment whose first fragment was not seen";
    OtherHook = 10, "belongs to a flow that is translated at another hook";
    Unconfigured = 11, "the agent has not configured the datapath";
    HostOwnAddress = 12, "this node to an own address: served by the socket hooks only (P-8)";
    SocketOwner = 13, "a host socket owns this very tuple: its reply, not a new flow (S-119e)";
    IcmpOther = 14, "an ICMP message that quotes no flow of ours";
    // Translated packets.
    OriginalStack = 15, "client to backend, translated, to the stack";
    OriginalRedirect = 16, "client to backend, translated, redirected";
    ReplyStack = 17, "backend to client, translated, to the stack";
    ReplyRedirect = 18, "backend to client, translated, redirected";
    ReplyLocal = 19, "backend to a process of this node, translated, delivered";
    Related = 20, "an ICMP error with its quoted packet translated";
    Fragment = 21, "a later fragment, translated";
    // New flows.
    NewFlow = 22, "a new flow was created";
    NewFlowLost = 23, "two CPUs created the same flow; the other won";
    Promoted = 24, "a flow moved from HANDSHAKES to FLOWS";
    Redecided = 25, "a flow was decided anew (S-121, S-124)";
    TupleClash = 26, "the reply tuple was taken: SNAT instead (S-099)";
    InsertFailed = 27, "a flow could not be inserted: dropped";
    HalfRestored = 28, "one direction of a flow had been evicted and was put back";
    // Drops.
    NoLocalEndpoint = 29, "the Local set is empty, but there are endpoints (S-106, S-107)";
    SourceRange = 30, "the source is outside of loadBalancerSourceRanges (S-113)";
    Unallocated = 31, "inside a ServiceCIDR, not allocated (S-078)";
    BackendGone = 32, "the chosen slot held no usable backend";
    SnatPortsExhausted = 33, "no free SNAT port after SNAT_TRIES_MAX tries";
    NoSnatAddress = 34, "the egress interface has no address to masquerade with";
    NoRoute = 35, "no route to the backend or client";
    TtlExceeded = 36, "TTL or hop limit used up before a redirect";
    TooBig = 37, "larger than the egress MTU; answered";
    Unparsable = 38, "for a frontend, but its headers cannot be read (S-133)";
    FrontendFragment = 39, "a fragment for a frontend that cannot be translated";
    WriteFailed = 40, "the kernel refused a write to the packet";
    AnswerSuppressed = 41, "a refusal that must not be answered (multicast, ICMP error)";
    // Refusals.
    RejectNoEndpoint = 42, "no endpoints: refused (S-105)";
    RejectClusterIp = 43, "an unknown port of an active ClusterIP: refused (S-077)";
    RejectMidStream = 44, "TCP without a flow to a frontend: reset (S-214)";
    // Socket hooks.
    SocketConnected = 45, "connect() translated";
    SocketSent = 46, "sendmsg() translated";
    SocketReceived = 47, "recvmsg() source translated back";
    SocketPeerName = 48, "getpeername() translated back";
    SocketRefused = 49, "connect() or sendmsg() refused: no endpoints";
    SocketSteppedAside = 50, "a frontend left to the packet path (S-200)";
    // Added later: numbers are append-only.
    SctpFragment = 51, "SCTP in fragments with another port: its CRC32c covers the whole packet";
    AnswerLimited = 52, "a refusal that was not answered: more of them than the limit (S-104)";
    SocketDropped = 53, "connect() or sendmsg() failed: the packet path would drop it";
    Closed = 54, "a closed connection moved from FLOWS to HANDSHAKES";
    XdpPassed = 55, "left by XDP to tc, as it came";
    XdpAnswered = 56, "redirected, answered or dropped by XDP";
    Tagged = 57, "of a VLAN, whose own device sees it without its tag";
    EventLost = 58, "an event for monitors that found no room in EVENTS";
    NewFlowLimited = 59, "a new flow that was dropped: more of them than the limit";
}

const _: () = {
    let mut index = 0;
    while index < Counter::ALL.len() {
        assert!(Counter::ALL[index] as usize == index);
        index += 1;
    }
};

/// Elements of COUNTERS: room for new counters without a new ABI.
pub const COUNTERS_LEN: u32 = 128;
const _: () = assert!(Counter::ALL.len() <= COUNTERS_LEN as usize);
