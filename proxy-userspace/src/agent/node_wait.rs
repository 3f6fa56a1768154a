//! What the agent waits for before it programs anything (S-172). Time is an argument.

use std::time::{Duration, Instant};

use crate::pipeline::desired::node::NodeFacts;

/// Until the node's addresses are known.
const ADDRESSES: Duration = Duration::from_secs(30);
/// After that, until its pod CIDRs are, in mode NodeCIDR.
const POD_CIDRS: Duration = Duration::from_secs(5 * 60);

/// The pod CIDRs are needed and did not come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the Node has no podCIDRs, which detect-local-mode NodeCIDR needs: let the controller manager \
     allocate them, or choose another mode"
)]
pub struct NoPodCidrs;

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
    since: Option<Instant>,
    is_over: bool,
}

impl NodeWait {
    /// Waits for `needs`, from the first question on.
    pub fn new(needs: Needs) -> Self {
        Self {
            needs,
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
    ) -> Result<Option<Instant>, NoPodCidrs> {
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
                false => Err(NoPodCidrs),
            };
        }
        if !has_addresses {
            tracing::warn!("the Node's addresses are unknown: going on, until they come");
        }
        self.is_over = true;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cites the rules that a test is about.
    const fn rules(_rules: &[&str]) {}

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
        let mut wait = NodeWait::new(Needs::Addresses);
        let mut check = |node: &NodeFacts, at| wait.check(node, Source::Server, start + secs(at));
        assert_eq!(check(&unknown, 0), Ok(Some(start + secs(30))));
        assert_eq!(check(&unknown, 29), Ok(Some(start + secs(30))));
        assert_eq!(check(&unknown, 30), Ok(None));
        // Over for good, whatever becomes of the Node.
        assert_eq!(check(&unknown, 31), Ok(None));

        let mut wait = NodeWait::new(Needs::Addresses);
        let known = node(Some("192.0.2.11"), None);
        assert_eq!(wait.check(&known, Source::Server, start), Ok(None));
        // Files say everything at once.
        let mut wait = NodeWait::new(Needs::Addresses);
        assert_eq!(wait.check(&unknown, Source::Listed, start), Ok(None));
    }

    #[test]
    fn pod_cidrs_are_waited_for_five_minutes_more() {
        rules(&["S-172"]);
        let start = Instant::now();
        let mut wait = NodeWait::new(Needs::AddressesAndPodCidrs);
        let mut check = |node: &NodeFacts, at| wait.check(node, Source::Server, start + secs(at));
        let without = node(Some("192.0.2.11"), None);
        assert_eq!(check(&without, 0), Ok(Some(start + secs(330))));
        assert_eq!(check(&without, 329), Ok(Some(start + secs(330))));
        assert_eq!(check(&without, 330), Err(NoPodCidrs));
        let known = node(Some("192.0.2.11"), Some("10.4.1.0/24"));
        assert_eq!(check(&known, 331), Ok(None));
    }
}
