//! How full the pinned maps are.

use std::collections::BTreeMap;
use std::io;

use proxy_common::{Addr4, Addr6, Address, BackendState, RegionHeader, Word};
use serde::{Deserialize, Serialize};

use super::catalog::{MapKind, MapSizes, catalog};
use super::elements::AnyMap;
use super::maps::KernelMaps;
use super::pin::Pins;
use super::snat_use::SnatUse;
use crate::maps::{FamilyMaps, Maps};

/// One map and its limit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapFill {
    /// Its name.
    pub name: String,
    /// Elements in use; absent where they could not be counted.
    pub used: Option<u64>,
    /// Elements that it has room for.
    pub limit: u64,
    /// True if it makes room by dropping what was longest unused.
    pub evicts: bool,
}

impl MapFill {
    /// How much of it is in use, in percent, rounded down.
    pub fn percent(&self) -> u64 {
        self.used.unwrap_or_default() * 100 / self.limit.max(1)
    }
}

/// Every map that can run full, in the order of the catalogue. Reads whole maps: for commands, not
/// for the agent's loop.
pub fn fill(pins: &Pins) -> Vec<MapFill> {
    counted(pins, |_, map| map.count())
}

/// As [`fill`], and how many SNAT ports are in use, where they are most; `None` where flow tables
/// cannot be read. Each map is read once.
pub fn fill_and_snat_use(pins: &Pins) -> (Vec<MapFill>, Option<u64>) {
    let mut snat_use = SnatUse::default();
    let fills = counted(pins, |name, map| snat_use.count(name, map));
    (fills, snat_use.most())
}

fn counted(pins: &Pins, mut count: impl FnMut(&str, &AnyMap) -> io::Result<usize>) -> Vec<MapFill> {
    let maps = KernelMaps::open(pins).ok();
    let arrays = maps.as_ref().map(arrays).unwrap_or_default();
    let specs = catalog(&MapSizes::default()).into_iter();
    let fills = specs.filter_map(|spec| {
        let is_array = matches!(spec.kind, MapKind::Array | MapKind::PerCpuArray);
        // Arrays that are indexed by something else than what is allocated never run full, and what
        // finds no room in EVENTS is counted.
        let is_counted = !is_array && spec.kind != MapKind::RingBuf;
        if !is_counted && !arrays.contains_key(spec.name) {
            return None;
        }
        let map = AnyMap::new(pins.map(spec.name).ok()?.0).ok()?;
        Some(MapFill {
            name: spec.name.to_owned(),
            used: match is_array {
                true => arrays.get(spec.name).copied(),
                false => count(spec.name, &map).ok().map(|count| count as u64),
            },
            limit: map.info.max_entries.into(),
            evicts: spec.kind == MapKind::LruHash,
        })
    });
    fills.collect()
}

/// Elements in use of the arrays that ids and regions are allocated in.
fn arrays(maps: &KernelMaps) -> BTreeMap<&'static str, u64> {
    let mut regions = BTreeMap::new();
    let all = [
        ("FRONTENDS4", frontends::<Addr4>(maps, &mut regions)),
        ("FRONTENDS6", frontends::<Addr6>(maps, &mut regions)),
        ("BACKENDS4", backends::<Addr4>(maps)),
        ("BACKENDS6", backends::<Addr6>(maps)),
        ("SLOTS", 0),
    ];
    let mut all = BTreeMap::from(all);
    all.insert("SLOTS", regions.values().copied().map(u64::from).sum());
    all
}

/// Counts the published frontends of a family, and notes the length of each one's region, which
/// those of one service port share.
fn frontends<A>(maps: &KernelMaps, regions: &mut BTreeMap<u32, u32>) -> u64
where
    A: Address,
    KernelMaps: FamilyMaps<A>,
{
    let mut count = 0;
    for (_, id) in FamilyMaps::<A>::frontend_ids(maps) {
        count += 1;
        let word = FamilyMaps::<A>::frontend(maps, id).map_or(0, |found| found.word);
        if word == 0 {
            continue;
        }
        let region = Word::unpack(word).region;
        if let Some(header) = maps.slot(region) {
            regions.insert(region, RegionHeader::unpack(header).region_len());
        }
    }
    count
}

fn backends<A>(maps: &KernelMaps) -> u64
where
    A: Address,
    KernelMaps: FamilyMaps<A>,
{
    let backends = (0..maps.capacity().backends).filter(|id| {
        let found = FamilyMaps::<A>::backend(maps, *id);
        found.is_some_and(|found| found.state != BackendState::Free as u8)
    });
    backends.count() as u64
}
