//! What a frontend's region should say.

use std::sync::Arc;

use proxy_common::frontend::flags;
use proxy_common::{FrontendKey, FrontendKind, RegionHeader, RegionTail};

use crate::family::{Endpoint, IpFamily};
use crate::pipeline::actual::{ActualPort, render};
use crate::pipeline::desired::{DesiredFrontend, DesiredPort, ServicePortName, TrafficPolicy};

/// A frontend and what its region says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication<A: IpFamily> {
    /// The service port.
    pub name: Arc<ServicePortName>,
    /// The frontend.
    pub key: FrontendKey<A>,
    /// Head of the region.
    pub header: RegionHeader,
    /// Affinity timeout.
    pub affinity_timeout_secs: u32,
    /// The Cluster part.
    pub cluster: Arc<[Endpoint<A>]>,
    /// The Local part.
    pub local: Arc<[Endpoint<A>]>,
}

impl<A: IpFamily> Publication<A> {
    /// The content of the region, or `None` if a member has no backend yet.
    pub fn content(&self, port: &ActualPort<A>) -> Option<Box<[u64]>> {
        let tail = RegionTail {
            service_port: port.id,
            affinity_timeout_secs: self.affinity_timeout_secs,
        };
        render(
            port,
            [&self.cluster, &self.local],
            [self.header.pack(), tail.pack()],
        )
    }

    /// What a frontend's region should say.
    pub(super) fn of(
        name: &Arc<ServicePortName>,
        port: &DesiredPort<A>,
        at: &DesiredFrontend<A>,
    ) -> Self {
        let is_local = port.policy(at.kind) == TrafficPolicy::Local;
        // A ClusterIP has no short-circuit to the Cluster set (S-071), the others have (S-081).
        let (cluster, local) = match (&port.tables, at.kind) {
            (Some(tables), kind) if kind != FrontendKind::ClusterIp => {
                (&tables.cluster, &tables.local)
            }
            _ => (&port.cluster, &port.local),
        };
        let cluster = match (is_local, at.kind) {
            (true, FrontendKind::ClusterIp) => Arc::default(),
            _ => cluster.clone(),
        };
        let local = match is_local {
            true => local.clone(),
            false => Arc::default(),
        };
        let has_ranges = at.kind == FrontendKind::LoadBalancer && !port.source_ranges.is_empty();
        // A NodePort may be the port that an own connection was masqueraded to (S-119e).
        let has_address = matches!(
            at.kind,
            FrontendKind::LoadBalancer | FrontendKind::ExternalIp
        );
        let flags = [
            (port.tables.is_some() && has_address, flags::ADOPTS),
            (is_local, flags::LOCAL_POLICY),
            (port.has_endpoints, flags::HAS_ENDPOINTS),
            (has_ranges, flags::SOURCE_RANGES),
            (
                has_ranges && port.source_ranges_have_node,
                flags::SOURCE_RANGES_NODE,
            ),
        ];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
        let header = RegionHeader {
            cluster_count: count(&cluster),
            local_count: count(&local),
            flags: flags.fold(0, |all, (_, flag)| all | flag),
            kind: at.kind as u8,
        };
        let affinity_timeout_secs = port.affinity_timeout_secs;
        Self {
            name: name.clone(),
            key: at.key,
            header,
            affinity_timeout_secs,
            cluster,
            local,
        }
    }
}

fn count<T>(part: &[T]) -> u32 {
    u32::try_from(part.len()).unwrap_or(u32::MAX)
}
