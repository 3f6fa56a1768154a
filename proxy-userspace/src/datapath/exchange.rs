//! Exchanging pinned maps, with what they hold, for larger ones or for those of another version of
//! the ABI.
//!
//! The maps that are to be are made beside those that are pinned, in a folder of their own, until
//! every program is loaded and everything is copied; then the folders change their names, and
//! programs are swapped as at any start. Only the agent writes what frontends and backends are, so
//! their copy is exact. Flow tables are written by programs: one that keeps its layout and size is
//! shared by old and new programs, one that does not is written by transitional ones
//! ([`Transition`]), and what only old programs wrote is copied when none of them runs any more
//! ([`copy_flows`]). A kill at any moment leaves a state that the next start goes on from
//! ([`recover`]).

use std::os::fd::AsFd as _;

use proxy_common::port_filter;

use super::abi::{Abi, ConvertError, Converter};
use super::catalog::{MapKind, MapSizes, MapSpec, catalog};
use super::elements::{AnyMap, Existing};
use super::load::LoadError;
use super::pin::{PinError, PinKind, Pins};
use super::sys;
use super::transition::Transition;

/// Which maps this start uses.
#[derive(Debug)]
pub struct Wanted {
    /// All maps, in the sizes that they have or are to get.
    pub specs: Vec<MapSpec>,
    /// Where they are pinned.
    pub kind: PinKind,
    /// Those that are made anew out of pinned ones.
    changed: Vec<Changed>,
    /// Those that are not pinned.
    missing: usize,
    /// What is pinned.
    theirs: Abi,
}

#[derive(Debug)]
struct Changed {
    spec: MapSpec,
    converters: [Converter; 2],
    /// Its elements are the same, byte by byte.
    is_alike: bool,
}

/// Goes on where an agent was killed. The pins must be locked.
pub fn recover(pins: &Pins) -> Result<(), PinError> {
    let is_empty = |kind| pins.names(kind).is_empty();
    if is_empty(PinKind::Maps) && !is_empty(PinKind::OldMaps) && !is_empty(PinKind::NextMaps) {
        return pins.rename_folder(PinKind::NextMaps, PinKind::Maps);
    }
    pins.remove_folder(PinKind::NextMaps)
}

/// Checks every pinned map, before anything is changed, and decides which of them stay.
pub fn plan(pins: &Pins, sizes: &MapSizes) -> Result<Wanted, LoadError> {
    let ours = Abi::current();
    let pinned = Abi::read(pins, PinKind::Maps)?;
    if let Some(theirs) = &pinned {
        check_version(pins, theirs, &ours)?;
        let names = pins.names(PinKind::Maps);
        if let Some(missing) = theirs.maps().find(|map| !names.contains(*map)) {
            return Err(PinError::Missing {
                path: pins.path(PinKind::Maps, missing),
            }
            .into());
        }
    }
    // Maps that nothing tells of are ours: an agent was killed between making and telling of them.
    let theirs = pinned.map_or_else(|| ours.clone(), |theirs| theirs.completed(&ours));
    let mut wanted = Wanted {
        specs: catalog(sizes),
        kind: PinKind::Maps,
        changed: Vec::new(),
        missing: 0,
        theirs: theirs.clone(),
    };
    for spec in &mut wanted.specs {
        let Some(map) = pins.open(PinKind::Maps, spec.name)? else {
            wanted.missing += 1;
            continue;
        };
        let info = sys::map_info(map.as_fd()).map_err(|source| PinError::Open {
            path: pins.path(PinKind::Maps, spec.name),
            source,
        })?;
        pins.check_kind(spec, &info)?;
        let expected = theirs.sizes(spec.name);
        let expected = expected.unwrap_or([spec.key_size as usize, spec.value_size as usize]);
        pins.check_sizes(spec.name, &info, expected)?;
        // What is larger than it need be stays: somebody may use the rest of it.
        let is_large = info.max_entries >= spec.max_entries;
        spec.max_entries = spec.max_entries.max(info.max_entries);
        let is_alike = ours.is_alike(&theirs, spec.name);
        let tells_version = spec.name == "CONFIG" && ours.version != theirs.version;
        if is_large && is_alike && !tells_version {
            continue;
        }
        let converters = ours.converters(&theirs, spec.name);
        wanted.changed.push(Changed {
            spec: *spec,
            converters: converters.map_err(|source| not_convertible(pins, spec, source))?,
            is_alike: is_alike && !tells_version,
        });
    }
    Ok(wanted)
}

fn check_version(pins: &Pins, theirs: &Abi, ours: &Abi) -> Result<(), LoadError> {
    match theirs.version == ours.version || ours.is_convertible(theirs) {
        true => Ok(()),
        false => Err(LoadError::OtherVersion {
            path: pins.folder(PinKind::Maps),
            found: theirs.version,
        }),
    }
}

fn not_convertible(pins: &Pins, spec: &MapSpec, source: ConvertError) -> LoadError {
    LoadError::NotConvertible {
        path: pins.path(PinKind::Maps, spec.name),
        source,
    }
}

impl Wanted {
    /// Makes room for the maps that are to be made, beside those that stay.
    pub fn begin(&mut self, pins: &Pins) -> Result<(), PinError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        // What a killed agent could not finish is finished with the maps that it made.
        finish(pins)?;
        self.kind = PinKind::NextMaps;
        pins.make_folder(PinKind::NextMaps)?;
        for spec in &self.specs {
            let is_changed = self.changed.iter().any(|it| it.spec.name == spec.name);
            if !is_changed && let Some(map) = pins.open(PinKind::Maps, spec.name)? {
                pins.replace(PinKind::NextMaps, spec.name, map.as_fd())?;
            }
        }
        Ok(())
    }

    /// What programs must know that run beside old ones; `None` where old and new ones share all
    /// flow tables. To be asked before [`Self::commit`].
    pub fn transition(&self, pins: &Pins) -> Result<Option<Transition>, PinError> {
        if self.changed.is_empty() {
            return Transition::interrupted(pins);
        }
        let names = self.changed.iter().map(|it| it.spec.name).collect();
        Ok(Transition::new(&Abi::current(), &self.theirs, &names))
    }

    /// Where old flow tables are pinned.
    pub fn old_kind(&self) -> PinKind {
        match self.kind {
            PinKind::NextMaps => PinKind::Maps,
            _ => PinKind::OldMaps,
        }
    }

    /// Fills the maps that were made, and lets them take the place of the pinned ones.
    pub fn commit(&mut self, pins: &Pins) -> Result<(), LoadError> {
        if self.changed.is_empty() {
            // Maps that an earlier version did not have came to those that it made.
            if Abi::read(pins, PinKind::Maps)? != Some(Abi::current()) {
                Abi::pin(pins, PinKind::Maps)?;
            }
            return Ok(());
        }
        for changed in &self.changed {
            changed.copy(pins)?;
            tracing::info!(
                map = changed.spec.name,
                size = changed.spec.max_entries,
                "map exchanged, with what it holds"
            );
        }
        if self.theirs.version < port_filter::ADDRESSES_SINCE {
            know_all_addresses(pins).map_err(|source| LoadError::Copy {
                map: "PORT_FILTER",
                source,
            })?;
        }
        Abi::pin(pins, PinKind::NextMaps)?;
        pins.rename_folder(PinKind::Maps, PinKind::OldMaps)?;
        pins.rename_folder(PinKind::NextMaps, PinKind::Maps)?;
        self.kind = PinKind::Maps;
        self.changed.clear();
        Ok(())
    }

    /// True if every map is pinned as it is to be.
    pub fn is_pinned(&self) -> bool {
        self.changed.is_empty() && self.missing == 0
    }
}

impl Changed {
    fn copy(&self, pins: &Pins) -> Result<(), LoadError> {
        let name = self.spec.name;
        let open = |kind| open(pins, kind, name);
        let (from, to) = (open(PinKind::Maps)?, open(PinKind::NextMaps)?);
        let copied = match self.spec.kind {
            MapKind::Array if self.is_alike => to.copy_array(&from),
            // What nobody has read by now is of no use.
            MapKind::RingBuf => Ok(()),
            _ => copy(&from, &to, &self.converters, Existing::Replaced),
        };
        copied.map_err(|source| LoadError::Copy { map: name, source })?;
        if name == "CONFIG" {
            tell_version(&to).map_err(|source| LoadError::Copy { map: name, source })?;
        }
        Ok(())
    }
}

/// Sets the bits of all addresses: their writer knew of none, and flows may be of backends that are
/// gone. They stay until the node starts anew, and cost foreign packets a few look-ups.
fn know_all_addresses(pins: &Pins) -> std::io::Result<()> {
    let path = pins.path(PinKind::NextMaps, "PORT_FILTER");
    let map = sys::open_pinned(&path)?;
    for index in port_filter::ADDRESSES_START..port_filter::PORT_FILTER_LEN {
        sys::map_update(map.as_fd(), &index.to_ne_bytes(), &u64::MAX.to_ne_bytes())?;
    }
    Ok(())
}

/// Copies what old programs wrote into old flow tables, and forgets these. To be called when no
/// old program runs any more.
pub fn finish(pins: &Pins) -> Result<(), PinError> {
    copy_flows(pins)?;
    pins.remove_folder(PinKind::OldMaps)
}

/// Copies what old programs have written into old flow tables since these were exchanged.
pub fn copy_flows(pins: &Pins) -> Result<(), PinError> {
    if pins.names(PinKind::OldMaps).is_empty() {
        return Ok(());
    }
    let ours = Abi::current();
    let theirs = Abi::read(pins, PinKind::OldMaps)?.unwrap_or_else(|| ours.clone());
    let flow_tables = catalog(&MapSizes::default()).into_iter();
    for spec in flow_tables.filter(|spec| spec.kind == MapKind::LruHash) {
        let (from, to) = (
            open(pins, PinKind::OldMaps, spec.name)?,
            open(pins, PinKind::Maps, spec.name)?,
        );
        let Ok(converters) = ours.converters(&theirs, spec.name) else {
            continue;
        };
        if from.info.id != to.info.id {
            let copied = copy(&from, &to, &converters, Existing::Kept);
            copied.map_err(|source| PinError::Open {
                path: pins.path(PinKind::OldMaps, spec.name),
                source,
            })?;
        }
    }
    Ok(())
}

fn open(pins: &Pins, kind: PinKind, name: &str) -> Result<AnyMap, PinError> {
    let path = pins.path(kind, name);
    sys::open_pinned(&path)
        .and_then(AnyMap::new)
        .map_err(|source| PinError::Open { path, source })
}

fn copy(
    from: &AnyMap,
    to: &AnyMap,
    converters: &[Converter; 2],
    existing: Existing,
) -> std::io::Result<()> {
    let is_per_cpu = from.info.kind == MapKind::PerCpuArray as u32;
    for (key, value) in from.entries()? {
        // The counters of this build may be fewer.
        if is_per_cpu {
            let index = u32::from_ne_bytes([key[0], key[1], key[2], key[3]]);
            if index < to.info.max_entries {
                to.put(&key, &value, existing)?;
            }
            continue;
        }
        let [key, value] = [converters[0].convert(&key), converters[1].convert(&value)];
        to.put(&key, &value, existing)?;
    }
    Ok(())
}

/// Programs pass every packet while CONFIG is not of their version.
fn tell_version(config: &AnyMap) -> std::io::Result<()> {
    let key = 0_u32.to_ne_bytes();
    let mut value = vec![0; config.info.value_size as usize];
    sys::map_lookup(config.fd(), &key, &mut value)?;
    let offset = std::mem::offset_of!(proxy_common::Config, abi_version);
    let version = &mut value[offset..offset + size_of::<u32>()];
    if version.iter().any(|byte| *byte != 0) {
        version.copy_from_slice(&proxy_common::ABI_VERSION.to_ne_bytes());
    }
    sys::map_update(config.fd(), &key, &value)
}
