//! Many changes at once, as fast as the API server carries them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};

use super::PATIENCE;
use super::agent::Process;
use super::probe::{Probe, move_endpoint};
use super::server::Server;
use crate::control_plane::{Options, Percentiles};
use crate::objects::{self, NAMESPACE, Size};
use crate::state::State;

/// Writes under way at once.
const WRITERS: u32 = 32;
/// This Service is left to the probe, which shows how late a change becomes visible meanwhile.
const PROBED: u32 = 0;
/// Between two changes by the probe.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// Changes endpoints until the time is over, then waits for the exact state.
pub fn storm(
    server: &Server,
    agent: &Process,
    options: &Options,
    (size, probe): (Size, &mut Probe),
    rounds: &mut [u32],
) -> Result<()> {
    if options.storm_secs == 0 || size.services < 2 {
        return Ok(());
    }
    let started = Instant::now();
    let over = Duration::from_secs(options.storm_secs.into());
    let mut late = Vec::new();
    let mut of_storm = rounds.to_vec();
    let written = std::thread::scope(|scope| {
        let of_storm = &mut of_storm;
        let writers = scope.spawn(move || {
            server.run(|client| async move { write(client, size, options, of_storm).await })?
        });
        while started.elapsed() < over {
            std::thread::sleep(PROBE_EVERY);
            let change = probe.change(PROBED, rounds)?;
            late.push((change.visible - change.watched).max(0.0) * 1e3);
        }
        let written = writers.join();
        written.map_err(|_| anyhow!("the writers panicked"))?
    })?;
    let (ended, took) = (Instant::now(), started.elapsed().as_secs_f64());
    of_storm[PROBED as usize] = rounds[PROBED as usize];
    rounds.copy_from_slice(&of_storm);
    let mut state = State::open(&agent.bpffs)?;
    while let Err(error) = state.check(size, rounds) {
        ensure!(ended.elapsed() < PATIENCE, "{error:#}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let exact = ended.elapsed().as_secs_f64() * 1e3;
    let halves = late.split_at(late.len() / 2);
    let [first, second] = [halves.0, halves.1].map(|half| Percentiles::of(half.to_vec()).p50);
    println!(
        "storm: {:.0} changes/s of {} asked for were carried for {took:.1} s; one change meanwhile \
         was visible {first:.2} ms after a bare watch had it in the first half (median), \
         {second:.2} ms in the second; exact state of {} Services {exact:.0} ms after the last \
         write",
        f64::from(written) / took,
        options.storm_rate,
        size.services
    );
    Ok(())
}

/// Writes at the rate that is asked for, or as fast as it goes. The last write of each Service is
/// the one that counts: no two of one Service are under way.
async fn write(client: Client, size: Size, options: &Options, rounds: &mut [u32]) -> Result<u32> {
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    let slices = &slices;
    let started = Instant::now();
    let over = Duration::from_secs(options.storm_secs.into());
    let others = size.services - 1;
    let writes = futures::stream::iter(0..options.storm_rate * options.storm_secs)
        .then(|change| async move {
            let due = f64::from(change) / f64::from(options.storm_rate);
            let wait = Duration::from_secs_f64(due).saturating_sub(started.elapsed());
            tokio::time::sleep(wait).await;
            change
        })
        .take_while(|_| futures::future::ready(started.elapsed() < over))
        .map(|change| {
            let service = 1 + change % others;
            let round = &mut rounds[service as usize];
            *round += 1;
            let patch = move_endpoint(size, service, *round);
            let name = objects::slice_name(service, 0);
            async move {
                let how = PatchParams::default();
                slices.patch(&name, &how, &Patch::Merge(patch)).await
            }
        });
    let mut writes = std::pin::pin!(writes.buffered(WRITERS.min(others) as usize));
    let mut count = 0;
    while let Some(written) = writes.next().await {
        written.context("writing to the API")?;
        count += 1;
    }
    Ok(count)
}
