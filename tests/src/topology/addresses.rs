//! The address plan of every cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Service range.
pub const SERVICES4: &str = "10.96.0.0/16";
/// Service range.
pub const SERVICES6: &str = "fd00:10:96::/112";
/// All pods.
pub const PODS4: &str = "10.244.0.0/16";
/// All pods.
pub const PODS6: &str = "fd00:10:244::/48";
/// What load balancers give.
pub const BALANCED4: &str = "203.0.113.0/24";
/// What load balancers give.
pub const BALANCED6: &str = "fd00:203::/64";
/// What vxlan over IPv4 leaves of 1500 bytes.
pub const VXLAN_MTU: u32 = 1450;
/// Gateway of routed pods.
pub const POD_GATEWAY4: &str = "169.254.1.1";
/// Gateway of routed pods.
pub const POD_GATEWAY6: &str = "fe80::1";

/// An IPv4 and an IPv6 address of one thing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

/// Address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both families, for tables of rows.
pub const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

impl Addresses {
    /// The address of `family`.
    pub fn of(&self, family: IpFamily) -> IpAddr {
        match family {
            IpFamily::V4 => self.v4.into(),
            IpFamily::V6 => self.v6.into(),
        }
    }
}

/// The network that nodes and clients share: host `host` of 192.168.77.0/24 and fd00:77::/64.
pub const fn uplink(host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 168, 77, host),
        v6: Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, as_hex(host)),
    }
}

/// The second uplink's network: 192.168.78.0/24 and fd00:78::/64.
pub const fn uplink2(host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 168, 78, host),
        v6: Ipv6Addr::new(0xfd00, 0x78, 0, 0, 0, 0, 0, as_hex(host)),
    }
}

/// A client behind the second uplink's router: 198.51.100.0/24 and fd00:79::/64.
pub const fn behind_uplink2(host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(198, 51, 100, host),
        v6: Ipv6Addr::new(0xfd00, 0x79, 0, 0, 0, 0, 0, as_hex(host)),
    }
}

/// Pod `host` of node `node`: 10.244.node.host and fd00:10:244:node::host.
pub const fn pod(node: u8, host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, node, host),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16, 0, 0, 0, as_hex(host)),
    }
}

/// Service `number`: 10.96.0.number and fd00:10:96::number.
pub const fn service(number: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 96, 0, number),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, as_hex(number)),
    }
}

/// What a load balancer gives: 203.0.113.number and fd00:203::number.
pub const fn balanced(number: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(203, 0, 113, number),
        v6: Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, as_hex(number)),
    }
}

/// Node `number`: its address on the shared network.
pub const fn node(number: u8) -> Addresses {
    uplink(10 + number)
}

/// Node `number`: the address of its vxlan device.
pub const fn vxlan(number: u8) -> Addresses {
    pod(number, 254)
}

/// Node `number`: the gateway of its pods where a bridge has it.
pub const fn bridge(number: u8) -> Addresses {
    pod(number, 1)
}

/// The decimal digits of `host` read as hexadecimal, so that both families look alike.
const fn as_hex(host: u8) -> u16 {
    let host = host as u16;
    host / 100 * 0x100 + host / 10 % 10 * 0x10 + host % 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_look_alike() {
        assert_eq!(uplink(100).v6.to_string(), "fd00:77::100");
        assert_eq!(node(1).v6.to_string(), "fd00:77::11");
        assert_eq!(pod(2, 10).v6.to_string(), "fd00:10:244:2::10");
        assert_eq!(service(42).v4.to_string(), "10.96.0.42");
    }
}
