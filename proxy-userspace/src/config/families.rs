//! Which families are served (S-175), and options of the wrong one (S-176).

use std::fs;
use std::path::Path;

use super::{ConfigError, wrong};
use crate::settings::{DetectLocalMode, Ipv6, Settings};

/// Both families are served where the kernel has IPv6, whatever addresses the node has.
pub fn ipv6(proc: &Path) -> Ipv6 {
    let disabled = fs::read_to_string(proc.join("sys/net/ipv6/conf/all/disable_ipv6"));
    let is_disabled = disabled.is_ok_and(|text| text.trim() == "1");
    match proc.join("net/if_inet6").exists() && !is_disabled {
        true => Ipv6::Served,
        false => Ipv6::Absent,
    }
}

/// Refuses what could never work, and warns of what is only odd.
pub fn check(settings: &Settings, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
    if settings.ipv6 == Ipv6::Served {
        return Ok(());
    }
    if settings.bind_address.is_some_and(|addr| addr.is_ipv6()) {
        let message = "this kernel has no IPv6, so it cannot be the primary family";
        return Err(wrong("bind-address", message));
    }
    let cidrs = &settings.cluster_cidrs;
    if !cidrs.is_empty() && cidrs.iter().all(|net| net.addr().is_ipv6()) {
        let message = "this kernel has no IPv6, and no CIDR is of IPv4";
        if settings.detect_local == DetectLocalMode::ClusterCidr {
            return Err(wrong("cluster-cidr", message));
        }
        warnings.push(format!("cluster-cidr: {message}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::rules;

    use super::*;

    #[test]
    fn kernel_without_ipv6_serves_ipv4_only() {
        rules(&["S-175"]);
        let proc = tempfile::tempdir().unwrap();
        let setting = proc.path().join("sys/net/ipv6/conf/all");
        fs::create_dir_all(&setting).unwrap();
        assert_eq!(ipv6(proc.path()), Ipv6::Absent);
        fs::create_dir(proc.path().join("net")).unwrap();
        fs::write(proc.path().join("net/if_inet6"), "").unwrap();
        assert_eq!(ipv6(proc.path()), Ipv6::Served);
        fs::write(setting.join("disable_ipv6"), "1\n").unwrap();
        assert_eq!(ipv6(proc.path()), Ipv6::Absent);
    }

    #[test]
    fn options_of_a_family_that_is_absent_are_refused_where_nothing_could_work() {
        rules(&["S-176", "S-175"]);
        let check = |cidr: &str, mode, bind: Option<&str>| {
            let settings = Settings {
                ipv6: Ipv6::Absent,
                cluster_cidrs: vec![cidr.parse().unwrap()],
                detect_local: mode,
                bind_address: bind.map(|text| text.parse().unwrap()),
                ..Settings::default()
            };
            let mut warnings = Vec::new();
            check(&settings, &mut warnings).map(|()| warnings.len())
        };
        let cluster = DetectLocalMode::ClusterCidr;
        assert!(check("fd00::/64", cluster.clone(), None).is_err());
        assert_eq!(check("10.4.0.0/16", cluster.clone(), None).unwrap(), 0);
        assert_eq!(
            check("fd00::/64", DetectLocalMode::NodeCidr, None).unwrap(),
            1
        );
        assert!(check("10.4.0.0/16", cluster, Some("2001:db8::1")).is_err());
    }
}
