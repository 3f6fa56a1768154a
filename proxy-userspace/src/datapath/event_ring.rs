//! EVENTS and MONITORS as their one reader uses them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{Map, MapData, MapError, RingBuf};
use nix::fcntl::{Flock, FlockArg};
use proxy_common::{Counter, Event, Monitor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::environment;
use super::load::JIFFIES;
use super::maps::KernelMaps;
use super::pin::{PinError, PinKind, Pins};
use super::sys;
use crate::maps::Maps as _;

/// How long the datapath goes on telling when its reader is gone.
const LEASE_SECS: u32 = 3;

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// A pin is missing, or is not ours.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The datapath has no clock, or has not been configured.
    #[error("the datapath is not configured yet: it tells nothing")]
    Unconfigured,
    /// EVENTS.
    #[error("opening EVENTS")]
    Ring(#[source] Box<MapError>),
    /// Something that the kernel refused.
    #[error("{what}")]
    Kernel {
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Events as they come, while this is held.
#[derive(Debug)]
pub struct EventRing {
    ring: Ring,
    maps: KernelMaps,
    monitors: OwnedFd,
    jiffies: OwnedFd,
    hz: u32,
    /// What EventLost was when it was last asked for.
    lost: u64,
    _alone: Flock<File>,
}

struct Ring(AsyncFd<RingBuf<MapData>>);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl EventRing {
    /// Opens the pinned maps; `None` where somebody else reads. Needs a tokio runtime. What an
    /// earlier reader left is forgotten.
    pub fn open(pins: &Pins) -> Result<Option<Self>, EventsError> {
        let failed = |what| move |source| EventsError::Kernel { what, source };
        let folder = pins.folder(PinKind::Maps);
        let folder = File::open(folder).map_err(failed("opening the folder of the maps"))?;
        let Ok(alone) = Flock::lock(folder, FlockArg::LockExclusiveNonblock) else {
            return Ok(None);
        };
        let maps = KernelMaps::open(pins)?;
        let config = maps.config().ok_or(EventsError::Unconfigured)?;
        let jiffies = pins.open(PinKind::Programs, JIFFIES)?;
        let ring = MapData::from_pin(pins.path(PinKind::Maps, "EVENTS"))
            .and_then(|map| RingBuf::try_from(Map::RingBuf(map)))
            .map_err(|source| EventsError::Ring(Box::new(source)))?;
        // SAFETY: the ring is the descriptor's only owner, and never gives another one.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = ring.map_err(|error| failed("waiting for events")(error.into_parts().1))?;
        let mut ring = Self {
            ring: Ring(ring),
            monitors: pins.map("MONITORS")?.0,
            jiffies: jiffies.ok_or(EventsError::Unconfigured)?,
            hz: config.hz,
            lost: 0,
            maps,
            _alone: alone,
        };
        while ring.next().is_some() {}
        ring.lost();
        Ok(Some(ring))
    }

    /// Lets the datapath tell of these kinds for [`LEASE_SECS`] more: one event in so many.
    pub fn lease(&self, kinds: u32, one_in: u32) -> Result<(), EventsError> {
        let now = environment::now_secs(self.jiffies.as_fd(), self.hz);
        let now = now.map_err(|source| EventsError::Kernel {
            what: "reading the datapath's clock",
            source,
        })?;
        self.write(&Monitor {
            until_secs: now.saturating_add(LEASE_SECS),
            one_in,
            kinds,
            pad: 0,
        })
        .map_err(|source| EventsError::Kernel {
            what: "writing MONITORS",
            source,
        })
    }

    fn write(&self, monitor: &Monitor) -> io::Result<()> {
        sys::map_update(
            self.monitors.as_fd(),
            &0_u32.to_ne_bytes(),
            bytemuck::bytes_of(monitor),
        )
    }

    /// Waits until there may be events, and takes at most `max` of them. Nothing is lost where the
    /// future is dropped.
    pub async fn take(&mut self, max: usize) -> io::Result<Vec<Event>> {
        let mut guard = self.ring.0.readable_mut().await?;
        let mut events = Vec::new();
        while events.len() < max {
            match next(guard.get_inner_mut()) {
                Some(event) => events.push(event),
                None => {
                    guard.clear_ready();
                    break;
                }
            }
        }
        Ok(events)
    }

    fn next(&mut self) -> Option<Event> {
        next(self.ring.0.get_mut())
    }

    /// Events that found no room since this was last asked.
    pub fn lost(&mut self) -> u64 {
        let all = self.maps.counter(Counter::EventLost as u32);
        let more = all.saturating_sub(self.lost);
        self.lost = all;
        more
    }
}

impl Drop for EventRing {
    fn drop(&mut self) {
        // Else it ends by itself.
        let _ = self.write(&Monitor::default());
    }
}

/// The next record; those of another size are of another build, and left out.
fn next(ring: &mut RingBuf<MapData>) -> Option<Event> {
    loop {
        let record = ring.next()?;
        if record.len() == size_of::<Event>() {
            return Some(bytemuck::pod_read_unaligned(&record));
        }
    }
}
