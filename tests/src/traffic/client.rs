//! Clients: one connection, and many of them in a row.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use socket2::SockAddr;

use super::plan::{Amount, Plan};
use super::report::{Answer, Report};

/// The largest datagram.
const DATAGRAM_MAX: usize = 65_535;

/// Connections after which a plan counts as under way.
const UNDER_WAY: u32 = 30;

/// Follows `plan` to its end, until `finish` is set, or until too much failed. Calls `under_way`
/// when a plan without an end has made some connections.
pub(super) fn connect(plan: &Plan, finish: &AtomicBool, under_way: impl Fn()) -> Report {
    let mut report = Report::default();
    let more = |done: u32| match plan.amount {
        Amount::Times(count) => done < count,
        Amount::UntilFinish => !finish.load(Ordering::Acquire),
    };
    while more(report.connections) && report.failed() < plan.max_failures {
        let start_ns = monotonic_ns();
        report.connections += 1;
        match once(plan) {
            Ok(answer) => report.add_answer(&answer, start_ns),
            Err(error) => report.add_failure(&error),
        }
        std::thread::sleep(Duration::from_millis(plan.pause_ms));
        if plan.amount == Amount::UntilFinish && report.connections == UNDER_WAY {
            under_way();
        }
    }
    report
}

/// An open connection.
pub(super) enum Connection {
    /// With its reader, which may have read ahead.
    Tcp(BufReader<TcpStream>),
    /// Connected.
    UdpConnected(UdpSocket),
    /// Not connected: sends to and accepts from this address.
    Udp(UdpSocket, SockAddr),
}

fn once(plan: &Plan) -> io::Result<Answer> {
    let (mut connection, greeting) = open(plan)?;
    match greeting {
        Some(answer) if plan.payload == 0 => Ok(answer),
        Some(mut answer) => {
            answer.from = ask(&mut connection, plan.payload)?.from;
            Ok(answer)
        }
        None => ask(&mut connection, plan.payload),
    }
}

/// Opens a connection; a TCP server greets at once.
pub(super) fn open(plan: &Plan) -> io::Result<(Connection, Option<Answer>)> {
    use super::SocketKind::{Sctp, Tcp, TcpBlocking, Udp, UdpConnected};
    let socket = plan.socket.socket(plan.to)?;
    let limit = Duration::from_millis(plan.timeout_ms);
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    if let Some(source) = plan.source {
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
    }
    let to = SockAddr::from(plan.to);
    match plan.socket {
        Tcp => socket.connect_timeout(&to, limit)?,
        TcpBlocking | Sctp | UdpConnected => socket.connect(&to)?,
        Udp => return Ok((Connection::Udp(socket.into(), to), None)),
    }
    if plan.socket == UdpConnected {
        return Ok((Connection::UdpConnected(socket.into()), None));
    }
    let mut reader = BufReader::new(TcpStream::from(socket));
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut answer: Answer = serde_json::from_str(&line)?;
    answer.from = Some(reader.get_ref().peer_addr()?);
    Ok((Connection::Tcp(reader), Some(answer)))
}

/// Sends `payload` bytes and verifies that they come back. A TCP server does not say its name
/// again: the answer then holds the client's view only.
pub(super) fn ask(connection: &mut Connection, payload: usize) -> io::Result<Answer> {
    let sent: Vec<u8> = (0..payload).map(|at| pattern(at as u64)).collect();
    match connection {
        Connection::Tcp(reader) => ask_tcp(reader, &sent),
        Connection::UdpConnected(socket) => {
            socket.send(&sent)?;
            let mut buffer = vec![0; DATAGRAM_MAX];
            let length = socket.recv(&mut buffer)?;
            let mut answer = read_datagram(&buffer[..length], &sent)?;
            answer.from = Some(socket.peer_addr()?);
            Ok(answer)
        }
        Connection::Udp(socket, to) => {
            let to = to.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
            socket.send_to(&sent, to)?;
            let mut buffer = vec![0; DATAGRAM_MAX];
            let (length, from) = socket.recv_from(&mut buffer)?;
            let mut answer = read_datagram(&buffer[..length], &sent)?;
            answer.from = Some(from);
            Ok(answer)
        }
    }
}

fn ask_tcp(reader: &mut BufReader<TcpStream>, sent: &[u8]) -> io::Result<Answer> {
    reader.get_mut().write_all(sent)?;
    let mut echo = vec![0; sent.len()];
    reader.read_exact(&mut echo)?;
    if echo != sent {
        return Err(io::Error::other("the echo differs"));
    }
    let (peer, from) = (
        reader.get_ref().local_addr()?,
        reader.get_ref().peer_addr()?,
    );
    Ok(Answer {
        server: String::new(),
        peer,
        from: Some(from),
    })
}

/// A datagram is the server's line, then the echo.
fn read_datagram(datagram: &[u8], sent: &[u8]) -> io::Result<Answer> {
    let mut parts = datagram.splitn(2, |byte| *byte == b'\n');
    let answer = serde_json::from_slice(parts.next().unwrap_or_default())?;
    if parts.next() != Some(sent) {
        return Err(io::Error::other("the echo differs"));
    }
    Ok(answer)
}

/// The byte at offset `at` of everything that is sent: no run of it looks like another nearby.
pub(super) fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// CLOCK_MONOTONIC, the same for all processes of the machine.
pub fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    time.as_nanos() as u64
}
