//! Questions to the servers of an agent.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::net::Netns;

/// Until a client gives up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Status and what is behind the status line.
pub fn get(netns: &Netns, to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    let text = netns.enter(move || -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let (status, rest) = text.split_once("\r\n").context("no status line")?;
    let status = status.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, rest.to_owned()))
}
