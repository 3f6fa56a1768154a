//! Single changes: written to the API, seen by a client that only watches, and looked up.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures::TryStreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::PATIENCE;
use super::agent::Process;
use super::server::{IFINDEX, Server, with_client};
use crate::lookup::Lookup;
use crate::objects::{self, NAMESPACE, Size};

/// Between two looks at the maps: they cost a processor that others need.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// Seconds from the moment before a write to the API.
pub struct Change {
    /// Until the client that only watches had the event.
    pub watched: f64,
    /// Until a lookup returned the backend.
    pub visible: f64,
}

/// Changes one endpoint after the other. Lives in the server's namespace.
pub struct Probe {
    size: Size,
    lookup: Lookup,
    watched: Receiver<(String, Instant)>,
    writes: Sender<(String, Value)>,
}

impl Probe {
    /// Starts a thread that writes, and one that watches. The first ends with the probe.
    pub fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        server: &'env Server,
        agent: &Process,
        size: Size,
    ) -> Result<(Self, ScopedJoinHandle<'scope, Result<()>>)> {
        let watched = watch(server)?;
        let (writes, to_write) = channel();
        let writer = scope.spawn(|| server.run(|client| write(client, to_write))?);
        let lookup = Lookup::open(&agent.bpffs, IFINDEX)?;
        let probe = Self {
            size,
            lookup,
            watched,
            writes,
        };
        Ok((probe, writer))
    }

    /// Moves the first endpoint of a Service, and waits until both have seen it.
    pub fn change(&mut self, service: u32, rounds: &mut [u32]) -> Result<Change> {
        let round = &mut rounds[service as usize];
        *round += 1;
        let name = objects::slice_name(service, 0);
        let patch = move_endpoint(self.size, service, *round);
        let start = Instant::now();
        self.writes
            .send((name.clone(), patch))
            .context("the writer ended")?;
        let backend = objects::endpoint(service, 0, *round);
        let frontend = objects::cluster_ip(service);
        while !self.lookup.reaches(frontend, backend)? {
            ensure!(
                start.elapsed() < PATIENCE,
                "{frontend} never leads to {backend}"
            );
            std::thread::sleep(LOOK_EVERY);
        }
        let visible = start.elapsed().as_secs_f64();
        let seen = loop {
            let (seen, at) = self.watched.recv_timeout(PATIENCE).context("no event")?;
            if seen == name {
                break at;
            }
        };
        Ok(Change {
            watched: seen.saturating_duration_since(start).as_secs_f64(),
            visible,
        })
    }
}

/// The patch that moves the first endpoint of a Service.
pub fn move_endpoint(size: Size, service: u32, round: u32) -> Value {
    let slice = objects::slice(size, service, 0, round);
    json!({"endpoints": slice["endpoints"]})
}

/// Ends a probe; an error of its writer is one of the bench.
pub fn end(probe: Probe, writer: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    drop(probe);
    let written = writer.join();
    written.map_err(|_| anyhow!("the writer panicked"))?
}

/// Writes what it is told to; the write that is under way is the only one.
async fn write(client: Client, writes: Receiver<(String, Value)>) -> Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    for (name, patch) in writes {
        slices
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
    }
    Ok(())
}

/// Watches slices on a thread of its own, and does nothing but note when events came.
fn watch(server: &Server) -> Result<Receiver<(String, Instant)>> {
    let (sender, receiver) = channel();
    let list = |client: Client| async move {
        let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
        let list = slices.list(&ListParams::default().limit(1)).await?;
        anyhow::Ok(list.metadata.resource_version.unwrap_or_default())
    };
    let version = server.run(list)??;
    let (path, netns) = (server.lab.kubeconfig(), server.netns.clone());
    std::thread::spawn(move || {
        let watched = with_client(&netns, path, |client| async move {
            let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
            let events = slices.watch(&WatchParams::default(), &version).await?;
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.try_next().await? {
                if let WatchEvent::Modified(slice) = event
                    && sender
                        .send((slice.metadata.name.unwrap_or_default(), Instant::now()))
                        .is_err()
                {
                    break;
                }
            }
            anyhow::Ok(())
        });
        if let Err(error) = watched.and_then(|result| result) {
            eprintln!("the bare watch ended: {error:#}");
        }
    });
    Ok(receiver)
}
