//! The oracle: sections 1 to 12 of `docs/service-semantics.md` as a plain, slow program, written
//! from the rules and from nothing else.
//!
//! It shares with the product only the vocabulary (`objects`, `settings`). Everything is computed
//! anew for every packet from all objects, in the order in which the rules are numbered:
//! [`address`] reads text, [`service`] finds ports and frontends, [`endpoint`] merges endpoints
//! and chooses the sets, [`decide`] answers for the first packet of a flow, [`flow`] for all later
//! ones.

pub mod address;
pub mod decide;
pub mod endpoint;
pub mod flow;
pub mod service;

use std::collections::BTreeMap;
use std::net::IpAddr;

use proxy_userspace::objects::{EndpointSlice, Kind, Node, Object, ObjectName, Service};
use proxy_userspace::objects::{Metadata, ServiceCidr};
use proxy_userspace::settings::Settings;

/// An address family: two independent proxies (S-011).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// What a packet carries behind its IP header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// An ICMP echo request: it has no port, so only addresses decide (S-077).
    Echo,
}

impl Protocol {
    /// From the API's word; absent is TCP.
    pub fn from_api(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// All objects as they are in the API.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// By kind and name.
    pub all: BTreeMap<(Kind, ObjectName), Object>,
}

impl Objects {
    /// The object's name with its kind.
    pub fn key(object: &Object) -> (Kind, ObjectName) {
        let Metadata {
            namespace, name, ..
        } = object.metadata().clone();
        (object.kind(), ObjectName { namespace, name })
    }

    /// True if the watches of the node of this name show the object.
    pub fn is_visible(object: &Object, node_name: &str) -> bool {
        let labels = &object.metadata().labels;
        match object {
            // S-002: any value of the label, also empty, hides the Service, as does clusterIP None.
            Object::Service(service) => {
                !labels.contains_key("service.kubernetes.io/service-proxy-name")
                    && service.spec.cluster_ip.as_deref() != Some("None")
            }
            // S-004.
            Object::EndpointSlice(_) => !labels.contains_key("service.kubernetes.io/headless"),
            // S-001: the own one.
            Object::Node(node) => node.metadata.name == node_name,
            Object::ServiceCidr(_) => true,
        }
    }

    /// The Services that we see.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.visible().filter_map(|object| match object {
            Object::Service(service) => Some(service),
            _ => None,
        })
    }

    /// The EndpointSlices that we see.
    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.visible().filter_map(|object| match object {
            Object::EndpointSlice(slice) => Some(slice),
            _ => None,
        })
    }

    /// The ServiceCIDRs.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &ServiceCidr> {
        self.visible().filter_map(|object| match object {
            Object::ServiceCidr(cidr) => Some(cidr),
            _ => None,
        })
    }

    /// The Node of this name (S-001: only the own one is watched).
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.visible().find_map(|object| match object {
            Object::Node(node) if node.metadata.name == name => Some(node),
            _ => None,
        })
    }

    fn visible(&self) -> impl Iterator<Item = &Object> {
        // Nodes are found by name.
        let is_hidden =
            |object: &&Object| object.kind() != Kind::Node && !Self::is_visible(object, "");
        self.all.values().filter(move |object| !is_hidden(object))
    }
}

/// Everything that a decision depends on.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// The API's content.
    pub objects: Objects,
    /// What the operator decided.
    pub settings: Settings,
    /// The addresses on this node's interfaces.
    pub own: Vec<IpAddr>,
}

impl Oracle {
    /// S-048, S-170: an empty own name equals nobody's.
    pub(crate) fn is_own_name(&self, name: Option<&str>) -> bool {
        !self.settings.node_name.is_empty() && name == Some(self.settings.node_name.as_str())
    }

    /// The own zone: this label only, missing is empty (section 4, inputs).
    pub(crate) fn zone(&self) -> String {
        let node = self.objects.node(&self.settings.node_name);
        let zone = node.and_then(|node| node.metadata.labels.get("topology.kubernetes.io/zone"));
        zone.cloned().unwrap_or_default()
    }

    /// The node's primary address of a family (S-171); `None` where it is unknown.
    pub(crate) fn primary(&self, family: Family) -> Option<IpAddr> {
        // S-171: a bindAddress that is not unspecified overrides its family.
        if let Some(bind) = self.settings.bind_address
            && !bind.is_unspecified()
            && Family::of(bind) == family
        {
            return Some(bind);
        }
        let node = self.objects.node(&self.settings.node_name)?;
        // S-171: all InternalIPs, then all ExternalIPs, in their order; the first of the family.
        ["InternalIP", "ExternalIP"].iter().find_map(|kind| {
            let addresses = node.status.addresses.iter();
            addresses
                .filter(|address| address.type_ == **kind)
                .filter_map(|address| address::parse(&address.address))
                .find(|addr| Family::of(*addr) == family)
        })
    }

    /// "Host source": one of this node's own addresses (terms); loopback addresses are every
    /// node's own (S-088).
    pub(crate) fn is_own(&self, addr: IpAddr) -> bool {
        addr.is_loopback() || self.own.contains(&addr)
    }
}
