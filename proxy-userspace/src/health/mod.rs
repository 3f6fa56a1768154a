//! What others are told about this node's health (section 13 of the rules): the health ports of
//! Services, `/healthz` and `/livez`, and the status server. All listen in the agent's own network
//! namespace; none of them is on the path of a packet.

pub mod debug;
pub mod exposition;
pub mod http;
pub mod latency;
pub mod metrics;
pub mod node;
pub mod pages;
pub mod proxy;
pub mod service;
pub mod services;
pub mod slis;
pub mod zpages;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use self::http::{Handler, Ipv6Only, Server};
use crate::events::{Events, Note, Regarding, Severity};

/// Pause between two tries to listen (S-149).
const BIND_RETRY: Duration = Duration::from_secs(5);

/// A server of the node itself, and what is said when it cannot listen.
#[derive(Clone)]
pub struct NodeServer {
    /// For logs: `healthz` or `metrics`.
    pub name: &'static str,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Reason of the Warning event (S-149).
    pub failed: &'static str,
    /// What it serves.
    pub handler: Handler,
}

/// A node server cannot listen, and that was declared fatal.
#[derive(Debug, thiserror::Error)]
#[error("{name}: listening on {addr}")]
pub struct BindError {
    /// Which server.
    pub name: &'static str,
    /// Where.
    pub addr: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What becomes of an address that is taken (`bindAddressHardFail`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BindFailure {
    /// It is tried again for ever.
    #[default]
    Retry,
    /// The agent ends.
    Fatal,
}

/// Starts a server of the node, which runs while the returned future is polled (S-149).
pub fn start(
    server: NodeServer,
    failure: BindFailure,
    events: &Events,
) -> Result<impl Future<Output = ()> + Send + 'static, BindError> {
    let NodeServer { name, addr, .. } = server;
    let first = match bind(addr) {
        Ok(listener) => Some(http::serve(listener, server.handler.clone())),
        Err(source) => {
            events.publish(Note {
                regarding: Regarding::Node,
                severity: Severity::Warning,
                reason: server.failed,
                action: "StartServer",
                text: format!("{name} cannot listen on {addr}: {source}"),
            });
            if failure == BindFailure::Fatal {
                return Err(BindError { name, addr, source });
            }
            None
        }
    };
    Ok(keep(server, first))
}

/// Tries until the server runs, then holds it.
async fn keep(server: NodeServer, first: Option<Server>) {
    let mut running = first;
    while running.is_none() {
        tokio::time::sleep(BIND_RETRY).await;
        let handler = Arc::clone(&server.handler);
        running = bind(server.addr)
            .ok()
            .map(|listener| http::serve(listener, handler));
    }
    tracing::info!(server = server.name, addr = %server.addr, "serving");
    std::future::pending::<()>().await;
}

/// An unspecified address of either family means every address of both, as kube-proxy has it;
/// where the kernel has no IPv6 it means every address of IPv4.
fn bind(addr: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    if !addr.ip().is_unspecified() {
        return http::bind(addr, Ipv6Only::Yes);
    }
    let any = SocketAddr::new(IpAddr::from(Ipv6Addr::UNSPECIFIED), addr.port());
    match http::bind(any, Ipv6Only::No) {
        Err(error) if addr.is_ipv4() && is_without_ipv6(&error) => http::bind(addr, Ipv6Only::Yes),
        result => result,
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

#[cfg(test)]
mod tests;
