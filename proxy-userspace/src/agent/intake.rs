//! The datapath is loaded while the first lists come: the kernel verifies programs for seconds, and
//! servers write lists for as long.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::health::counts;
use super::{AgentError, BATCH_MAX, cpu_time, setup};
use crate::datapath::maps::KernelMaps;
use crate::datapath::{Datapath, DatapathOptions, environment, load};
use crate::health::latency::Triggers;
use crate::maps::Maps as _;
use crate::objects::ObjectEvent;
use crate::pipeline::store::Store;
use crate::settings::Settings;

/// What is there when the datapath is loaded.
pub(super) struct Intake {
    pub(super) datapath: Datapath,
    pub(super) maps: KernelMaps,
    /// With what the datapath must know of this machine.
    pub(super) settings: Settings,
    /// What the source has told meanwhile.
    pub(super) store: Store,
    /// How many Services and EndpointSlices that were, and when the slices have changed.
    pub(super) told: ([u64; 2], Triggers),
    /// CPU time of this process at the end.
    pub(super) cpu: Duration,
}

/// Loads the datapath on a thread of its own, and takes objects in meanwhile. Nothing is computed
/// from them (S-007).
pub(super) async fn load(
    (options, settings): (DatapathOptions, Settings),
    objects: &mut mpsc::Receiver<ObjectEvent>,
) -> Result<Intake, AgentError> {
    let mut loading = spawn_blocking(move || load_datapath(&options, settings));
    let mut store = Store::default();
    let mut triggers = Triggers::new(jiff::Timestamp::now());
    let (mut batch, mut all) = (Vec::new(), [0; 2]);
    let loaded = loop {
        tokio::select! {
            biased;
            loaded = &mut loading => break loaded,
            count = objects.recv_many(&mut batch, BATCH_MAX) => {
                if count == 0 {
                    return Err(AgentError::SourceEnded);
                }
                for (all, more) in all.iter_mut().zip(counts(&batch)) {
                    *all += more;
                }
                batch.iter_mut().for_each(|event| triggers.take(event));
                batch.drain(..).for_each(|event| store.handle(event));
            }
        }
    };
    let (datapath, maps, settings) = match loaded {
        Ok(loaded) => loaded?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    tracing::debug!(is_synced = store.is_synced(), "datapath loaded");
    Ok(Intake {
        datapath,
        maps,
        settings,
        store,
        told: (all, triggers),
        cpu: cpu_time(),
    })
}

fn load_datapath(
    options: &DatapathOptions,
    settings: Settings,
) -> Result<(Datapath, KernelMaps, Settings), AgentError> {
    let (datapath, maps) = Datapath::load(options)?;
    setup::follow_bpf_log(&datapath, options.bpf_log);
    let jiffies = datapath.programs().get(load::JIFFIES);
    let known = maps.config().map(|config| config.hz);
    let hz = environment::hz(known, jiffies).map_err(|source| AgentError::Machine {
        what: "measuring the clock",
        source,
    })?;
    let settings = Settings {
        hz,
        host_netns_cookie: environment::netns_cookie(),
        ..settings
    };
    environment::prepare(&settings.snat_ports);
    Ok((datapath, maps, settings))
}
