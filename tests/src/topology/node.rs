//! A namespace that plays a node.

use std::path::PathBuf;

use anyhow::Result;

use super::addresses::{self, Addresses, PODS4, PODS6};
use super::{BridgeNetfilter, Firewall, Overlay, PodNetwork, Variant};
use crate::net::{Netns, Place, Sandbox};

/// The vxlan network identifier and device of the overlay.
const VXLAN: &str = "id 7 dstport 8472 nolearning";
/// The overlay's device without a MAC header.
pub(super) const TUN: &str = "tun0";

/// A node: its namespace, its own cgroup (what the root cgroup is to a real node), and the bpffs
/// that its agent pins into.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its number, from 1.
    pub number: u8,
    /// Its name: n1, n2.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its addresses on the shared network.
    pub addresses: Addresses,
    /// All processes of the node and of its pods.
    pub cgroup: PathBuf,
    /// Processes that the node's socket hooks do not see.
    pub unseen: PathBuf,
    /// For the agent's pins.
    pub bpffs: PathBuf,
}

/// Whether the socket hooks of a node see a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// In the node's cgroup.
    BySocketHooks,
    /// Outside it, as sandboxed runtimes are (S-206).
    OnlyAsPackets,
}

impl Node {
    /// Makes the node without links.
    pub(super) fn new(sandbox: &Sandbox, number: u8, variant: &Variant) -> Result<Self> {
        let name = format!("n{number}");
        let node = Self {
            number,
            netns: sandbox.netns(&name)?,
            addresses: addresses::node(number),
            cgroup: sandbox.cgroup(&name)?,
            unseen: sandbox.cgroup("unseen")?,
            bpffs: sandbox.bpffs(&name)?,
            name,
        };
        node.set_sysctls(variant)?;
        Ok(node)
    }

    /// Where a process of the node itself runs.
    pub fn place(&self, seen: Seen) -> Place {
        Place {
            netns: self.netns.clone(),
            cgroup: self.cgroup_for(seen),
        }
    }

    pub(super) fn cgroup_for(&self, seen: Seen) -> PathBuf {
        match seen {
            Seen::BySocketHooks => self.cgroup.clone(),
            Seen::OnlyAsPackets => self.unseen.clone(),
        }
    }

    fn set_sysctls(&self, variant: &Variant) -> Result<()> {
        let filter = match variant.firewall {
            Firewall::None => "0",
            Firewall::Strict => "1",
        };
        self.netns.sysctl("net/ipv4/ip_forward", "1")?;
        self.netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for setting in ["all", "default"] {
            self.netns
                .sysctl(&format!("net/ipv4/conf/{setting}/rp_filter"), filter)?;
        }
        let PodNetwork::Bridge(netfilter) = variant.pods else {
            return Ok(());
        };
        let value = match netfilter {
            BridgeNetfilter::Off => "0",
            BridgeNetfilter::On => "1",
        };
        for table in ["iptables", "ip6tables"] {
            self.netns
                .sysctl(&format!("net/bridge/bridge-nf-call-{table}"), value)?;
        }
        Ok(())
    }

    /// Adds what pods are attached to, and the routes to the pods of `others`.
    pub(super) fn add_pod_network(&self, variant: &Variant, others: &[u8]) -> Result<()> {
        if let PodNetwork::Bridge(_) = variant.pods {
            let Addresses { v4, v6 } = addresses::bridge(self.number);
            self.netns.ip(&format!(
                "link add cni0 type bridge mcast_snooping 0\n\
                 link set cni0 mtu {} up\n\
                 addr add {v4}/24 dev cni0\n\
                 addr add {v6}/64 dev cni0 nodad\n",
                variant.link_mtu(),
            ))?;
        }
        match variant.overlay {
            Overlay::None => self.add_routes(others),
            Overlay::Vxlan => self.add_vxlan(others),
            Overlay::Tun => self.add_tun(others),
        }
    }

    fn add_routes(&self, others: &[u8]) -> Result<()> {
        for &other in others {
            let (pods, via) = (addresses::pod(other, 0), addresses::node(other));
            self.netns.ip(&format!(
                "route add {}/24 via {}\nroute add {}/64 via {}\n",
                pods.v4, via.v4, pods.v6, via.v6,
            ))?;
        }
        Ok(())
    }

    fn add_vxlan(&self, others: &[u8]) -> Result<()> {
        let own = addresses::vxlan(self.number);
        self.netns.ip(&format!(
            "link add vx0 address {} type vxlan {VXLAN} local {}\n\
             link set vx0 mtu {} up\n\
             addr add {}/32 dev vx0\n\
             addr add {}/128 dev vx0 nodad\n",
            vxlan_mac(self.number),
            self.addresses.v4,
            addresses::VXLAN_MTU,
            own.v4,
            own.v6,
        ))?;
        for &other in others {
            let (pods, via) = (addresses::pod(other, 0), addresses::vxlan(other));
            let (mac, peer) = (vxlan_mac(other), addresses::node(other).v4);
            self.netns.ip(&format!(
                "neigh replace {} lladdr {mac} dev vx0 nud permanent\n\
                 neigh replace {} lladdr {mac} dev vx0 nud permanent\n\
                 route add {}/24 via {} dev vx0 onlink\n\
                 route add {}/64 via {} dev vx0 onlink\n",
                via.v4, via.v6, pods.v4, via.v4, pods.v6, via.v6,
            ))?;
            self.netns.run(&[
                "bridge",
                "fdb",
                "append",
                &mac,
                "dev",
                "vx0",
                "dst",
                &peer.to_string(),
            ])?;
        }
        Ok(())
    }

    /// The device is there already: its other end is another node's.
    fn add_tun(&self, others: &[u8]) -> Result<()> {
        let own = addresses::vxlan(self.number);
        self.netns.ip(&format!(
            "link set {TUN} up\naddr add {}/32 dev {TUN}\naddr add {}/128 dev {TUN} nodad\n",
            own.v4, own.v6,
        ))?;
        for &other in others {
            let pods = addresses::pod(other, 0);
            self.netns.ip(&format!(
                "route add {}/24 dev {TUN} src {}\nroute add {}/64 dev {TUN} src {}\n",
                pods.v4, own.v4, pods.v6, own.v6,
            ))?;
        }
        Ok(())
    }

    /// Loads the rules that nodes of real clusters have.
    pub(super) fn add_firewall(&self, firewall: Firewall) -> Result<()> {
        match firewall {
            Firewall::None => Ok(()),
            Firewall::Strict => self.netns.nft(&strict_rules()),
        }
    }
}

/// The link address of a node's vxlan device.
fn vxlan_mac(node: u8) -> String {
    format!("0a:00:00:00:77:{node:02x}")
}

/// As flannel and kubeadm leave a node: pods are masqueraded when they leave the cluster, and only
/// pods' packets are forwarded.
fn strict_rules() -> String {
    format!(
        "table inet node {{
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                ip saddr {PODS4} ip daddr {PODS4} return
                ip6 saddr {PODS6} ip6 daddr {PODS6} return
                ip saddr {PODS4} masquerade
                ip6 saddr {PODS6} masquerade
            }}
            chain forward {{
                type filter hook forward priority filter; policy drop;
                ct state invalid counter drop
                ct state established,related accept
                meta l4proto ipv6-icmp accept
                ip saddr {PODS4} accept
                ip daddr {PODS4} accept
                ip6 saddr {PODS6} accept
                ip6 daddr {PODS6} accept
            }}
        }}"
    )
}
