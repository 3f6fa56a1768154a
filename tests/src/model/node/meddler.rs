//! A stranger's writes into the maps.

use std::fmt::Write as _;

use bytemuck::Zeroable;
use proxy_common::{Addr4, Addr6, Backend, ClusterIpKey, Config};
use proxy_userspace::fake_maps::FakeMaps;
use proxy_userspace::family::IpFamily;
use proxy_userspace::map_dump::{dump, dump_config};
use proxy_userspace::maps::{FamilyMaps, Maps};

use crate::model::random::Random;

/// What the maps hold, with the ids of frontends and backends.
pub(super) fn state(maps: &FakeMaps) -> String {
    let mut text = dump(maps);
    ids::<Addr4>(maps, &mut text);
    ids::<Addr6>(maps, &mut text);
    if let Some(config) = maps.config() {
        text += &dump_config(&config);
    }
    text
}

fn ids<A: IpFamily>(maps: &FakeMaps, text: &mut String)
where
    FakeMaps: FamilyMaps<A>,
{
    let mut frontends = FamilyMaps::<A>::frontend_ids(maps);
    frontends.sort();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{frontends:?}");
    for id in 1..maps.capacity().backends {
        let backend = FamilyMaps::<A>::backend(maps, id).filter(|found| found.state != 0);
        if let Some(backend) = backend {
            let _ = writeln!(text, "{id} {backend:?}");
        }
    }
}

/// Damages some entries, and returns how many.
pub(super) fn meddle(maps: &mut FakeMaps, seed: u64) -> usize {
    let random = &mut Random(seed);
    let mut writes = meddle_family::<Addr4>(maps, random) + meddle_family::<Addr6>(maps, random);
    if random.chance(20) && maps.config().is_some() {
        maps.write_config(&Config::zeroed()).expect(NEVER_FAILS);
        writes += 1;
    }
    writes
}

const NEVER_FAILS: &str = "no failures are set here";

fn meddle_family<A: IpFamily>(maps: &mut FakeMaps, random: &mut Random) -> usize
where
    FakeMaps: FamilyMaps<A>,
{
    let family: &mut dyn FamilyMaps<A> = maps;
    let mut writes = 0;
    for (key, id) in family.frontend_ids() {
        let damage = random.below(8);
        let done = match damage {
            0 => family.remove_frontend_id(&key),
            1 => family.insert_frontend_id(&key, id + 1),
            2 => family.publish(id, 0),
            _ => continue,
        };
        done.expect(NEVER_FAILS);
        writes += 1;
    }
    for (key, value) in family.cluster_ips() {
        let done = match random.below(8) {
            0 => family.remove_cluster_ip(&key),
            1 => family.insert_cluster_ip(&key, value + 1),
            2 => {
                let prefix_len = key.prefix_len - 1;
                let wider = ClusterIpKey { prefix_len, ..key };
                match family.cluster_ips().contains(&(wider, 1)) {
                    true => continue,
                    false => family.insert_cluster_ip(&wider, 1),
                }
            }
            _ => continue,
        };
        done.expect(NEVER_FAILS);
        writes += 1;
    }
    for (addr, flags) in family.node_addresses() {
        if random.chance(10) {
            let done = family.insert_node_address(&addr, flags ^ 1);
            done.expect(NEVER_FAILS);
            writes += 1;
        }
    }
    for id in 1..20 {
        if random.chance(10) && family.backend(id).is_some_and(|found| found.state != 0) {
            let done = family.write_backend(id, &Backend::zeroed());
            done.expect(NEVER_FAILS);
            writes += 1;
        }
    }
    writes
}
