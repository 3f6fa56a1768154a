//! What the agent waits for before it programs anything (S-172). Time is an argument.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::pipeline::desired::node::NodeFacts;
use crate::settings::Ipv6;

/// Until the node's addresses are known.
const ADDRESSES: Duration = Duration::from_secs(30);
/// After that, until its pod CIDRs are, in mode NodeCIDR.
const POD_CIDRS: Duration = Duration::from_secs(5 * 60);

/// What the options need of the Node is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NodeError {
    /// No pod CIDRs came.
    #[error(
        "the Node has no podCIDRs, which detect-local-mode NodeCIDR needs: let the controller \
         manager allocate them, or choose another mode"
    )]
    NoPodCidrs,
    /// No pod CIDR is of the primary family (S-176).
    #[error(
        "no podCIDR of the Node is of the family of its first address, {0}: in \
         detect-local-mode NodeCIDR no pod could be told"
    )]
    PodCidrFamily(IpAddr),
    /// The kernel lacks the primary family (S-175).
    #[error("the first address of the Node is {0}, and this kernel has no IPv6")]
    NoIpv6(IpAddr),
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// The node's addresses.
    Addresses,
    /// Its addresses and its pod CIDRs.
    AddressesAndPodCidrs,
}

/// What there is to know of the Node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// It may still come.
    Server,
    /// All that will be known is listed.
    Listed,
}

/// Waits once; what comes later is adapted to.
#[derive(Debug)]
pub struct NodeWait {
    needs: Needs,
    ipv6: Ipv6,
    since: Option<Instant>,
    is_over: bool,
}

impl NodeWait {
    /// Waits for `needs`, from the first question on.
    pub fn new(needs: Needs, ipv6: Ipv6) -> Self {
        Self {
            needs,
            ipv6,
            since: None,
            is_over: false,
        }
    }

    /// When to ask again; `None`: nothing is waited for.
    pub fn check(
        &mut self,
        node: &NodeFacts,
        source: Source,
        now: Instant,
    ) -> Result<Option<Instant>, NodeError> {
        if self.is_over {
            return Ok(None);
        }
        let since = *self.since.get_or_insert(now);
        let until = since + ADDRESSES;
        let has_addresses = !node.primaries.is_empty() || source == Source::Listed;
        if !has_addresses && now < until {
            return Ok(Some(until));
        }
        if self.needs == Needs::AddressesAndPodCidrs && node.pod_cidrs.is_empty() {
            let until = until + POD_CIDRS;
            return match now < until {
                true => Ok(Some(until)),
                false => Err(NodeError::NoPodCidrs),
            };
        }
        self.check_families(node)?;
        if !has_addresses {
            tracing::warn!("the Node's addresses are unknown: going on, until they come");
        }
        self.is_over = true;
        Ok(None)
    }

    fn check_families(&self, node: &NodeFacts) -> Result<(), NodeError> {
        let Some(&primary) = node.primaries.first() else {
            return Ok(());
        };
        if primary.is_ipv6() && self.ipv6 == Ipv6::Absent {
            return Err(NodeError::NoIpv6(primary));
        }
        let mut pods = node.pod_cidrs.iter();
        let is_told = pods.any(|net| net.addr().is_ipv4() == primary.is_ipv4());
        match self.needs == Needs::AddressesAndPodCidrs && !is_told {
            true => Err(NodeError::PodCidrFamily(primary)),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::rules;

    use super::*;

    fn node(primary: Option<&str>, pods: Option<&str>) -> NodeFacts {
        NodeFacts {
            primaries: primary.iter().map(|text| text.parse().unwrap()).collect(),
            pod_cidrs: pods.iter().map(|text| text.parse().unwrap()).collect(),
            ..NodeFacts::default()
        }
    }

    fn secs(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn addresses_are_waited_for_half_a_minute() {
        rules(&["S-172"]);
        let start = Instant::now();
        let unknown = node(None, None);
        let mut wait = NodeWait::new(Needs::Addresses, Ipv6::Served);
        let mut check = |node: &NodeFacts, at| wait.check(node, Source::Server, start + secs(at));
        assert_eq!(check(&unknown, 0), Ok(Some(start + secs(30))));
        assert_eq!(check(&unknown, 29), Ok(Some(start + secs(30))));
        assert_eq!(check(&unknown, 30), Ok(None));
        // Over for good, whatever becomes of the Node.
        assert_eq!(check(&unknown, 31), Ok(None));

        let mut wait = NodeWait::new(Needs::Addresses, Ipv6::Served);
        let known = node(Some("192.0.2.11"), None);
        assert_eq!(wait.check(&known, Source::Server, start), Ok(None));
        // Files say everything at once.
        let mut wait = NodeWait::new(Needs::Addresses, Ipv6::Served);
        assert_eq!(wait.check(&unknown, Source::Listed, start), Ok(None));
    }

    #[test]
    fn pod_cidrs_are_waited_for_five_minutes_more() {
        rules(&["S-172"]);
        let start = Instant::now();
        let mut wait = NodeWait::new(Needs::AddressesAndPodCidrs, Ipv6::Served);
        let mut check = |node: &NodeFacts, at| wait.check(node, Source::Server, start + secs(at));
        let without = node(Some("192.0.2.11"), None);
        assert_eq!(check(&without, 0), Ok(Some(start + secs(330))));
        assert_eq!(check(&without, 329), Ok(Some(start + secs(330))));
        assert_eq!(check(&without, 330), Err(NodeError::NoPodCidrs));
        let known = node(Some("192.0.2.11"), Some("10.4.1.0/24"));
        assert_eq!(check(&known, 331), Ok(None));
    }

    #[test]
    fn families_that_could_never_work_end_the_agent() {
        rules(&["S-175", "S-176"]);
        let check = |needs, ipv6, node: NodeFacts| {
            let mut wait = NodeWait::new(needs, ipv6);
            wait.check(&node, Source::Server, Instant::now())
        };
        let (plain, pods) = (Needs::Addresses, Needs::AddressesAndPodCidrs);
        let (v4, v6) = (Some("192.0.2.11"), Some("2001:db8::11"));
        let wrong = NodeError::PodCidrFamily("192.0.2.11".parse().unwrap());
        let of_v6 = Some("fd00:10::/64");
        assert_eq!(check(pods, Ipv6::Served, node(v4, of_v6)), Err(wrong));
        assert_eq!(check(plain, Ipv6::Served, node(v4, of_v6)), Ok(None));
        assert_eq!(check(pods, Ipv6::Served, node(v6, of_v6)), Ok(None));
        let absent = NodeError::NoIpv6("2001:db8::11".parse().unwrap());
        assert_eq!(check(plain, Ipv6::Absent, node(v6, None)), Err(absent));
        assert_eq!(check(plain, Ipv6::Absent, node(v4, None)), Ok(None));
    }
}
