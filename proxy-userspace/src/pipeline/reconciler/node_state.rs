//! The part of a reconcile that depends on the node and on ServiceCIDRs: CONFIG and NODE_ADDRESSES.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proxy_common::{Addr4, Addr6, Config, port_filter};

use super::{Reconciler, Report};
use crate::family::{IpFamily, config_net};
use crate::ip_text::parse_cidr;
use crate::maps::{FamilyMaps, Maps};
use crate::objects::{Kind, ObjectName};
use crate::pipeline::actual::{ActualState, SharedState};
use crate::pipeline::desired::node::{self, NodeFacts};

impl Reconciler {
    /// Facts of the node; where they change, every Service is computed anew (S-070, S-174).
    pub(super) fn update_node(&mut self, is_touched: bool) {
        if !is_touched && !self.is_node_touched {
            return;
        }
        self.is_node_touched = true;
        let node = NodeFacts::of(&self.settings, self.store.node());
        if node != self.node {
            self.node = node;
            self.store.touch_all();
        }
    }

    /// ServiceCIDRs, each counted for every object that lists it (S-079).
    pub(super) fn update_service_cidrs(&mut self, is_touched: bool) {
        if !is_touched {
            return;
        }
        self.is_node_touched = true;
        let parse =
            |texts: &Vec<String>| texts.iter().filter_map(|text| parse_cidr(text)).collect();
        let cidrs: BTreeMap<ObjectName, Vec<IpNet>> = self
            .store
            .service_cidrs()
            .iter()
            .map(|(name, texts)| (name.clone(), parse(texts)))
            .collect();
        for net in cidrs.values().flatten() {
            self.v4.add_service_cidr(net);
            self.v6.add_service_cidr(net);
        }
        for net in self.service_cidrs.values().flatten() {
            self.v4.remove_service_cidr(net);
            self.v6.remove_service_cidr(net);
        }
        self.service_cidrs = cidrs;
        if self.store.is_listed(Kind::ServiceCidr) {
            self.v4.touch_unallocated();
            self.v6.touch_unallocated();
        }
    }

    /// CONFIG and NODE_ADDRESSES: as soon as the Node is known, or known to be missing.
    pub(super) fn write_node<M: Maps>(&mut self, maps: &mut M, report: &mut Report) {
        let is_settled = self.store.is_synced() || self.store.is_listed(Kind::Node);
        if !self.is_node_touched || !is_settled {
            return;
        }
        let before = report.failed + report.full;
        let config = self.config();
        if self.shared.config != Some(config) {
            match maps.write_config(&config) {
                Ok(()) => {
                    report.writes += 1;
                    self.shared.config = Some(config);
                }
                Err(error) => report.fail(&error),
            }
        }
        let (settings, node, local) = (&self.settings, &self.node, &self.local_addresses);
        write_addresses(
            node::addresses(settings, node, local),
            maps,
            (&mut self.shared, &mut self.v4.actual),
            report,
        );
        write_addresses(
            node::addresses(settings, node, local),
            maps,
            (&mut self.shared, &mut self.v6.actual),
            report,
        );
        self.health_checks.listen([
            node::health_addresses::<Addr4>(settings, node, local),
            node::health_addresses::<Addr6>(settings, node, local),
        ]);
        self.is_node_touched = report.failed + report.full > before;
    }

    /// CONFIG as it should be. What it covers of restored addresses stays until these are compared
    /// and ServiceCIDRs are listed.
    fn config(&mut self) -> Config {
        let mut nets: Vec<IpNet> = self.v4.desired.cover().nets().collect();
        nets.extend(self.v6.desired.cover().nets());
        let is_kept =
            !self.has_taken_restored || !self.v4.kept.is_empty() || !self.v6.kept.is_empty();
        if is_kept || !self.store.is_listed(Kind::ServiceCidr) {
            let known = self.shared.config.iter();
            nets.extend(known.flat_map(restored_nets));
        }
        Config {
            next_hops: self.next_hops,
            ..node::config(&self.settings, &self.node, &nets)
        }
    }
}

/// What a CONFIG covers.
fn restored_nets(config: &Config) -> impl Iterator<Item = IpNet> {
    let v4 = config.v4.service_cidrs.iter().filter_map(config_net);
    v4.chain(config.v6.service_cidrs.iter().filter_map(config_net))
}

/// Writes the difference in NODE_ADDRESSES, additions first.
fn write_addresses<A: IpFamily, M: Maps + FamilyMaps<A>>(
    desired: BTreeMap<A, u32>,
    maps: &mut M,
    (shared, actual): (&mut SharedState, &mut ActualState<A>),
    report: &mut Report,
) {
    for (addr, flags) in &desired {
        if actual.node_addresses.get(addr) == Some(flags) {
            continue;
        }
        if !shared.is_address_known(addr) {
            let (index, bit) = port_filter::address(addr);
            match shared.set_filter(maps, index, bit) {
                Ok(()) => report.writes += 1,
                Err(error) => {
                    report.fail(&error);
                    continue;
                }
            }
        }
        match maps.insert_node_address(addr, *flags) {
            Ok(()) => {
                report.writes += 1;
                actual.node_addresses.insert(*addr, *flags);
            }
            Err(error) => report.fail(&error),
        }
    }
    let gone: Vec<A> = actual
        .node_addresses
        .keys()
        .filter(|addr| !desired.contains_key(addr))
        .copied()
        .collect();
    for addr in gone {
        match maps.remove_node_address(&addr) {
            Ok(()) => {
                report.writes += 1;
                actual.node_addresses.remove(&addr);
            }
            Err(error) => report.fail(&error),
        }
    }
}
