//! Where the maps of an agent lead, read from its pins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use proxy_common::{Addr4, FrontendKey, RegionHeader, Word, protocol};
use proxy_userspace::datapath::maps::KernelMaps;
use proxy_userspace::datapath::pin::Pins;
use proxy_userspace::family::frontend_key;
use proxy_userspace::maps::{FamilyMaps, Maps as _};
use proxy_userspace::pipeline::actual::members;

use crate::objects::{self, PORT, Size};

/// The maps of an agent.
pub struct State {
    maps: KernelMaps,
    /// FRONTEND_IDS, which do not change any more.
    ids: BTreeMap<FrontendKey<Addr4>, u32>,
}

impl State {
    /// Opens what an agent pinned below `bpffs`; every frontend is known from here on.
    pub fn open(bpffs: &Path) -> Result<Self> {
        let maps = KernelMaps::open(&Pins::at(bpffs))?;
        let ids = FamilyMaps::<Addr4>::frontend_ids(&maps)
            .into_iter()
            .collect();
        Ok(Self { maps, ids })
    }

    /// An error unless every Service leads to its backends and no others.
    pub fn check(&mut self, size: Size, rounds: &[u32]) -> Result<()> {
        for (service, round) in (0..).zip(rounds) {
            let frontend = objects::cluster_ip(service);
            let found = self.backends(frontend);
            let found = found.with_context(|| format!("{frontend} is not published"))?;
            let expected = size.backends(service, *round);
            ensure!(found == expected, "{frontend}: {found:?}, not {expected:?}");
        }
        Ok(())
    }

    /// Where connections to an address go.
    fn backends(&self, frontend: Ipv4Addr) -> Option<BTreeSet<Ipv4Addr>> {
        let key = frontend_key(Addr4::from(frontend), PORT, protocol::TCP);
        let maps = &self.maps;
        let id = *self.ids.get(&key)?;
        let word = Word::unpack(FamilyMaps::<Addr4>::frontend(maps, id)?.word);
        let header = RegionHeader::unpack(maps.slot(word.region)?);
        let region = word.region..word.region + header.region_len();
        let content: Option<Vec<u64>> = region.map(|index| maps.slot(index)).collect();
        let content = content?;
        let backends = members(&content).map(|id| FamilyMaps::<Addr4>::backend(maps, id));
        backends
            .map(|backend| Some(Ipv4Addr::from(backend?.addr.octets())))
            .collect()
    }
}
