//! A namespace that plays a pod.

use std::net::SocketAddr;

use anyhow::Result;

use super::addresses::{self, Addresses, IpFamily, POD_GATEWAY4, POD_GATEWAY6};
use super::{Node, PodNetwork, Seen, Variant};
use crate::net::{Netns, Place, Sandbox};

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, unique in the cluster.
    pub name: String,
    /// The node it is on.
    pub node: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its addresses.
    pub addresses: Addresses,
    /// Its link on the node.
    pub host_link: String,
    place: Place,
    unseen: Place,
}

/// The link address of every pod's host end, known to the pod, so that nobody answers ARP.
const HOST_MAC: &str = "ee:ee:ee:ee:ee:ee";

impl Pod {
    /// Makes the pod and its link.
    pub(super) fn new(
        sandbox: &Sandbox,
        node: &Node,
        variant: &Variant,
        name: &str,
        host: u8,
    ) -> Result<Self> {
        let netns = sandbox.netns(&format!("pod-{name}"))?;
        let pod = Self {
            name: name.to_owned(),
            node: node.name.clone(),
            addresses: addresses::pod(node.number, host),
            host_link: format!("p-{name}"),
            place: Place {
                netns: netns.clone(),
                cgroup: node.cgroup_for(Seen::BySocketHooks),
            },
            unseen: Place {
                netns: netns.clone(),
                cgroup: node.cgroup_for(Seen::OnlyAsPackets),
            },
            netns,
        };
        pod.add_link(node, variant)?;
        match variant.pods {
            PodNetwork::Routed => pod.add_routed(node)?,
            PodNetwork::Bridge(_) => pod.add_bridged(node)?,
        }
        Ok(pod)
    }

    /// Where a process of this pod runs.
    pub fn place(&self, seen: Seen) -> &Place {
        match seen {
            Seen::BySocketHooks => &self.place,
            Seen::OnlyAsPackets => &self.unseen,
        }
    }

    /// `port` on this pod's address.
    pub fn at(&self, family: IpFamily, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses.of(family), port)
    }

    fn add_link(&self, node: &Node, variant: &Variant) -> Result<()> {
        let (link, mtu) = (&self.host_link, variant.link_mtu());
        node.netns.ip(&format!(
            "link add {link} mtu {mtu} type veth peer name eth0 netns {} mtu {mtu}\n",
            self.netns.name(),
        ))?;
        super::cluster::set_offloads(variant, &node.netns, link)?;
        super::cluster::set_offloads(variant, &self.netns, "eth0")
    }

    fn add_routed(&self, node: &Node) -> Result<()> {
        let (link, Addresses { v4, v6 }) = (&self.host_link, self.addresses);
        node.netns.ip(&format!(
            "link set {link} address {HOST_MAC} up\n\
             addr add {POD_GATEWAY6}/64 dev {link} nodad\n\
             route add {v4}/32 dev {link}\n\
             route add {v6}/128 dev {link}\n",
        ))?;
        self.netns.ip(&format!(
            "link set eth0 up\n\
             addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             neigh replace {POD_GATEWAY4} lladdr {HOST_MAC} dev eth0 nud permanent\n\
             neigh replace {POD_GATEWAY6} lladdr {HOST_MAC} dev eth0 nud permanent\n\
             route add {POD_GATEWAY4} dev eth0 scope link\n\
             route add default via {POD_GATEWAY4} dev eth0\n\
             route add default via {POD_GATEWAY6} dev eth0\n",
        ))
    }

    fn add_bridged(&self, node: &Node) -> Result<()> {
        let (link, Addresses { v4, v6 }) = (&self.host_link, self.addresses);
        let gateway = addresses::bridge(node.number);
        node.netns
            .ip(&format!("link set {link} master cni0 up\n"))?;
        self.netns.ip(&format!(
            "link set eth0 up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add default via {}\n\
             route add default via {}\n",
            gateway.v4, gateway.v6,
        ))
    }
}
