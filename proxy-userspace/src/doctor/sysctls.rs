//! Settings of the kernel that decide what becomes of packets beside our programs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use proxy_common::interface::flags;

use super::{Finding, Node, Severity};
use crate::datapath::interfaces::{self, Plan, Rules, Snapshot};

/// What one node's interfaces are set to.
struct Settings<'a> {
    root: &'a Path,
    snapshot: &'a Snapshot,
    /// Those with a role.
    plans: BTreeMap<u32, Plan>,
}

pub(super) fn check(node: &Node, root: &Path) -> Vec<Finding> {
    // The check of the interfaces says what went wrong.
    let Ok(snapshot) = &node.snapshot else {
        return Vec::new();
    };
    settings(root, snapshot)
}

fn settings(root: &Path, snapshot: &Snapshot) -> Vec<Finding> {
    let mut plans = interfaces::plan(snapshot, &Rules::default());
    plans.retain(|_, plan| plan.is_attached());
    let settings = Settings {
        root,
        snapshot,
        plans,
    };
    let mut found = settings.forwarding4();
    found.extend(settings.forwarding6());
    found.extend(settings.rp_filter());
    found.extend(settings.route_localnet());
    found
}

impl Settings<'_> {
    /// The kernel asks the interface that a packet enters by.
    fn forwarding4(&self) -> Vec<Finding> {
        const CHECK: &str = "forwarding";
        let (on, off) = self.by_value("ipv4", "forwarding");
        let mut found = Vec::new();
        if !off.is_empty() {
            let places = off.iter().map(|name| conf("ipv4", name, "forwarding"));
            let text = "0: what enters there for pods of this node is dropped";
            let finding = Finding::new(Severity::Problem, CHECK, "", text).at(places.collect());
            found.push(
                finding.remedy(
                    "sysctl -w net.ipv4.ip_forward=1, and in /etc/sysctl.d for the next boot",
                ),
            );
        }
        if !on.is_empty() {
            found.push(Finding::ok(CHECK, "", "IPv4 packets are forwarded").at(on));
        }
        found
    }

    /// IPv6 has one switch for all interfaces.
    fn forwarding6(&self) -> Option<Finding> {
        const CHECK: &str = "forwarding";
        let addresses = self.snapshot.addresses.iter();
        let mut used = addresses.filter(|address| address.is_source && address.addr.is_ipv6());
        used.next()?;
        let value = self.read("ipv6", "all", "forwarding")?;
        let place = conf("ipv6", "all", "forwarding");
        Some(match value {
            0 => Finding::new(
                Severity::Problem,
                CHECK,
                place,
                "0: IPv6 packets for pods of this node are dropped",
            )
            .remedy(
                "sysctl -w net.ipv6.conf.all.forwarding=1, and in /etc/sysctl.d for the next boot",
            ),
            _ => Finding::ok(CHECK, place, "IPv6 packets are forwarded"),
        })
    }

    /// S-212: strict filters drop what does not come by the interface that leads back.
    fn rp_filter(&self) -> Vec<Finding> {
        const CHECK: &str = "rp_filter";
        const STRICT: u32 = 1;
        let all = self.read("ipv4", "all", CHECK).unwrap_or_default();
        let mut by_value = BTreeMap::<u32, Vec<String>>::new();
        let mut found = Vec::new();
        for (ifindex, plan) in &self.plans {
            let Some(own) = self.read("ipv4", &plan.name, CHECK) else {
                continue;
            };
            // The kernel takes the larger one.
            let value = own.max(all);
            if value == STRICT && self.is_uplink_without_default_route(*ifindex, plan) {
                let text = "1 (strict), and no default route leads over it: clients that are \
                            farther away than its own networks are dropped where they come in \
                            (S-212)";
                found.push(
                    Finding::new(
                        Severity::Warning,
                        CHECK,
                        conf("ipv4", &plan.name, CHECK),
                        text,
                    )
                    .remedy(format!(
                        "sysctl -w net.ipv4.conf.{0}.rp_filter=2 (loose), or a rule that \
                             routes what comes from its address over {0}",
                        plan.name
                    )),
                );
            } else {
                by_value.entry(value).or_default().push(plan.name.clone());
            }
        }
        for (value, names) in by_value {
            let text = match value {
                0 => "0 (off)",
                STRICT => "1 (strict): translated packets pass it",
                _ => "2 (loose)",
            };
            found.push(Finding::ok(CHECK, "", text).at(names));
        }
        found
    }

    /// kube-proxy's mode iptables switches it on, and leaves it (S-119d, CVE-2020-8558).
    fn route_localnet(&self) -> Option<Finding> {
        const CHECK: &str = "route_localnet";
        let mut names = vec!["all".to_owned()];
        names.extend(self.plans.values().map(|plan| plan.name.clone()));
        names.retain(|name| {
            self.read("ipv4", name, CHECK)
                .is_some_and(|value| value != 0)
        });
        if names.is_empty() {
            return None;
        }
        let places = names.iter().map(|name| conf("ipv4", name, CHECK));
        let text = "1: neighbours reach what listens on 127.0.0.1 only; kube-proxy sets this, \
                    shunt does not need it";
        let finding = Finding::new(Severity::Warning, CHECK, "", text).at(places.collect());
        Some(finding.remedy("sysctl -w net.ipv4.conf.all.route_localnet=0 once kube-proxy is gone"))
    }

    /// A wire to other machines, not to a pod and no tunnel, with addresses of its own.
    fn is_uplink_without_default_route(&self, ifindex: u32, plan: &Plan) -> bool {
        let link = self.snapshot.links.get(&ifindex);
        let is_uplink = plan.interface.flags & (flags::POD_SIDE | flags::BRIDGE) == 0
            && link.is_some_and(|link| matches!(link.kind.as_str(), "" | "bond" | "veth" | "vlan"));
        let has_network = self.snapshot.addresses.iter().any(|address| {
            address.ifindex == ifindex && address.addr.is_ipv4() && address.prefix_len < 32
        });
        let defaults = self.snapshot.routes.iter();
        let defaults: BTreeSet<u32> = defaults
            .filter(|route| route.prefix_len == 0 && IpAddr::is_ipv4(&route.network))
            .map(|route| route.ifindex)
            .collect();
        is_uplink && has_network && !defaults.contains(&ifindex)
    }

    /// Interfaces where a setting is on, and where it is off.
    fn by_value(&self, family: &str, name: &str) -> (Vec<String>, Vec<String>) {
        let names = self.plans.values().map(|plan| plan.name.clone());
        let known = names.filter_map(|interface| {
            let value = self.read(family, &interface, name)?;
            Some((interface, value))
        });
        let (on, off): (Vec<_>, Vec<_>) = known.partition(|(_, value)| *value != 0);
        let name = |all: Vec<(String, u32)>| all.into_iter().map(|(name, _)| name).collect();
        (name(on), name(off))
    }

    /// `None` where there is no such file: the interface has just gone, or the family is off.
    fn read(&self, family: &str, interface: &str, name: &str) -> Option<u32> {
        let path = self.root.join("net").join(family).join("conf");
        let text = std::fs::read_to_string(path.join(interface).join(name)).ok()?;
        text.trim().parse().ok()
    }
}

/// A setting as `sysctl` names it; a slash stands for a dot in the name of an interface.
fn conf(family: &str, interface: &str, name: &str) -> String {
    format!("net.{family}.conf.{}.{name}", interface.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::datapath::interfaces::{Link, LinkAddress, Route};

    fn uplinks(names: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (ifindex, name) in (2..).zip(names) {
            let link = Link {
                name: (*name).to_owned(),
                hardware: 1,
                ..Link::default()
            };
            snapshot.links.insert(ifindex, link);
            snapshot.addresses.push(LinkAddress {
                ifindex,
                addr: format!("192.0.{ifindex}.1").parse().unwrap(),
                prefix_len: 24,
                is_source: true,
            });
        }
        snapshot.routes.push(Route {
            ifindex: 2,
            network: "0.0.0.0".parse().unwrap(),
            prefix_len: 0,
            has_gateway: true,
            source: None,
            metric: 0,
        });
        snapshot
    }

    fn look(values: &[(&str, &str, &str)]) -> Vec<Finding> {
        let root = tempfile::tempdir().unwrap();
        for (interface, name, value) in values {
            let folder = root.path().join("net/ipv4/conf").join(interface);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), format!("{value}\n")).unwrap();
        }
        settings(root.path(), &uplinks(&["eth0", "eth1"]))
    }

    #[test]
    fn forwarding_that_is_off_on_one_interface_is_a_problem_there() {
        let found = look(&[("eth0", "forwarding", "1"), ("eth1", "forwarding", "0")]);
        let (ok, bad): (Vec<_>, Vec<_>) = found.iter().partition(|it| it.severity == Severity::Ok);
        assert_eq!(ok[0].places, ["eth0"]);
        assert_eq!(bad.len(), 1, "{found:#?}");
        assert_eq!(bad[0].severity, Severity::Problem);
        assert_eq!(bad[0].places, ["net.ipv4.conf.eth1.forwarding"]);
    }

    #[test]
    fn strict_filters_warn_where_no_default_route_leads() {
        let strict = |interface| (interface, "rp_filter", "1");
        let found = look(&[strict("eth0"), strict("eth1")]);
        let warned: Vec<_> = found
            .iter()
            .filter(|it| it.severity != Severity::Ok)
            .collect();
        assert_eq!(warned.len(), 1, "{found:#?}");
        assert_eq!(warned[0].places, ["net.ipv4.conf.eth1.rp_filter"]);
        // The larger of both settings holds.
        let found = look(&[("all", "rp_filter", "2"), strict("eth0"), strict("eth1")]);
        assert!(
            found.iter().all(|it| it.severity == Severity::Ok),
            "{found:#?}"
        );
    }

    #[test]
    fn route_localnet_is_found() {
        let found = look(&[("all", "route_localnet", "1")]);
        assert_eq!(found[0].severity, Severity::Warning);
        assert_eq!(found[0].places, ["net.ipv4.conf.all.route_localnet"]);
    }
}
