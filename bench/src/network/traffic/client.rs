//! The client of every figure.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::unistd::alarm;
use socket2::{Domain, Socket, Type};

use super::{BURST, COUNT, ECHO, ONE_BYTE, Outcome, Request, SMALL, Task};

/// Threads that connect side by side: enough to keep client and server busy.
const CONNECTING: usize = 4;
/// Written at once to a stream: larger than a GSO packet.
const CHUNK: usize = 128 * 1024;
/// Bursts of datagrams under way: together less than a socket's buffer.
const BURSTS: u64 = 4;
/// A burst that is not answered within this time has lost a datagram.
const LOST: Duration = Duration::from_millis(100);
/// Seconds after which a process that still waits is ended.
const ALARM_SECS: u32 = 30;

/// Does what it is asked; an error names what went wrong.
pub(super) fn run(request: &Request) -> io::Result<Outcome> {
    let (to, limit) = (request.to, Duration::from_millis(request.millis));
    alarm::set(ALARM_SECS + limit.as_secs() as u32);
    let outcome = match request.task {
        Task::Stream => stream(to, limit),
        Task::Latency => latency(to, limit),
        Task::Connects => connects(to, limit),
        Task::Datagrams => datagrams(to, limit),
        Task::ConnectCalls => connect_calls(to, limit),
    };
    alarm::cancel();
    outcome
}

fn stream(to: SocketAddr, limit: Duration) -> io::Result<Outcome> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(&[COUNT])?;
    let chunk = vec![0; CHUNK];
    let start = Instant::now();
    loop {
        stream.write_all(&chunk)?;
        if start.elapsed() >= limit {
            break;
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let mut bytes = [0; size_of::<u64>()];
    stream.read_exact(&mut bytes)?;
    let rate = u64::from_be_bytes(bytes) as f64 * 8.0 / start.elapsed().as_secs_f64();
    Ok(Outcome {
        values: vec![rate],
        calls: 1,
    })
}

fn latency(to: SocketAddr, limit: Duration) -> io::Result<Outcome> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[ECHO])?;
    let mut buffer = [0; SMALL];
    let mut micros = Vec::new();
    let start = Instant::now();
    let mut now = start;
    loop {
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        let end = Instant::now();
        micros.push((end - now).as_secs_f64() * 1e6);
        now = end;
        if now - start >= limit {
            break;
        }
    }
    micros.sort_by(f64::total_cmp);
    let at = |share: f64| micros[((micros.len() - 1) as f64 * share) as usize];
    Ok(Outcome {
        values: vec![at(0.5), at(0.99)],
        calls: 1,
    })
}

fn connects(to: SocketAddr, limit: Duration) -> io::Result<Outcome> {
    let start = Instant::now();
    let counts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTING)
            .map(|_| scope.spawn(move || connect_until(to, start + limit)))
            .collect();
        let counts = threads.into_iter().map(|thread| match thread.join() {
            Ok(count) => count,
            Err(_) => Err(io::Error::other("a thread panicked")),
        });
        counts.sum::<io::Result<u64>>()
    })?;
    Ok(Outcome {
        values: vec![counts as f64 / start.elapsed().as_secs_f64()],
        calls: counts,
    })
}

/// The client ends each by a reset. Otherwise every connection would keep a port for a minute or
/// two, where somebody chooses source ports even one of those that all clients share, and the
/// figure would be how long a free one is looked for.
fn connect_until(to: SocketAddr, end: Instant) -> io::Result<u64> {
    let mut count = 0;
    loop {
        let mut stream = TcpStream::from(resetting(to)?);
        stream.write_all(&[ONE_BYTE])?;
        stream.read_exact(&mut [0])?;
        count += 1;
        if Instant::now() >= end {
            return Ok(count);
        }
    }
}

/// A connection that is reset when it is dropped, and leaves nothing behind.
fn resetting(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect(&to.into())?;
    Ok(socket)
}

/// An unconnected socket: its datagrams are translated one by one, by whoever does it.
fn datagrams(to: SocketAddr, limit: Duration) -> io::Result<Outcome> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(LOST))?;
    let mut datagram = [0; SMALL];
    let (mut sent, mut answered, mut waiting) = (0_u64, 0_u64, 0);
    let start = Instant::now();
    let mut end = start;
    while waiting > 0 || end - start < limit || answered == 0 {
        while waiting < BURSTS && end - start < limit {
            for _ in 0..BURST {
                datagram[..8].copy_from_slice(&sent.to_be_bytes());
                socket.send_to(&datagram, to)?;
                sent += 1;
            }
            waiting += 1;
        }
        match socket.recv_from(&mut datagram) {
            Ok(_) => {
                answered += 1;
                waiting = waiting.saturating_sub(1);
                end = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                waiting = 0;
                end = Instant::now();
                if answered == 0 && end - start > limit + LOST * 20 {
                    return Err(io::Error::other("no datagram was answered"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    let rate = (answered * BURST) as f64 / (end - start).as_secs_f64();
    Ok(Outcome {
        values: vec![rate],
        calls: sent,
    })
}

/// Each connection is reset at once.
fn connect_calls(to: SocketAddr, limit: Duration) -> io::Result<Outcome> {
    let mut nanos = Vec::new();
    let start = Instant::now();
    while start.elapsed() < limit || nanos.is_empty() {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_linger(Some(Duration::ZERO))?;
        let address = to.into();
        let before = Instant::now();
        socket.connect(&address)?;
        nanos.push(before.elapsed().as_nanos() as f64);
    }
    Ok(Outcome {
        calls: nanos.len() as u64,
        values: nanos,
    })
}
