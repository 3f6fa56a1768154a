//! What a node's own servers say.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use tests::net::Netns;

use crate::PATIENCE;

/// The status and the body of an answer to GET.
pub fn get(netns: &Netns, to: &str, path: &str) -> Result<(u16, String)> {
    let to: SocketAddr = to.parse()?;
    let text = netns.enter(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// A sample of `/metrics`.
pub fn metric(netns: &Netns, name: &str) -> Result<f64> {
    let (_, text) = get(netns, "127.0.0.1:10249", "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("no {name} in {text}"))?;
    Ok(line.trim().parse()?)
}
