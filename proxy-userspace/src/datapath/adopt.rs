//! Programs that an earlier start of the same build has loaded and pinned: they are taken over, so
//! that a restart costs no verification. What tells them is a text pinned beside them: the object,
//! how it was patched, and the kernel's ids of all maps and programs. Whatever differs, a pin that
//! somebody has replaced too, and everything is loaded anew.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use super::bpf_log::{self, BpfLog};
use super::catalog::{MapKind, MapSizes, catalog};
use super::load::Patch;
use super::pin::{PinError, PinKind, Pins};
use super::sys;

/// Name of the pinned map that holds the text.
const BUILD_MAP: &str = "BUILD";

/// Opens the pinned programs of `names`, if they are those of `object`.
pub fn adopt(
    pins: &Pins,
    object: &[u8],
    patch: Patch,
    names: &[&'static str],
) -> Option<BTreeMap<&'static str, OwnedFd>> {
    let mut programs = BTreeMap::new();
    for name in names {
        programs.insert(*name, pins.open(PinKind::Programs, name).ok()??);
    }
    let expected = text(pins, object, patch, &programs).ok()?;
    let pinned = pins.open(PinKind::Programs, BUILD_MAP).ok()??;
    let info = sys::map_info(pinned.as_fd()).ok()?;
    let is_ours = (info.kind, info.key_size) == (MapKind::Array as u32, 4);
    let mut found = vec![0; info.value_size as usize];
    let is_there = is_ours && sys::map_lookup(pinned.as_fd(), &[0; 4], &mut found).ok()?;
    (is_there && found == expected.as_bytes()).then_some(programs)
}

/// Says that the pinned programs may be replaced: nobody is to adopt them until [`note`].
pub fn forget(pins: &Pins) -> Result<(), PinError> {
    pins.remove(PinKind::Programs, BUILD_MAP)
}

/// Pins the text that lets the next start adopt `programs`.
pub fn note(
    pins: &Pins,
    object: &[u8],
    patch: Patch,
    programs: &BTreeMap<&'static str, OwnedFd>,
) -> Result<(), PinError> {
    let failed = |source| PinError::Write {
        path: pins.path(PinKind::Programs, BUILD_MAP),
        source,
    };
    let text = text(pins, object, patch, programs)?;
    let sizes = [4, text.len() as u32, 1];
    let map = sys::map_create(MapKind::Array as u32, sizes, 0).map_err(failed)?;
    sys::map_update(map.as_fd(), &[0; 4], text.as_bytes()).map_err(failed)?;
    pins.replace(PinKind::Programs, BUILD_MAP, map.as_fd())
}

fn text(
    pins: &Pins,
    object: &[u8],
    patch: Patch,
    programs: &BTreeMap<&'static str, OwnedFd>,
) -> Result<String, PinError> {
    // Only compared with what the same program computed: any hash will do.
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    let mut text = format!(
        "{:016x} {} {} {}",
        hasher.finish(),
        object.len(),
        patch.set_retval,
        patch.bpf_log as u8,
    );
    if patch.bpf_log != BpfLog::Off {
        text += &format!(" {}={}", bpf_log::RING, bpf_log::ring_id(pins)?);
    }
    for spec in catalog(&MapSizes::default()) {
        let (_, info) = pins.map(spec.name)?;
        text += &format!(" {}={}", spec.name, info.id);
    }
    for (name, program) in programs {
        let id = sys::object_id(program.as_fd()).map_err(|source: io::Error| PinError::Open {
            path: pins.path(PinKind::Programs, name),
            source,
        })?;
        text += &format!(" {name}={id}");
    }
    Ok(text)
}
