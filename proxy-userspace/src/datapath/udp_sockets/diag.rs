//! sock_diag: lists and destroys UDP sockets of the network namespace of this thread
//! (linux/inet_diag.h).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use bytemuck::{Pod, Zeroable};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// States of `inet_diag_req_v2`: TCP_ESTABLISHED, which a connected UDP socket has.
const CONNECTED: u32 = 1 << 1;
/// More than the kernel puts into one answer.
const ANSWER_MAX: usize = 64 << 10;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `inet_diag_sockid`; ports and addresses in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SocketId {
    source_port: [u8; 2],
    peer_port: [u8; 2],
    source: [u8; 16],
    peer: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `inet_diag_req_v2` behind its header.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}
const _: () = assert!(size_of::<Request>() == 16 + 56);

/// The beginning of `inet_diag_msg`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Found {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
}
const _: () = assert!(size_of::<Found>() == 52);

/// Whom a socket is connected to; IPv4 also where the socket is of IPv6.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Peer {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
}

/// A connected UDP socket.
#[derive(Clone, Copy, Debug)]
pub struct UdpSocket {
    family: u8,
    id: SocketId,
}

impl UdpSocket {
    /// As BPF programs see it, low half first.
    pub fn cookie(&self) -> [u32; 2] {
        self.id.cookie
    }

    /// Whom it is connected to.
    pub fn peer(&self) -> Peer {
        let [a, b, c, d, ..] = self.id.peer;
        let addr = match i32::from(self.family) {
            libc::AF_INET => IpAddr::from(Ipv4Addr::new(a, b, c, d)),
            _ => IpAddr::from(Ipv6Addr::from(self.id.peer)).to_canonical(),
        };
        Peer {
            addr,
            port: u16::from_be_bytes(self.id.peer_port),
        }
    }
}

/// A netlink socket.
pub struct Diag {
    socket: OwnedFd,
    sequence: u32,
}

impl Diag {
    /// Opens one in the network namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// All connected UDP sockets of one family.
    pub fn connected_udp(&mut self, family: i32) -> io::Result<Vec<UdpSocket>> {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        let any = UdpSocket {
            family: family as u8,
            id: SocketId::zeroed(),
        };
        self.send(SOCK_DIAG_BY_FAMILY, flags, &any)?;
        let mut found = Vec::new();
        self.receive(|body| {
            if let Some(bytes) = body.get(..size_of::<Found>()) {
                let Found { family, id, .. } = bytemuck::pod_read_unaligned(bytes);
                found.push(UdpSocket { family, id });
            }
        })?;
        Ok(found)
    }

    /// Destroys one: its owner gets ECONNABORTED. ENOENT where it is gone.
    pub fn destroy(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        self.send(SOCK_DESTROY, flags, socket)?;
        self.receive(|_| ())
    }

    fn send(&mut self, kind: u16, flags: u16, socket: &UdpSocket) -> io::Result<()> {
        self.sequence += 1;
        let request = Request {
            header: Header {
                len: size_of::<Request>() as u32,
                kind,
                flags,
                sequence: self.sequence,
                port: 0,
            },
            family: socket.family,
            protocol: libc::IPPROTO_UDP as u8,
            extensions: 0,
            pad: 0,
            states: CONNECTED,
            id: socket.id,
        };
        let bytes = bytemuck::bytes_of(&request);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), bytes, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    /// Passes the bodies of all answers on, until the kernel says that it is done.
    fn receive(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; ANSWER_MAX];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some(bytes) = rest.get(..size_of::<Header>()) {
                let header: Header = bytemuck::pod_read_unaligned(bytes);
                let end = (header.len as usize).clamp(size_of::<Header>(), rest.len());
                let body = &rest[size_of::<Header>()..end];
                match i32::from(header.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return error(body),
                    _ => take(body),
                }
                rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// The number in `nlmsgerr`: 0 is an acknowledgement.
fn error(body: &[u8]) -> io::Result<()> {
    let number = body.get(..4).map(bytemuck::pod_read_unaligned::<i32>);
    match number {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// True if this kernel destroys UDP sockets (CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY).
pub fn can_destroy() -> bool {
    let Ok(mut diag) = Diag::open() else {
        return false;
    };
    let nobody = UdpSocket {
        family: libc::AF_INET as u8,
        id: SocketId::zeroed(),
    };
    // Without UDP in sock_diag both fail with ENOENT, so the list comes first.
    diag.connected_udp(libc::AF_INET).is_ok()
        && diag
            .destroy(&nobody)
            .is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_of_both_families_compare() {
        let socket = |family, peer: [u8; 16]| UdpSocket {
            family,
            id: SocketId {
                peer,
                peer_port: [0, 53],
                ..SocketId::zeroed()
            },
        };
        let (v4, v6) = (libc::AF_INET as u8, libc::AF_INET6 as u8);
        let mut plain = [0; 16];
        plain[..4].copy_from_slice(&[10, 4, 1, 1]);
        let mapped = Ipv4Addr::new(10, 4, 1, 1).to_ipv6_mapped().octets();
        let peer = socket(v4, plain).peer();
        assert_eq!((peer.addr.to_string(), peer.port), ("10.4.1.1".into(), 53));
        assert_eq!(socket(v6, mapped).peer(), peer);
    }

    #[test]
    fn connected_sockets_are_listed_with_their_peer() {
        let a = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        a.connect(b.local_addr().unwrap()).unwrap();
        let found = Diag::open().unwrap().connected_udp(libc::AF_INET).unwrap();
        let port = a.local_addr().unwrap().port().to_be_bytes();
        let ours = found.iter().find(|it| it.id.source_port == port).unwrap();
        assert_eq!(ours.peer().port, b.local_addr().unwrap().port());
    }
}
