//! Echo servers that name themselves.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use super::plan::Server;
use super::report::Answer;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4_096;
/// Read and written at once.
const CHUNK: usize = 256 * 1024;

/// Listens, then serves on threads of its own until the process ends.
pub(super) fn start(server: &Server) -> io::Result<()> {
    let socket = server.socket.socket(server.listen)?;
    socket.set_reuse_address(true)?;
    if server.listen.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&server.listen.into())?;
    let name = server.name.clone();
    if server.socket.is_stream() {
        socket.listen(BACKLOG)?;
        let is_tcp = server.socket.is_tcp();
        std::thread::spawn(move || accept(&name, is_tcp, &socket.into()));
    } else {
        std::thread::spawn(move || answer_datagrams(&name, &socket.into()));
    }
    Ok(())
}

fn accept(name: &str, is_tcp: bool, listener: &TcpListener) {
    loop {
        // A connection that its client reset before it was accepted is no reason to stop.
        let Ok((stream, peer)) = listener.accept() else {
            continue;
        };
        let name = name.to_owned();
        std::thread::spawn(move || echo(&name, is_tcp, stream, peer));
    }
}

fn echo(name: &str, is_tcp: bool, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    if is_tcp {
        stream.set_nodelay(true)?;
    }
    stream.write_all(&greeting(name, peer))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

fn answer_datagrams(name: &str, socket: &UdpSocket) {
    let mut buffer = vec![0; CHUNK];
    loop {
        // An error belongs to an earlier answer (ICMP), not to this socket.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let mut answer = greeting(name, peer);
        answer.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&answer, peer);
    }
}

/// One JSON line.
fn greeting(name: &str, peer: SocketAddr) -> Vec<u8> {
    let answer = Answer {
        server: name.to_owned(),
        peer,
        from: None,
    };
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    line
}
