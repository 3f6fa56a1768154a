//! A few prefixes that cover every ServiceCIDR and every ClusterIP: what the datapath's filter lets
//! through besides known ports, so that other ports and protocols of these addresses get their
//! answer (S-077, S-078). A superset: CLUSTER_IPS decides about the address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::SERVICE_CIDRS_MAX;

/// The prefixes of one family. Costs nothing per Service whose ClusterIP lies in a ServiceCIDR.
#[derive(Debug, Default)]
pub struct Cover {
    cidrs: BTreeSet<IpNet>,
    /// ClusterIPs in none of them.
    outside: BTreeSet<IpNet>,
    is_changed: bool,
}

impl Cover {
    /// A ClusterIP came.
    pub fn add_address(&mut self, addr: IpAddr) {
        if !self.has(addr) {
            self.is_changed |= self.outside.insert(addr.into());
        }
    }

    /// A ClusterIP went.
    pub fn remove_address(&mut self, addr: IpAddr) {
        self.is_changed |= self.outside.remove(&addr.into());
    }

    /// The ServiceCIDRs are others; `addresses` are all ClusterIPs.
    pub fn set_cidrs(&mut self, cidrs: BTreeSet<IpNet>, addresses: impl Iterator<Item = IpAddr>) {
        self.cidrs = cidrs;
        self.outside = addresses
            .filter(|addr| !self.has(*addr))
            .map(IpNet::from)
            .collect();
        self.is_changed = true;
    }

    /// True if the prefixes may have changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Everything to be covered.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        self.cidrs.union(&self.outside).copied()
    }

    /// True for an address in a ServiceCIDR.
    pub fn has(&self, addr: IpAddr) -> bool {
        self.cidrs.iter().any(|net| net.contains(&addr))
    }
}

/// At most [`SERVICE_CIDRS_MAX`] prefixes that contain all of `nets`, which are of one family:
/// these themselves where they fit, else neighbours are put together, the nearest first.
pub fn cover(nets: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let nets = IpNet::aggregate(&nets.collect());
    if nets.len() <= SERVICE_CIDRS_MAX {
        return nets;
    }
    // The groups end where neighbours have the least in common.
    let mut ends: Vec<usize> = (1..nets.len()).collect();
    ends.sort_by_key(|end| common_bits(nets[end - 1], nets[*end]));
    ends.truncate(SERVICE_CIDRS_MAX - 1);
    ends.push(nets.len());
    ends.sort_unstable();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let groups = starts.zip(&ends).map(|(start, end)| &nets[start..*end]);
    groups.map(around).collect()
}

/// The least prefix around sorted, disjoint ones.
fn around(group: &[IpNet]) -> IpNet {
    let (first, last) = (group[0], group[group.len() - 1]);
    let len = first.prefix_len().min(last.prefix_len());
    let len = len.min(common_bits(first, last));
    IpNet::new(first.network(), len).map_or(first, |net| net.trunc())
}

/// How many leading bits two networks share.
fn common_bits(a: IpNet, b: IpNet) -> u8 {
    let bits = match (a.network(), b.network()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    };
    u8::try_from(bits).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rules;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts
            .iter()
            .map(|text| text.parse().expect("a CIDR"))
            .collect()
    }

    fn cover_of(texts: &[&str]) -> Vec<IpNet> {
        cover(nets(texts).into_iter())
    }

    #[test]
    fn prefixes_that_fit_are_taken_as_they_are() {
        rules(&["S-078", "S-079"]);
        let few = ["10.96.0.0/16", "10.97.0.0/24", "172.16.0.1/32"];
        assert_eq!(cover_of(&few), nets(&few));
        assert_eq!(
            cover_of(&["fd00::/112", "fd00::5/128"]),
            nets(&["fd00::/112"])
        );
    }

    #[test]
    fn near_prefixes_are_put_together_where_there_are_too_many() {
        rules(&["S-078", "S-079"]);
        let many = [
            "10.96.0.0/24",
            "10.96.2.0/24",
            "10.97.0.0/24",
            "172.16.0.0/24",
            "192.168.0.0/24",
        ];
        let expected = [
            "10.96.0.0/22",
            "10.97.0.0/24",
            "172.16.0.0/24",
            "192.168.0.0/24",
        ];
        assert_eq!(cover_of(&many), nets(&expected));
        let many = [
            "fd00:96::/112",
            "fd00:96::2:0/112",
            "fd00:97::/112",
            "fd01::/112",
            "fd02::/112",
        ];
        let expected = ["fd00:96::/110", "fd00:97::/112", "fd01::/112", "fd02::/112"];
        assert_eq!(cover_of(&many), nets(&expected));
    }

    proptest! {
        #[test]
        fn everything_is_covered_by_few_prefixes(
            all in prop::collection::vec((any::<u32>(), 1..=32_u8), 0..40),
        ) {
            rules(&["S-078", "S-079"]);
            let all: Vec<IpNet> = all
                .into_iter()
                .map(|(addr, len)| {
                    let addr = std::net::Ipv4Addr::from_bits(addr);
                    IpNet::new(addr.into(), len).expect("a length").trunc()
                })
                .collect();
            let covers = cover(all.iter().copied());
            prop_assert!(covers.len() <= SERVICE_CIDRS_MAX);
            for net in &all {
                prop_assert!(covers.iter().any(|cover| cover.contains(net)), "{net}: {covers:?}");
            }
        }
    }
}
