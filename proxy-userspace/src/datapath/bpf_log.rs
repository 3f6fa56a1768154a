//! What BPF programs log of single packets, by aya-log, and how it comes into this process' log.
//!
//! Off unless asked for: then the verifier takes all of it out of the programs, and there is no
//! ring. Whether programs log is decided when they are loaded, so another level loads them anew.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::{io, thread};

use aya_log::EbpfLogger;
use clap::ValueEnum;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proxy_common::EVENTS_SIZE;
use serde::{Deserialize, Serialize};

use super::catalog::MapKind;
use super::pin::{PinError, PinKind, Pins};
use super::sys;

/// Name of aya-log's map. It is pinned beside the programs: all that log, log into one.
pub const RING: &str = "AYA_LOGS";

/// The last level that programs log; each holds those before it. The numbers are aya-log's.
#[derive(
    ValueEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum BpfLog {
    /// Nothing.
    #[default]
    Off = 0,
    /// Drops that the programs themselves are at fault for.
    Error = aya_log::Level::Error as u8,
    /// All drops.
    Warn = aya_log::Level::Warn as u8,
    /// Refusals.
    Info = aya_log::Level::Info as u8,
    /// New flows.
    Debug = aya_log::Level::Debug as u8,
}

/// Why what programs log is not read.
#[derive(Debug, thiserror::Error)]
pub enum BpfLogError {
    /// The program has no ring, or it cannot be opened.
    #[error("opening {RING}")]
    Ring(#[source] Box<aya_log::Error>),
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

/// Where the ring is pinned that programs are loaded with. Those that log nothing still name one,
/// in code that is never run: EVENTS, which is made here if the maps of `kind` lack it.
pub(super) fn ring(level: BpfLog, pins: &Pins, kind: PinKind) -> Result<PathBuf, PinError> {
    const EVENTS: &str = "EVENTS";
    if level != BpfLog::Off {
        return Ok(pins.path(PinKind::Programs, RING));
    }
    let path = pins.path(kind, EVENTS);
    if pins.open(kind, EVENTS)?.is_none() {
        let made = sys::map_create_named(EVENTS, MapKind::RingBuf as u32, [0, 0, EVENTS_SIZE]);
        made.and_then(|map| sys::pin(map.as_fd(), &path))
            .map_err(|source| PinError::Write {
                path: path.clone(),
                source,
            })?;
    }
    Ok(path)
}

/// The kernel's id of the pinned ring.
pub(super) fn ring_id(pins: &Pins) -> Result<u32, PinError> {
    let path = pins.path(PinKind::Programs, RING);
    let id = sys::open_pinned(&path).and_then(|ring| sys::map_info(ring.as_fd()));
    id.map(|info| info.id)
        .map_err(|source| PinError::Open { path, source })
}

/// Removes the pin: it is another start's.
pub(super) fn forget(pins: &Pins) -> Result<(), PinError> {
    pins.remove(PinKind::Programs, RING)
}

/// Reads what `program`, and all that are loaded with it, log, on a thread of its own, until this
/// process ends. It goes through the crate log, and so into this process' log, with the target
/// `bpf`.
pub fn follow(program: BorrowedFd<'_>) -> Result<(), BpfLogError> {
    let failed = |what| move |source| BpfLogError::Kernel { what, source };
    let id = sys::object_id(program).map_err(failed("reading the id of a program"))?;
    let logger =
        EbpfLogger::init_from_id(id).map_err(|error| BpfLogError::Ring(Box::new(error)))?;
    thread::Builder::new()
        .name("bpf-log".to_owned())
        .spawn(move || read(logger))
        .map_err(failed("starting a thread"))?;
    Ok(())
}

fn read(mut logger: EbpfLogger<&'static dyn log::Log>) {
    loop {
        logger.flush();
        let mut ring = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ring, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "what BPF programs log is not read any more");
                return;
            }
        }
    }
}
