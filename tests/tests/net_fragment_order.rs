//! Fragments that come in another order than they were sent: what arrives of them, and what is lost
//! is counted.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, UdpHeader};
use proxy_common::Counter;
use socket2::{Domain, Protocol, Socket, Type};
use tests::rig::{Client, Rig, Target};
use tests::rules;
use tests::topology::Variant;
use tests::topology::addresses::FAMILIES;

/// Bytes of the datagrams, without their UDP header.
const LEN: usize = 1_000;
/// Bytes of the UDP datagram in each fragment but the last: three fragments.
const FRAGMENT: usize = 400;
const TTL: u8 = 64;
/// Limit of a wait: what is lost never comes.
const WAIT: Duration = Duration::from_secs(60);

/// A client that makes its packets itself.
struct Sender {
    raw: Socket,
    /// Gets the answers.
    socket: UdpSocket,
    from: SocketAddr,
    to: SocketAddr,
    id: u16,
}

impl Sender {
    /// The identification of its first datagram is `id`: a node remembers datagrams by it and by
    /// their addresses, so each has its own.
    fn new(rig: &Rig, client: Client, to: SocketAddr, id: u16) -> Result<Self> {
        let (domain, unspecified) = match to {
            SocketAddr::V4(_) => (Domain::IPV4, "0.0.0.0:0"),
            SocketAddr::V6(_) => (Domain::IPV6, "[::]:0"),
        };
        let made = rig.place(client)?.netns.enter(|| -> Result<_> {
            let raw = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
            let socket = UdpSocket::bind(unspecified)?;
            // The address that the route to the frontend has.
            let asked = UdpSocket::bind(unspecified)?;
            asked.connect(to)?;
            Ok((raw, socket, asked.local_addr()?.ip()))
        })?;
        let (raw, socket, ip) = made?;
        socket.set_read_timeout(Some(WAIT))?;
        let from = SocketAddr::new(ip, socket.local_addr()?.port());
        Ok(Self {
            raw,
            socket,
            from,
            to,
            id,
        })
    }

    /// Sends a datagram of `LEN` times `byte` as fragments, in this order.
    fn send(&mut self, byte: u8, order: [usize; 3]) -> Result<()> {
        let payload = [byte; LEN];
        let fragments = fragments(self.from, self.to, self.id, &payload)?;
        self.id += 1;
        for index in order {
            let to = SocketAddr::new(self.to.ip(), 0);
            self.raw.send_to(&fragments[index], &to.into())?;
        }
        Ok(())
    }

    /// The byte of the datagram that is answered next.
    fn answered(&self) -> Result<u8> {
        let mut answer = vec![0; 2 * LEN];
        let (len, _) = self.socket.recv_from(&mut answer).context("no answer")?;
        ensure!(len > LEN, "{len} bytes");
        let echo = &answer[len - LEN..len];
        ensure!(echo.iter().all(|byte| *byte == echo[0]), "mixed up");
        Ok(echo[0])
    }
}

fn fragments(from: SocketAddr, to: SocketAddr, id: u16, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
    let udp = match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => UdpHeader::with_ipv4_checksum(
            from.port(),
            to.port(),
            &Ipv4Header::new(0, TTL, IpNumber::UDP, src.octets(), dst.octets())?,
            payload,
        )?,
        (IpAddr::V6(src), IpAddr::V6(dst)) => UdpHeader::with_ipv6_checksum(
            from.port(),
            to.port(),
            &Ipv6Header {
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            },
            payload,
        )?,
        _ => anyhow::bail!("{from} and {to} are of two families"),
    };
    let datagram = [udp.to_bytes().as_slice(), payload].concat();
    let parts = datagram.chunks(FRAGMENT).enumerate();
    let last = datagram.len().div_ceil(FRAGMENT) - 1;
    parts
        .map(|(index, part)| {
            let offset = IpFragOffset::try_new((index * FRAGMENT / 8) as u16)?;
            let header = header(from.ip(), to.ip(), part.len(), (offset, index < last, id))?;
            Ok([header.as_slice(), part].concat())
        })
        .collect()
}

/// The headers in front of a fragment.
fn header(
    from: IpAddr,
    to: IpAddr,
    len: usize,
    (offset, has_more, id): (IpFragOffset, bool, u16),
) -> Result<Vec<u8>> {
    Ok(match (from, to) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let (src, dst) = (src.octets(), dst.octets());
            let mut header = Ipv4Header::new(len as u16, TTL, IpNumber::UDP, src, dst)?;
            header.dont_fragment = false;
            header.more_fragments = has_more;
            header.fragment_offset = offset;
            header.identification = id;
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, has_more, id.into());
            let fragment = fragment.to_bytes();
            let header = Ipv6Header {
                payload_length: (fragment.len() + len) as u16,
                next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
                hop_limit: TTL,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            [&header.to_bytes()[..], &fragment[..]].concat()
        }
        _ => anyhow::bail!("{from} and {to} are of two families"),
    })
}

/// Fragments without their first one that n1 has seen: dropped where nobody but a frontend can be
/// meant, left to the stack at an address of the node.
fn without_first(rig: &Rig) -> Result<u64> {
    let maps = rig.agents[0].maps()?;
    let counters = [Counter::FrontendFragment, Counter::FragmentUnknown];
    let counts = counters.map(|counter| maps.counter(counter as u32));
    Ok(counts.iter().sum())
}

/// S-131, S-133: only the first fragment has ports. Behind it the others come in any order; one
/// before it is not translated, and the datagram is lost.
#[test]
fn fragments_come_in_any_order_behind_the_first() -> Result<()> {
    rules(&["S-131", "S-133"]);
    let rig = Rig::new(Variant::default(), &[])?;
    let mut id = 1;
    for (client, target) in [
        (Client::PodAsPackets, Target::ClusterIp("far")),
        (Client::Outside, Target::NodePort1("near")),
        (Client::Outside, Target::NodePort1("far")),
    ] {
        for family in FAMILIES {
            let who = format!("{client:?} to {target:?}, {family:?}");
            let mut sender = Sender::new(&rig, client, rig.address(target, family), id)?;
            id += 100;
            sender.send(b'a', [0, 1, 2])?;
            ensure!(sender.answered().context(who.clone())? == b'a', "{who}");
            sender.send(b'b', [0, 2, 1])?;
            ensure!(sender.answered().context(who.clone())? == b'b', "{who}");
            let before = without_first(&rig)?;
            sender.send(b'c', [1, 0, 2])?;
            sender.send(b'd', [0, 1, 2])?;
            let next = sender.answered().context(who.clone())?;
            ensure!(next == b'd', "{who}: {} was answered", next as char);
            let more = without_first(&rig)? - before;
            ensure!(more == 1, "{who}: {more} are counted");
        }
    }
    Ok(())
}
