//! The server of every figure, at one port: the first byte of a connection says what it is for.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};

use super::{BURST, COUNT, ECHO, ONE_BYTE, SMALL};

/// Threads that accept, and serve short connections themselves.
const ACCEPTING: usize = 4;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Read at once of a stream.
const CHUNK: usize = 256 * 1024;

/// Listens, and serves on threads of its own until the process ends.
pub(super) fn start(listen: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    let listener = Arc::new(TcpListener::from(socket));
    for _ in 0..ACCEPTING {
        let listener = Arc::clone(&listener);
        std::thread::spawn(move || accept(&listener));
    }
    let datagrams = UdpSocket::bind(listen)?;
    std::thread::spawn(move || answer_datagrams(&datagrams));
    Ok(())
}

fn accept(listener: &TcpListener) {
    loop {
        // A connection that is reset before it is accepted, or read from, is none.
        if let Ok((stream, _)) = listener.accept() {
            let _ = answer(stream);
        }
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut first = [0];
    stream.read_exact(&mut first)?;
    match first[0] {
        ONE_BYTE => stream.write_all(&first)?,
        ECHO => drop(std::thread::spawn(move || echo(stream))),
        COUNT => drop(std::thread::spawn(move || count(stream))),
        _ => {}
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; SMALL];
    loop {
        stream.read_exact(&mut buffer)?;
        stream.write_all(&buffer)?;
    }
}

/// Says at the end how many bytes there were.
fn count(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&bytes.to_be_bytes()),
            length => bytes += length as u64,
        }
    }
}

/// Answers the last datagram of each burst.
fn answer_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; SMALL];
    loop {
        // An error belongs to an earlier answer, whose client is gone.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some((number, _)) = buffer[..length].split_first_chunk() else {
            continue;
        };
        if u64::from_be_bytes(*number) % BURST == BURST - 1 {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    }
}
