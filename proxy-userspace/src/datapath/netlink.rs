//! Links, addresses and routes of this network namespace, and news that one of them changed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::interfaces::{Link, LinkAddress, Route, Snapshot};

/// Why the interfaces could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("opening a netlink socket")]
    Socket(#[from] io::Error),
    /// The kernel refused a list.
    #[error("listing {what} by netlink")]
    List {
        /// Links, addresses, routes or neighbours.
        what: &'static str,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
}

/// Reads snapshots. Its requests run on a task of the current runtime.
#[derive(Clone, Debug)]
pub struct Reader {
    handle: Handle,
}

impl Reader {
    /// Opens a netlink socket in the network namespace of this thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Reads everything. Entries that cannot be read are left out.
    pub async fn snapshot(&self) -> Result<Snapshot, NetlinkError> {
        let mut snapshot = Snapshot {
            netfilter_sees_bridges: netfilter_sees_bridges(),
            ..Snapshot::default()
        };
        let links = self.handle.link().get().execute().boxed();
        let links: Vec<_> = links.try_collect().await.map_err(listing("links"))?;
        snapshot.links = links.into_iter().map(link).collect();
        let addresses = self.handle.address().get().execute().boxed();
        let addresses: Vec<_> = addresses
            .try_collect()
            .await
            .map_err(listing("addresses"))?;
        snapshot.addresses = addresses.into_iter().filter_map(address).collect();
        let messages = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for message in messages {
            let routes = self.handle.route().get(message).execute().boxed();
            let routes: Vec<_> = routes.try_collect().await.map_err(listing("routes"))?;
            snapshot.routes.extend(routes.iter().flat_map(routes_of));
        }
        Ok(snapshot)
    }

    /// Every neighbour that the kernel knows.
    pub async fn neighbours(&self) -> Result<Vec<NeighbourMessage>, NetlinkError> {
        let neighbours = self.handle.neighbours().get().execute().boxed();
        neighbours
            .try_collect()
            .await
            .map_err(listing("neighbours"))
    }

    /// The interface that leads to an address; `None` without a route, and for an own address.
    pub async fn route(&self, dst: IpAddr) -> Option<u32> {
        let message = match dst {
            IpAddr::V4(dst) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(dst, 32)
                .build(),
            IpAddr::V6(dst) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(dst, 128)
                .build(),
        };
        let mut routes = self.handle.route().get(message).execute().boxed();
        let route = routes.try_next().await.ok()??;
        if route.header.kind != RouteType::Unicast {
            return None;
        }
        route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(ifindex) => Some(*ifindex),
                _ => None,
            })
    }
}

fn listing(what: &'static str) -> impl Fn(rtnetlink::Error) -> NetlinkError {
    move |source| NetlinkError::List { what, source }
}

/// True if bridged packets pass netfilter in this network namespace. The file is there only
/// while the module br_netfilter is loaded.
fn netfilter_sees_bridges() -> bool {
    let setting = std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables");
    setting.is_ok_and(|text| text.trim() == "1")
}

fn link(message: LinkMessage) -> (u32, Link) {
    let mut link = Link {
        hardware: message.header.link_layer_type.into(),
        is_loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Link(index) => link.lower = Some(index),
            LinkAttribute::Address(mac) => link.mac = mac.try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(&infos),
            LinkAttribute::Xdp(parts) => link.xdp_program = xdp_program(&parts),
            _ => {}
        }
    }
    (message.header.index, link)
}

fn kind(infos: &[LinkInfo]) -> String {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind.clone()),
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    });
    kind.unwrap_or_default()
}

/// 0 stands for none.
fn xdp_program(parts: &[LinkXdp]) -> Option<u32> {
    parts.iter().find_map(|part| match part {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id) => Some(*id).filter(|id| *id != 0),
        _ => None,
    })
}

fn address(message: AddressMessage) -> Option<LinkAddress> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    // On a point-to-point link `Address` is the peer's.
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    let peer = || {
        find(|attribute| match attribute {
            AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        })
    };
    let unusable = AddressHeaderFlags::Tentative
        | AddressHeaderFlags::Dadfailed
        | AddressHeaderFlags::Deprecated;
    let header = &message.header;
    Some(LinkAddress {
        ifindex: header.index,
        addr: local.or_else(peer)?,
        prefix_len: header.prefix_len,
        is_source: header.scope == AddressScope::Universe && !header.flags.intersects(unusable),
    })
}

/// RT_TABLE_LOCAL.
const LOCAL_TABLE: u32 = 255;

/// The next hops of a route; none for a route that leads nowhere, to ourselves or to link-local
/// addresses only.
fn routes_of(message: &RouteMessage) -> Vec<Route> {
    let header = &message.header;
    let unspecified = match u8::from(header.address_family) as i32 {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let mut route = Route {
        ifindex: 0,
        network: unspecified,
        prefix_len: header.destination_prefix_length,
        has_gateway: false,
        source: None,
        metric: 0,
    };
    let mut table = u32::from(header.table);
    let mut hops: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(addr) => route.network = ip(addr).unwrap_or(unspecified),
            RouteAttribute::PrefSource(addr) => route.source = ip(addr),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => route.has_gateway = true,
            RouteAttribute::Oif(index) => route.ifindex = *index,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::MultiPath(next_hops) => hops = next_hops,
            _ => {}
        }
    }
    if table == LOCAL_TABLE || header.kind != RouteType::Unicast || is_link_local(&route.network) {
        return Vec::new();
    }
    let first = Some(route).filter(|route| route.ifindex != 0);
    let others = hops.iter().map(|hop| Route {
        ifindex: hop.interface_index,
        has_gateway: true,
        ..route
    });
    first.into_iter().chain(others).collect()
}

fn is_link_local(network: &IpAddr) -> bool {
    match network {
        IpAddr::V4(addr) => addr.is_multicast(),
        IpAddr::V6(addr) => addr.is_multicast() || addr.is_unicast_link_local(),
    }
}

fn ip(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

/// Says when links, addresses or routes have changed. What changed is read as a snapshot: a
/// message that the kernel had to drop is then no loss.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Subscribes in the network namespace of this thread. Changes from here on are seen.
    pub fn subscribe() -> Result<Self, NetlinkError> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        let socket = subscribe(groups)?;
        Ok(Self { socket })
    }

    /// Waits for a change, and takes all that have come.
    pub async fn next(&mut self) -> Result<(), NetlinkError> {
        loop {
            let mut ready = self.socket.readable().await?;
            if drain(ready.get_inner())? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// A socket that hears these groups in the network namespace of this thread.
pub(super) fn subscribe(groups: i32) -> Result<AsyncFd<OwnedFd>, NetlinkError> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a system call without addresses.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the kernel has just returned this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all bytes zero is a valid address of this type.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = groups as u32;
    let len = size_of::<libc::sockaddr_nl>() as u32;
    let pointer = std::ptr::from_ref(&address).cast();
    // SAFETY: the kernel reads `len` bytes of the address above.
    if unsafe { libc::bind(socket.as_raw_fd(), pointer, len) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: an `OwnedFd` that moves in stays open, and the same, until it is dropped.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(socket.map_err(io::Error::from)?)
}

/// What [`receive`] has found.
pub(super) enum Received<'a> {
    /// A datagram of messages.
    Messages(&'a [u8]),
    /// Messages that did not fit into the socket's buffer.
    Lost,
    /// Nothing is left.
    Nothing,
}

/// The next datagram, if there is one. A longer one than `buffer` is cut.
pub(super) fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<Received<'a>> {
    loop {
        let pointer = buffer.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most the buffer's length into it.
        let read = unsafe { libc::recv(socket.as_raw_fd(), pointer, buffer.len(), 0) };
        if let Ok(len) = usize::try_from(read) {
            return Ok(Received::Messages(&buffer[..len]));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN) => return Ok(Received::Nothing),
            Some(libc::ENOBUFS) => return Ok(Received::Lost),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

/// Reads until nothing is left; true if something was there. Messages that did not fit into the
/// socket's buffer count too.
fn drain(socket: &OwnedFd) -> io::Result<bool> {
    let mut buffer = [0_u8; 4096];
    let mut changed = false;
    while !matches!(receive(socket, &mut buffer)?, Received::Nothing) {
        changed = true;
    }
    Ok(changed)
}
