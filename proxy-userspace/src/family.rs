//! Address families in userspace: between `std::net`, CIDRs and the map types.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::{Addr4, Addr6, Address, Be16, Cidr, FrontendKey, protocol};

/// An address family as the object's path sees it.
pub trait IpFamily: Address {
    /// As in the API and in metrics.
    const NAME: &'static str;

    /// The address, if it is of this family.
    fn from_ip(ip: IpAddr) -> Option<Self>;

    /// As a standard address.
    fn to_ip(self) -> IpAddr;
}

impl IpFamily for Addr4 {
    const NAME: &'static str = "IPv4";

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }
}

impl IpFamily for Addr6 {
    const NAME: &'static str = "IPv6";

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip.into()),
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }
}

/// A network of one family: address with cleared host bits, and prefix length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix<A> {
    /// Network address.
    pub addr: A,
    /// Length in bits.
    pub len: u32,
}

impl<A: IpFamily> Prefix<A> {
    /// The network, if it is of this family.
    pub fn from_net(net: &IpNet) -> Option<Self> {
        let addr = A::from_ip(net.network())?;
        Some(Self {
            addr,
            len: net.prefix_len().into(),
        })
    }

    /// As a standard network; `None` for a length that no address has.
    pub fn to_net(&self) -> Option<IpNet> {
        IpNet::new(self.addr.to_ip(), u8::try_from(self.len).ok()?).ok()
    }

    /// One address.
    pub fn host(addr: A) -> Self {
        Self { addr, len: A::BITS }
    }
}

/// The network as CONFIG holds it; unused where it is absent or of the other family.
pub fn config_cidr<A: IpFamily>(net: Option<&IpNet>) -> Cidr<A> {
    let parts = net.and_then(|net| Some((A::from_ip(net.network())?, A::from_ip(net.netmask())?)));
    match parts {
        Some((network, mask)) => Cidr {
            network,
            mask,
            used: 1,
        },
        None => Cidr {
            network: A::UNSPECIFIED,
            mask: A::UNSPECIFIED,
            used: 0,
        },
    }
}

/// A network out of CONFIG; `None` where it is unused.
pub fn config_net<A: IpFamily>(cidr: &Cidr<A>) -> Option<IpNet> {
    let net = IpNet::with_netmask(cidr.network.to_ip(), cidr.mask.to_ip());
    net.ok().filter(|_| cidr.used != 0)
}

/// An endpoint's address and port (host order): its identity inside a service port (S-044).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Endpoint<A> {
    /// Address.
    pub addr: A,
    /// Port.
    pub port: u16,
}

impl<A: IpFamily> fmt::Display for Endpoint<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.addr.to_ip(), self.port).fmt(f)
    }
}

/// Builds a frontend's key; `port` in host order.
pub fn frontend_key<A: Address>(addr: A, port: u16, protocol: u8) -> FrontendKey<A> {
    FrontendKey {
        addr,
        port: Be16::new(port),
        protocol,
        pad: 0,
    }
}

/// `address:port/protocol`, or `node:port/protocol` for a NodePort.
pub fn frontend_text<A: IpFamily>(key: &FrontendKey<A>) -> String {
    let protocol = protocol_name(key.protocol);
    if key.addr == A::UNSPECIFIED {
        return format!("node:{}/{protocol}", key.port.get());
    }
    let addr = std::net::SocketAddr::new(key.addr.to_ip(), key.port.get());
    format!("{addr}/{protocol}")
}

/// As in the API.
pub fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        _ => "unknown",
    }
}

/// From the API's word; absent is TCP.
pub fn protocol_number(name: Option<&str>) -> Option<u8> {
    match name {
        None | Some("" | "TCP") => Some(protocol::TCP),
        Some("UDP") => Some(protocol::UDP),
        Some("SCTP") => Some(protocol::SCTP),
        Some(_) => None,
    }
}
