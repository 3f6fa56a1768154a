//! What a restart found in the maps, and what must not be concluded from objects that cannot be
//! decoded (S-178): a Service that only looks as if it were gone goes on being served.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::family::IpFamily;
use crate::pipeline::actual::ActualState;
use crate::pipeline::desired::{DesiredState, ServicePortName, TouchedPorts};
use crate::pipeline::store::{Doubt, Store};
use crate::restore::{self, Told};

/// How long a complaint must be gone: a file that is read again takes its complaints back before
/// it makes them anew.
pub(in crate::pipeline) const CALM: Duration = Duration::from_secs(1);

/// What is unknown about the objects, with the time that the answer needs to settle.
#[derive(Debug, Default)]
pub(super) struct SettledDoubt {
    doubt: Doubt,
    calm_at: Option<Instant>,
}

impl SettledDoubt {
    /// Takes in what stands. More doubt counts at once, less when it has stayed so.
    pub(super) fn update(&mut self, found: Doubt, now: Instant) -> Doubt {
        let both = Doubt {
            services: self.doubt.services || found.services,
            slices: self.doubt.slices || found.slices,
        };
        if both == found {
            self.calm_at = None;
            self.doubt = found;
            return found;
        }
        let calm_at = *self.calm_at.get_or_insert(now + CALM);
        if calm_at <= now {
            self.calm_at = None;
            self.doubt = found;
        } else {
            self.doubt = both;
        }
        self.doubt
    }

    /// When less doubt comes into force.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.calm_at
    }
}

/// What was restored and is not compared yet.
#[derive(Debug)]
pub(in crate::pipeline) struct Kept<A: IpFamily> {
    /// Service ports that go by a made-up name: no known Service asks for their frontends.
    pub(in crate::pipeline) unclaimed: BTreeSet<Arc<ServicePortName>>,
    /// Service ports that were adopted and may lack their slices.
    adopted: BTreeSet<Arc<ServicePortName>>,
    /// ClusterIPs of no known Service.
    prefixes: TouchedPorts<A>,
}

impl<A: IpFamily> Kept<A> {
    pub(super) fn new() -> Self {
        Self {
            unclaimed: BTreeSet::new(),
            adopted: BTreeSet::new(),
            prefixes: TouchedPorts::default(),
        }
    }

    /// True if everything restored was compared.
    pub(super) fn is_empty(&self) -> bool {
        self.unclaimed.is_empty() && self.adopted.is_empty() && self.prefixes.prefixes.is_empty()
    }

    /// Takes over what was restored: named where a desired service port is found.
    pub(super) fn take_restored(
        &mut self,
        desired: &DesiredState<A>,
        actual: &mut ActualState<A>,
        active: impl IntoIterator<Item = crate::family::Prefix<A>>,
    ) {
        self.unclaimed.extend(actual.ports.keys().cloned());
        self.prefixes.prefixes.extend(active);
        self.adopt(desired, actual, desired.ports().keys());
    }

    /// Gives names back to what these service ports turn out to own.
    pub(super) fn adopt<'a>(
        &mut self,
        desired: &DesiredState<A>,
        actual: &mut ActualState<A>,
        names: impl Iterator<Item = &'a Arc<ServicePortName>>,
    ) {
        if self.unclaimed.is_empty() {
            return;
        }
        let names: Vec<_> = names.collect();
        // A NodePort or an external address may have been another Service's before (S-034).
        for told in [Told::ByClusterIp, Told::ByAny] {
            for name in &names {
                if let Some(made_up) = restore::adopt(desired, actual, name, told) {
                    self.unclaimed.remove(&made_up);
                    self.adopted.insert((*name).clone());
                }
            }
        }
    }

    /// Hands over to `pending` what nobody doubts, and takes out of it what must wait. Returns the
    /// service ports that it took out.
    pub(super) fn sift(
        &mut self,
        doubt: Doubt,
        store: &Store,
        desired: &DesiredState<A>,
        pending: &mut TouchedPorts<A>,
    ) -> Vec<Arc<ServicePortName>> {
        if !doubt.services {
            pending.ports.append(&mut self.unclaimed);
            pending.prefixes.append(&mut self.prefixes.prefixes);
        }
        let adopted = std::mem::take(&mut self.adopted);
        let (waiting, certain): (BTreeSet<_>, BTreeSet<_>) =
            adopted.into_iter().partition(|name| {
                doubt.slices
                    && desired.ports().contains_key(name)
                    && store.slices(&name.service).next().is_none()
            });
        pending.ports.extend(certain);
        self.adopted = waiting;
        let taken = self.adopted.iter();
        taken
            .filter(|name| pending.ports.remove(*name))
            .cloned()
            .collect()
    }
}
