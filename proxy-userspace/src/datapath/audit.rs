//! Looking after what is in the kernel: what somebody else has detached, removed or written over is
//! put back.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};

use super::attach::{self, Target};
use super::catalog::{MapSizes, catalog};
use super::interfaces::Plan;
use super::maps::KernelMaps;
use super::pin::{PinError, PinKind, Pins};
use super::serve::{put_interface, report};
use super::{Datapath, cgroup, interface_name, sys, xdp};
use crate::error_chain;
use crate::maps::Maps as _;

/// Maps that were pinned when the agent started: they stay, whoever removes the pins.
#[derive(Debug)]
pub(super) struct PinnedMaps(Vec<(&'static str, OwnedFd)>);

impl PinnedMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        let names = catalog(&MapSizes::default()).into_iter();
        let maps = names.map(|spec| Ok((spec.name, pins.map(spec.name)?.0)));
        maps.collect::<Result<_, PinError>>().map(Self)
    }
}

/// What an audit found wrong, and has put right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Drift {
    /// Programs that did not run where they should.
    pub programs: u64,
    /// Entries of INTERFACES.
    pub interfaces: u64,
    /// Pins that were gone, or another object's.
    pub pins: u64,
}

impl Datapath {
    /// Compares programs, pins and INTERFACES with what they should be, and repairs them.
    pub fn audit(&mut self, maps: &mut KernelMaps) -> Drift {
        Drift {
            programs: self.audit_interfaces(maps) + self.audit_sockets(),
            interfaces: self.audit_entries(maps),
            pins: self.audit_pins(),
        }
    }

    fn audit_interfaces(&mut self, maps: &mut KernelMaps) -> u64 {
        let plans: Vec<(u32, Plan)> = self
            .interfaces
            .iter()
            .filter(|(ifindex, plan)| plan.is_attached() && !self.is_attached(**ifindex, plan))
            .map(|(ifindex, plan)| (*ifindex, plan.clone()))
            .collect();
        for (ifindex, plan) in &plans {
            tracing::warn!(
                interface = plan.name,
                "somebody has detached our programs; attaching them again"
            );
            // What is left of them, so that nothing is taken for attached.
            if let Err(error) = attach::detach(&self.pins, *ifindex) {
                let error = error_chain(&error);
                tracing::error!(interface = plan.name, error, "not detached");
            }
            if !self.serve(maps, *ifindex, plan) {
                self.interfaces.remove(ifindex);
            }
        }
        plans.len() as u64
    }

    fn is_attached(&self, ifindex: u32, plan: &Plan) -> bool {
        let target = Target {
            ifindex,
            name: &plan.name,
            layer: plan.layer,
        };
        attach::is_attached(&self.pins, &self.programs, self.mode, target)
            && xdp::is_intact(&self.pins, &self.programs, ifindex)
    }

    fn audit_sockets(&self) -> u64 {
        let Some(cgroup) = &self.cgroup else { return 0 };
        let missing = cgroup::missing(&self.pins, &self.programs, cgroup);
        if !missing.is_empty() {
            tracing::warn!(
                ?missing,
                "somebody has detached socket programs; attaching them again"
            );
            if let Err(error) = cgroup::attach(&self.pins, &self.programs, cgroup) {
                tracing::error!(error = error_chain(&error), "not attached");
            }
        }
        missing.len() as u64
    }

    fn audit_entries(&self, maps: &mut KernelMaps) -> u64 {
        let mut drift = 0;
        for (ifindex, plan) in &self.interfaces {
            let entry = self.entry(*ifindex, plan);
            if maps.interface(*ifindex) != Some(entry) {
                tracing::warn!(
                    interface = plan.name,
                    "INTERFACES was wrong; writing it again"
                );
                report(*ifindex, put_interface(maps, *ifindex, &entry));
                drift += 1;
            }
        }
        let known: BTreeSet<u32> = maps.interfaces().into_iter().map(|it| it.0).collect();
        // An interface that could not be served has an entry without a plan.
        let strange = known.into_iter().filter(|ifindex| {
            !self.interfaces.contains_key(ifindex) && interface_name(*ifindex).is_none()
        });
        for ifindex in strange {
            report(ifindex, maps.remove_interface(ifindex));
            drift += 1;
        }
        drift
    }

    fn audit_pins(&self) -> u64 {
        let maps = self.pinned.0.iter();
        let maps = maps.map(|(name, map)| (PinKind::Maps, *name, map.as_fd()));
        let programs = self.programs.all();
        let programs = programs.map(|(name, program)| (PinKind::Programs, name, program));
        let mut drift = 0;
        for (kind, name, object) in maps.chain(programs) {
            let pinned = self.pins.open(kind, name).ok().flatten();
            let is_ours = pinned.is_some_and(|pinned| {
                let ids = [pinned.as_fd(), object].map(|fd| sys::object_id(fd).ok());
                ids[0].is_some() && ids[0] == ids[1]
            });
            if !is_ours {
                tracing::warn!(kind = ?kind, name, "a pin was gone; pinning it again");
                if let Err(error) = self.pins.replace(kind, name, object) {
                    tracing::error!(error = error_chain(&error), "not pinned");
                }
                drift += 1;
            }
        }
        drift
    }
}
