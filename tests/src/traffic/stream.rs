//! A long stream, sent and received at once, every byte of it verified.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::client::{self, Connection, pattern};
use super::plan::{Plan, SocketKind, StreamPlan};
use super::report::StreamReport;

/// Larger than a GSO packet, so that segmentation happens below.
const CHUNK: usize = 128 * 1024;

/// Follows `plan`.
pub(super) fn run(plan: &StreamPlan) -> io::Result<StreamReport> {
    let start = Instant::now();
    let open = Plan::new(SocketKind::Tcp, plan.to).timeout_ms(plan.timeout_ms);
    let (Connection::Tcp(reader), Some(answer)) = client::open(&open)? else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let writer = reader.get_ref().try_clone()?;
    let bytes = plan.bytes;
    let sender = std::thread::spawn(move || send(writer, bytes));
    let received = receive(reader, bytes);
    let sent = sender
        .join()
        .map_err(|_| io::Error::other("the sender panicked"))?;
    let bytes = received?;
    sent?;
    Ok(StreamReport {
        answer,
        bytes,
        milliseconds: start.elapsed().as_millis() as u64,
    })
}

fn chunk(from: u64, bytes: u64) -> impl Iterator<Item = u8> {
    (from..bytes.min(from + CHUNK as u64)).map(pattern)
}

fn send(mut stream: TcpStream, bytes: u64) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(CHUNK);
    for from in (0..bytes).step_by(CHUNK) {
        buffer.clear();
        buffer.extend(chunk(from, bytes));
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: BufReader<TcpStream>, bytes: u64) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < bytes {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !chunk(done, bytes)
            .take(length)
            .eq(buffer[..length].iter().copied())
        {
            return Err(io::Error::other(format!(
                "the echo differs near byte {done}"
            )));
        }
        done += length as u64;
    }
    Ok(done)
}
