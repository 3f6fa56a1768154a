//! How often our programs have run, and how long that took: what the kernel counts while somebody
//! asks it to (`BPF_ENABLE_STATS`, kernel commit d46edd671a14).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};

use super::load;
use super::pin::{PinKind, Pins};

/// Whether the agent makes the kernel count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProgramStats {
    /// While it runs.
    On,
    /// Only where somebody else does (`kernel.bpf_stats_enabled`).
    #[default]
    Off,
}

/// What one program has done since it was loaded, at all its hooks, while the kernel counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramRuns {
    /// Its name.
    pub name: String,
    /// How often it ran.
    pub count: u64,
    /// How long in all.
    pub time: Duration,
}

/// Makes the kernel count until the result is dropped, on which every run of every BPF program of
/// the machine spends the time of two readings of the clock.
pub fn count() -> io::Result<OwnedFd> {
    enable_stats(Stats::RunTime).map_err(|error| error.io_error)
}

/// All pinned programs by name. One that cannot be read is left out, and so are the maps that are
/// pinned beside them, of which the kernel tells something, too.
pub fn runs(pins: &Pins) -> Vec<ProgramRuns> {
    let names = pins.names(PinKind::Programs).into_iter();
    let programs = names.filter(|name| load::programs().any(|program| program == name));
    let found = programs.filter_map(|name| {
        let info = ProgramInfo::from_pin(pins.path(PinKind::Programs, &name)).ok()?;
        Some(ProgramRuns {
            name,
            count: info.run_count(),
            time: info.run_time(),
        })
    });
    found.collect()
}
