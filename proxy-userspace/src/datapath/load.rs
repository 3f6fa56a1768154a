//! Loading: the embedded object's maps are made or adopted, its programs verified and pinned.

mod object;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use aya::programs::ProgramError;
use proxy_common::{ABI_VERSION, Config};

use super::abi::{Abi, ConvertError};
use super::adopt;
use super::bpf_log::{self, BpfLog};
use super::catalog::MapSizes;
use super::exchange::{self, Wanted};
use super::pin::{PinError, PinKind, Pins};
use super::sys;
use super::transition::Transition;

pub use self::object::Patch;

/// The BPF object that the build embedded; empty where it was built without one.
pub static EMBEDDED_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt-ebpf.o"));

/// Programs for interfaces whose packets begin with an Ethernet header.
pub const ETHERNET_PROGRAMS: [&str; 2] = ["tc_ingress", "tc_egress"];

/// Programs for the others; few nodes need them, and the kernel takes a second to verify one.
pub const IP_PROGRAMS: [&str; 2] = ["tc_ingress_l3", "tc_egress_l3"];

/// The program for uplinks whose driver takes it; loaded like [`IP_PROGRAMS`].
pub const XDP_PROGRAM: &str = "xdp_ingress";

/// Its test run returns the low 31 bits of the jiffies clock.
pub const JIFFIES: &str = "jiffies";

/// Programs for sockets.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];

/// All of them.
pub fn programs() -> impl Iterator<Item = &'static str> {
    let packets = ETHERNET_PROGRAMS.into_iter().chain(IP_PROGRAMS);
    packets.chain([XDP_PROGRAM, JIFFIES]).chain(SOCKET_PROGRAMS)
}

/// Why loading failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is nothing to load.
    #[error("built without the BPF object: run cargo xtask build")]
    NoObject,
    /// What is pinned cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Pins of another version of ours.
    #[error(
        "{path} was written by map ABI version {found}, this is version {ABI_VERSION}, and neither \
         can be made the other: run `shunt cleanup` first (flows are lost), or go back to the \
         other version"
    )]
    OtherVersion {
        /// The maps.
        path: PathBuf,
        /// Their version.
        found: u32,
    },
    /// A map of another version of ours that cannot be converted.
    #[error("{path} cannot be converted: run `shunt cleanup` first (flows are lost)")]
    NotConvertible {
        /// The map.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConvertError,
    },
    /// What a map holds could not be copied.
    #[error("copying what {map} holds")]
    Copy {
        /// Which.
        map: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Maps could not be made, or the object is broken.
    #[error("loading the BPF object")]
    Object {
        /// Why.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// The object lacks a program.
    #[error("the BPF object has no program {name} of the expected type")]
    NoProgram {
        /// Which.
        name: &'static str,
    },
    /// The kernel refused a program.
    #[error("the kernel refused the program {name}")]
    Refused {
        /// Which.
        name: &'static str,
        /// With the verifier's words.
        #[source]
        source: Box<ProgramError>,
    },
    /// No more descriptors.
    #[error("keeping the program {name} open")]
    Descriptor {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Loaded programs by name, and what the others are loaded from when they are needed.
pub struct Programs {
    object: &'static [u8],
    patch: Patch,
    wanted: Wanted,
    /// While flow tables are exchanged.
    transition: Option<Transition>,
    loaded: BTreeMap<&'static str, OwnedFd>,
    /// For tests.
    pub(super) pause_after_swaps: Duration,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The object is megabytes.
        let mut debug = f.debug_struct("Programs");
        debug.field("loaded", &self.loaded).finish_non_exhaustive()
    }
}

impl Programs {
    /// A program by its name in the object.
    ///
    /// # Panics
    /// When it has not been loaded: [`load`] loads all but [`IP_PROGRAMS`] and [`XDP_PROGRAM`].
    pub fn get(&self, name: &str) -> BorrowedFd<'_> {
        self.loaded[name].as_fd()
    }

    /// Every loaded program by its name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let all = self.loaded.iter();
        all.map(|(name, program)| (*name, program.as_fd()))
    }

    /// To be called after each swap.
    pub(super) fn swapped(&self) {
        std::thread::sleep(self.pause_after_swaps);
    }

    /// Loads and pins those of `names` that are not loaded yet.
    pub fn require(&mut self, pins: &Pins, names: &[&'static str]) -> Result<(), LoadError> {
        let is_missing = |name: &&&'static str| !self.loaded.contains_key(**name);
        let missing: BTreeSet<&'static str> = names.iter().filter(is_missing).copied().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let loaded = match object::load(self, pins, &missing, self.patch) {
            Err(error @ LoadError::Refused { .. }) if self.patch.bpf_log != BpfLog::Off => {
                let error = crate::error_chain(&error);
                tracing::warn!(error, "programs that log are refused: these log nothing");
                let patch = Patch {
                    bpf_log: BpfLog::Off,
                    ..self.patch
                };
                object::load(self, pins, &missing, patch)?
            }
            loaded => loaded?,
        };
        for (name, program) in loaded {
            pins.replace(PinKind::Programs, name, program.as_fd())?;
            self.loaded.insert(name, program);
        }
        Ok(())
    }

    /// True if these are to run only while flow tables are exchanged.
    pub fn is_transitional(&self) -> bool {
        self.transition.is_some()
    }

    /// Loads and pins those that know only the new flow tables.
    pub fn settle(&mut self, pins: &Pins) -> Result<(), LoadError> {
        let names: Vec<&'static str> = self.loaded.keys().copied().collect();
        self.transition = None;
        let transitional = std::mem::take(&mut self.loaded);
        if let Err(error) = self.require(pins, &names) {
            self.loaded = transitional;
            return Err(error);
        }
        Ok(adopt::note(pins, self.object, self.patch, &self.loaded)?)
    }
}

/// Loads `object`: adopts the maps that are pinned, makes and pins the others, and pins the
/// programs, unless this build has pinned them already. On an error the pins of maps are as they
/// were.
pub fn load(
    object: &'static [u8],
    pins: &Pins,
    sizes: &MapSizes,
    patch: Patch,
) -> Result<Programs, LoadError> {
    if object.is_empty() {
        return Err(LoadError::NoObject);
    }
    exchange::recover(pins)?;
    let before = pins.names(PinKind::Maps);
    let described = Abi::read(pins, PinKind::Maps)?;
    if described.is_none_or(|abi| abi.version == ABI_VERSION) {
        check_version(pins, &before)?;
    }
    let mut programs = Programs {
        object,
        patch,
        wanted: exchange::plan(pins, sizes)?,
        transition: None,
        pause_after_swaps: Duration::ZERO,
        loaded: BTreeMap::new(),
    };
    let names = ETHERNET_PROGRAMS.into_iter().chain(SOCKET_PROGRAMS);
    let names: Vec<&str> = names.chain([JIFFIES]).collect();
    if programs.wanted.is_pinned()
        && let Some(adopted) = adopt::adopt(pins, object, patch, &names)
    {
        tracing::debug!("programs of this build are pinned: adopted");
        programs.loaded = adopted;
        return Ok(programs);
    }
    let loaded = load_anew(&mut programs, pins, &names);
    if loaded.is_err() {
        remove_made_since(pins, &before);
        // Another failure than the one that is reported.
        let _ = exchange::recover(pins);
    }
    loaded.map(|()| programs)
}

fn load_anew(
    programs: &mut Programs,
    pins: &Pins,
    names: &[&'static str],
) -> Result<(), LoadError> {
    adopt::forget(pins)?;
    for name in IP_PROGRAMS.into_iter().chain([XDP_PROGRAM]) {
        // Another build's: they are loaded when an interface needs them.
        pins.remove(PinKind::Programs, name)?;
    }
    bpf_log::forget(pins)?;
    programs.wanted.begin(pins)?;
    programs.transition = programs.wanted.transition(pins)?;
    match programs.require(pins, names) {
        Err(error @ LoadError::Refused { .. }) if programs.transition.take().is_some() => {
            let error = crate::error_chain(&error);
            tracing::warn!(
                error,
                "flow tables are exchanged with a gap of milliseconds"
            );
            programs.require(pins, names)?;
        }
        loaded => loaded?,
    }
    programs.wanted.commit(pins)?;
    if !programs.is_transitional() {
        adopt::note(pins, programs.object, programs.patch, &programs.loaded)?;
    }
    Ok(())
}

/// Refuses a CONFIG of another ABI version, where nothing says what its layout is. One without
/// version belongs to an agent that died before it was configured.
fn check_version(pins: &Pins, pinned: &BTreeSet<String>) -> Result<(), LoadError> {
    if !pinned.contains("CONFIG") {
        return Ok(());
    }
    let (map, info) = pins.map("CONFIG")?;
    let path = pins.path(PinKind::Maps, "CONFIG");
    // The version is read even where the size differs: it is what the reader can act on.
    let mut bytes = vec![0; (info.value_size as usize).max(size_of::<Config>())];
    let key = [0; size_of::<u32>()];
    sys::map_lookup(map.as_fd(), &key, &mut bytes).map_err(|source| PinError::Open {
        path: path.clone(),
        source,
    })?;
    let offset = std::mem::offset_of!(Config, abi_version);
    let found = bytes[offset..offset + size_of::<u32>()].try_into();
    match found.map_or(0, u32::from_ne_bytes) {
        0 | ABI_VERSION => Ok(()),
        found => Err(LoadError::OtherVersion { path, found }),
    }
}

/// Removes map pins that were made since `before` was listed.
fn remove_made_since(pins: &Pins, before: &BTreeSet<String>) {
    for name in pins.names(PinKind::Maps).difference(before) {
        if let Err(error) = pins.remove(PinKind::Maps, name) {
            tracing::warn!(%error, "a pin of a failed start remains");
        }
    }
}
