//! Following the interfaces: those with a role get the programs and an entry of INTERFACES.

use std::collections::BTreeMap;

use proxy_common::interface::{Interface, flags};
use serde::{Deserialize, Serialize};

use super::attach::{self, Layer, Target};
use super::interfaces::Plan;
use super::maps::KernelMaps;
use super::xdp::{self, XdpMode};
use super::{Datapath, DatapathError, exchange, load};
use crate::error_chain;
use crate::maps::{MapError, Maps as _};

/// How an interface is served, for `shunt status`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// True if it carries our programs.
    pub attached: bool,
    /// True if it leads to pods.
    pub pod_side: bool,
    /// How it runs the XDP program, if at all.
    #[serde(default)]
    pub xdp: Option<XdpMode>,
    /// Why an uplink runs none.
    #[serde(default)]
    pub no_xdp: Option<String>,
    /// Why it has no role, where it has none.
    #[serde(default)]
    pub left_alone: Option<String>,
    /// Why it is not served although it should be.
    #[serde(default)]
    pub problem: Option<String>,
}

impl Datapath {
    /// Swaps the programs of every interface that carries some, lets go of those that are not
    /// wanted, and serves the others. One interface that fails does not keep the others.
    pub fn start_interfaces(&mut self, maps: &mut KernelMaps, wanted: BTreeMap<u32, Plan>) {
        // The last moment before the first program is swapped: little is left for the next copy.
        if !self.programs.is_transitional()
            && let Err(error) = exchange::copy_flows(&self.pins)
        {
            tracing::error!(error = error_chain(&error), "flows not copied yet");
        }
        for ifindex in attach::attached(&self.pins) {
            if !wanted.get(&ifindex).is_some_and(Plan::is_attached) {
                self.release(ifindex);
            }
        }
        for (ifindex, _) in maps.interfaces() {
            if !wanted.contains_key(&ifindex) {
                report(ifindex, maps.remove_interface(ifindex));
            }
        }
        self.set_interfaces(maps, wanted);
    }

    /// Follows a change of the interfaces: touches only what differs from the last call.
    pub fn set_interfaces(&mut self, maps: &mut KernelMaps, wanted: BTreeMap<u32, Plan>) {
        let known = std::mem::take(&mut self.interfaces);
        self.unserved
            .retain(|ifindex, _| wanted.contains_key(ifindex));
        self.xdp_refused
            .retain(|ifindex, _| wanted.contains_key(ifindex));
        for (&ifindex, plan) in &known {
            let is_wanted = wanted.get(&ifindex).is_some_and(Plan::is_attached);
            if plan.is_attached() && !is_wanted {
                self.release(ifindex);
            }
            if !wanted.contains_key(&ifindex) {
                report(ifindex, maps.remove_interface(ifindex));
            }
        }
        for (ifindex, plan) in wanted {
            let is_done = known.get(&ifindex) == Some(&plan);
            if is_done || self.serve(maps, ifindex, &plan) {
                self.interfaces.insert(ifindex, plan);
            }
        }
    }

    /// Attaches to one interface and writes its entry: an entry that says ATTACHED is true.
    /// False if it is to be tried again.
    pub(super) fn serve(&mut self, maps: &mut KernelMaps, ifindex: u32, plan: &Plan) -> bool {
        if plan.is_attached() {
            let mut unserved = plan.interface;
            unserved.flags &= !flags::ATTACHED;
            let known = maps.interface(ifindex);
            // Where our programs run they go on, and are only swapped.
            if known.is_none_or(|known| known.flags & flags::ATTACHED == 0) {
                report(ifindex, put_interface(maps, ifindex, &unserved));
            }
            if let Err(error) = self.attach(ifindex, plan) {
                let error = error_chain(&error);
                tracing::error!(interface = plan.name, error, "interface not served");
                report(ifindex, put_interface(maps, ifindex, &unserved));
                let failed = (plan.name.clone(), error);
                self.unserved.insert(ifindex, failed);
                return false;
            }
            self.attach_xdp(ifindex, plan);
            tracing::info!(interface = plan.name, mode = %self.mode, "interface served");
        }
        self.unserved.remove(&ifindex);
        report(
            ifindex,
            put_interface(maps, ifindex, &self.entry(ifindex, plan)),
        );
        true
    }

    pub(super) fn attach(&mut self, ifindex: u32, plan: &Plan) -> Result<(), DatapathError> {
        if plan.layer == Layer::Ip {
            self.programs.require(&self.pins, &load::IP_PROGRAMS)?;
        }
        let target = Target {
            ifindex,
            name: &plan.name,
            layer: plan.layer,
        };
        Ok(attach::attach(
            &self.pins,
            &self.programs,
            self.mode,
            target,
        )?)
    }

    fn release(&self, ifindex: u32) {
        let detached = xdp::detach(&self.pins, ifindex).map_err(DatapathError::from);
        match detached.and_then(|()| Ok(attach::detach(&self.pins, ifindex)?)) {
            Ok(()) => tracing::info!(ifindex, "interface released"),
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(ifindex, error, "interface not released");
            }
        }
    }

    /// Why an uplink runs no XDP program: it is not to, or it cannot.
    fn no_xdp(&self, ifindex: u32, plan: &Plan) -> Option<String> {
        let unwanted = plan.no_xdp.as_ref().map(ToString::to_string);
        let refused = self.xdp_refused.get(&ifindex);
        unwanted.or_else(|| refused.map(|error| format!("it was refused: {error}")))
    }

    /// All interfaces, for `shunt status`.
    pub fn interface_status(&self) -> Vec<InterfaceStatus> {
        let interfaces = self.interfaces.iter();
        let known = interfaces.map(|(&ifindex, plan)| InterfaceStatus {
            name: plan.name.clone(),
            ifindex,
            attached: plan.is_attached(),
            pod_side: plan.interface.flags & flags::POD_SIDE != 0,
            xdp: xdp::mode(&self.pins, ifindex),
            no_xdp: self.no_xdp(ifindex, plan),
            left_alone: plan.left_alone.as_ref().map(ToString::to_string),
            problem: None,
        });
        let unserved = self.unserved.iter();
        let unserved = unserved.map(|(&ifindex, (name, error))| InterfaceStatus {
            name: name.clone(),
            ifindex,
            attached: false,
            pod_side: false,
            xdp: None,
            no_xdp: None,
            left_alone: None,
            problem: Some(error.clone()),
        });
        let mut all: Vec<_> = known.chain(unserved).collect();
        all.sort_by_key(|interface| interface.ifindex);
        all
    }
}

/// Writes an entry that differs.
pub(super) fn put_interface(
    maps: &mut KernelMaps,
    ifindex: u32,
    entry: &Interface,
) -> Result<(), MapError> {
    match maps.interface(ifindex) {
        Some(known) if known == *entry => Ok(()),
        _ => maps.insert_interface(ifindex, entry),
    }
}

pub(super) fn report(ifindex: u32, written: Result<(), MapError>) {
    if let Err(error) = written {
        let error = error_chain(&error);
        tracing::error!(ifindex, error, "interface not written");
    }
}
