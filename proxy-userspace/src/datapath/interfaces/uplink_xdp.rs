//! Which uplinks run the XDP program, and why the others do not.

use proxy_common::interface::flags;

use super::{ETHERNET, Link, View};
use crate::datapath::xdp::{XdpChoice, XdpMode};

/// Why an uplink is to run no XDP program. What XDP does not get goes on to tc.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoXdp {
    /// The operator said so.
    #[error("--xdp off")]
    Off,
    /// It has no link layer header.
    #[error("its packets have no Ethernet header")]
    NotEthernet,
    /// Tunnels, VLAN devices, bridges.
    #[error("it has no driver of its own: the interface below is served")]
    Virtual,
    /// Its driver may take tags off.
    #[error("a VLAN device is made on it, whose frames XDP would take for its own")]
    BelowVlan,
    /// Where its peer runs no program it drops what XDP sends.
    #[error("a veth, or over one: --xdp native runs it there too")]
    Veth,
}

impl View<'_> {
    /// How it is to run the program; `None` where it is no uplink.
    pub(super) fn xdp(
        &self,
        ifindex: u32,
        link: &Link,
        bits: u32,
    ) -> Option<Result<XdpMode, NoXdp>> {
        let is_uplink = bits & (flags::ATTACHED | flags::POD_SIDE) == flags::ATTACHED;
        is_uplink.then(|| self.uplink_xdp(ifindex, link))
    }

    fn uplink_xdp(&self, ifindex: u32, link: &Link) -> Result<XdpMode, NoXdp> {
        if self.rules.xdp == XdpChoice::Off {
            return Err(NoXdp::Off);
        }
        if !matches!(link.kind.as_str(), "" | "bond" | "veth") {
            return Err(NoXdp::Virtual);
        }
        if link.hardware != ETHERNET {
            return Err(NoXdp::NotEthernet);
        }
        if self.is_below_vlan(ifindex) {
            return Err(NoXdp::BelowVlan);
        }
        match self.rules.xdp {
            XdpChoice::Auto if self.is_veth(ifindex, link) => Err(NoXdp::Veth),
            XdpChoice::Auto | XdpChoice::Native => Ok(XdpMode::Native),
            XdpChoice::Generic => Ok(XdpMode::Generic),
            XdpChoice::Off => Err(NoXdp::Off),
        }
    }

    /// True if a VLAN device is made on it. Where the driver takes tags off, XDP sees frames of the
    /// VLAN as if they had none, and would send them on so.
    fn is_below_vlan(&self, ifindex: u32) -> bool {
        let mut links = self.snapshot.links.values();
        links.any(|link| link.kind == "vlan" && link.lower == Some(ifindex))
    }

    /// A veth, or a bond of them.
    fn is_veth(&self, ifindex: u32, link: &Link) -> bool {
        let mut links = self.snapshot.links.values();
        let is_over = |lower: &Link| lower.controller == Some(ifindex) && lower.kind == "veth";
        link.kind == "veth" || links.any(is_over)
    }
}
