//! Next hops that flows remember for XDP: when they may be others.
//!
//! The kernel tells of a neighbour whenever its state changes, which a MAC address outlives many
//! times. So what is known of neighbours is kept, and only another MAC address, or none, is news;
//! and so is every change of routes and links.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::netlink::{NetlinkError, Reader, Received, receive, subscribe};

/// Between two answers of [`NextHops::moved`] at least: each makes every flow look once. A flow
/// knows its number by 8 bits ([`proxy_common::Config::next_hops`]), and looks by itself long
/// before these come round.
const PACE: Duration = Duration::from_secs(1);
/// More than a datagram of such messages has.
const BUFFER_LEN: usize = 32 * 1024;

/// Follows neighbours, routes and links of a network namespace.
#[derive(Debug)]
pub struct NextHops {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    known: Neighbours,
    has_moved: bool,
    /// When the next answer may be given.
    next: Instant,
}

impl NextHops {
    /// Subscribes in the network namespace of this thread, which `reader` is of too. Changes from
    /// here on are seen.
    pub async fn subscribe(reader: &Reader) -> Result<Self, NetlinkError> {
        let groups = libc::RTMGRP_NEIGH
            | libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        let socket = subscribe(groups)?;
        let mut known = Neighbours::default();
        for neighbour in reader.neighbours().await? {
            known.is_other(neighbour, true);
        }
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER_LEN],
            known,
            has_moved: false,
            next: Instant::now(),
        })
    }

    /// Waits until a next hop may be another. Nothing is lost where that is given up.
    pub async fn moved(&mut self) -> Result<(), NetlinkError> {
        while !self.has_moved {
            let mut ready = self.socket.readable().await?;
            loop {
                match receive(ready.get_inner(), &mut self.buffer)? {
                    Received::Messages(messages) => self.has_moved |= self.known.take(messages),
                    Received::Lost => self.has_moved = true,
                    Received::Nothing => break,
                }
            }
            ready.clear_ready();
        }
        sleep_until(self.next).await;
        self.has_moved = false;
        self.next = Instant::now() + PACE;
        Ok(())
    }
}

/// MAC addresses of neighbours, by interface and IP address.
#[derive(Debug, Default)]
struct Neighbours(HashMap<(u32, IpAddr), Vec<u8>>);

impl Neighbours {
    /// Takes in a datagram; true if a next hop may be another. What cannot be read may be anything.
    fn take(&mut self, mut messages: &[u8]) -> bool {
        let mut has_moved = false;
        while !messages.is_empty() {
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(messages) else {
                return true;
            };
            // Messages begin at multiples of 4.
            let len = (message.header.length as usize).next_multiple_of(4);
            messages = messages.get(len.max(1)..).unwrap_or_default();
            has_moved |= match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
                    self.is_other(neighbour, true)
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(neighbour)) => {
                    self.is_other(neighbour, false)
                }
                _ => true,
            };
        }
        has_moved
    }

    /// True if the neighbour had another MAC address before. One that had none is no flow's next
    /// hop: they look at each packet until it has.
    fn is_other(&mut self, neighbour: NeighbourMessage, is_there: bool) -> bool {
        const LOST: [NeighbourState; 2] = [NeighbourState::Failed, NeighbourState::Incomplete];
        let (mut addr, mut mac) = (None, Vec::new());
        for attribute in neighbour.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                    addr = Some(IpAddr::from(found));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                    addr = Some(IpAddr::from(found));
                }
                NeighbourAttribute::LinkLayerAddress(found) => mac = found,
                _ => {}
            }
        }
        let Some(addr) = addr else { return false };
        let is_there = is_there && !mac.is_empty() && !LOST.contains(&neighbour.header.state);
        match (self.0.entry((neighbour.header.ifindex, addr)), is_there) {
            (Entry::Occupied(known), true) if *known.get() == mac => false,
            (Entry::Occupied(mut known), true) => {
                known.insert(mac);
                true
            }
            (Entry::Occupied(known), false) => {
                known.remove();
                true
            }
            (Entry::Vacant(unknown), true) => {
                unknown.insert(mac);
                false
            }
            (Entry::Vacant(_), false) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: [u8; 4] = [192, 0, 2, 1];

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn neighbour(state: NeighbourState, mac: u8) -> NeighbourMessage {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = rtnetlink::packet_route::AddressFamily::Inet;
        neighbour.header.ifindex = 7;
        neighbour.header.state = state;
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(GATEWAY.into())),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, mac]),
        ];
        neighbour
    }

    fn seen(state: NeighbourState, mac: u8) -> Vec<u8> {
        bytes(RouteNetlinkMessage::NewNeighbour(neighbour(state, mac)))
    }

    #[test]
    fn another_mac_address_is_news_and_another_state_is_not() {
        let mut known = Neighbours::default();
        assert!(!known.take(&seen(NeighbourState::Reachable, 1)));
        assert!(!known.take(&seen(NeighbourState::Stale, 1)));
        assert!(!known.take(&seen(NeighbourState::Probe, 1)));
        assert!(known.take(&seen(NeighbourState::Reachable, 2)));
        assert!(!known.take(&seen(NeighbourState::Reachable, 2)));
    }

    #[test]
    fn a_neighbour_that_is_lost_is_news_once() {
        let mut known = Neighbours::default();
        assert!(!known.take(&seen(NeighbourState::Reachable, 1)));
        assert!(known.take(&seen(NeighbourState::Failed, 1)));
        assert!(!known.take(&seen(NeighbourState::Failed, 1)));
        let gone = neighbour(NeighbourState::Stale, 1);
        assert!(!known.take(&bytes(RouteNetlinkMessage::DelNeighbour(gone.clone()))));
        assert!(!known.take(&seen(NeighbourState::Stale, 1)));
        assert!(known.take(&bytes(RouteNetlinkMessage::DelNeighbour(gone))));
    }

    #[test]
    fn every_message_of_a_datagram_is_read() {
        let mut known = Neighbours::default();
        known.take(&seen(NeighbourState::Reachable, 1));
        let mut two = seen(NeighbourState::Stale, 1);
        assert!(!known.take(&two));
        two.extend(seen(NeighbourState::Reachable, 2));
        assert!(known.take(&two));
    }

    #[test]
    fn routes_are_news_and_so_is_what_cannot_be_read() {
        let mut known = Neighbours::default();
        let route = rtnetlink::packet_route::route::RouteMessage::default();
        assert!(known.take(&bytes(RouteNetlinkMessage::NewRoute(route))));
        assert!(known.take(&[1, 2, 3]));
        assert!(!known.take(&[]));
    }
}
