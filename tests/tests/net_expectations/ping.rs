//! ICMP echo requests to Service addresses.

use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};
use tests::rig::{Client, Rig};
use tests::topology::addresses::{FAMILIES, service};

/// Limit of a wait for nothing.
const SILENCE: Duration = Duration::from_millis(300);
const ECHO_REQUEST4: u8 = 8;
const ECHO_REQUEST6: u8 = 128;

/// What a ping came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Refused,
    Silence,
    Answered,
    Unreachable,
}

/// W-7: a ping of a ClusterIP is answered by "port unreachable", that of an unallocated Service
/// address not at all. Returns what differs.
pub fn check(rig: &Rig) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for client in [Client::Pod, Client::Node, Client::Outside] {
        let netns = rig.place(client)?.netns;
        netns.sysctl("net/ipv4/ping_group_range", "0 0")?;
        for family in FAMILIES {
            for (number, expected) in [(10, Outcome::Refused), (200, Outcome::Silence)] {
                let to = service(number).of(family);
                let outcome = netns.enter(|| ping(to))??;
                if outcome != expected {
                    failures.push(format!(
                        "ping (S-077, S-078, S-135, W-7) {client:?} to {to}: {outcome:?} \
                         instead of {expected:?}"
                    ));
                }
            }
        }
    }
    Ok(failures)
}

fn ping(to: IpAddr) -> std::io::Result<Outcome> {
    let (domain, protocol, kind) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, ECHO_REQUEST4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, ECHO_REQUEST6),
    };
    let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.connect(&std::net::SocketAddr::new(to, 0).into())?;
    let sent = socket.send(&[kind, 0, 0, 0, 0, 0, 0, 1, b's', b'h', b'u', b'n', b't']);
    let received = sent.and_then(|_| socket.read(&mut [0; 64]));
    match received {
        Ok(_) => Ok(Outcome::Answered),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Outcome::Refused),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Outcome::Silence),
        // What a process of this node hears of a packet that is dropped on its way out.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Outcome::Silence),
        Err(error) if error.kind() == ErrorKind::HostUnreachable => Ok(Outcome::Unreachable),
        Err(error) => Err(error),
    }
}
