//! Ports that SNAT takes: none of them may be given to a socket of this node (P-13).

use std::path::Path;

use super::{Finding, Node, Severity};
use crate::datapath::environment::{self, PortRange};
use crate::settings::Settings;

const CHECK: &str = "snat-ports";

pub(super) fn check(node: &Node, sysctls: &Path) -> Vec<Finding> {
    let configured = match &node.config {
        Ok(config) => config.map(|config| config.snat_ports),
        // The check of the agent says so.
        Err(_) => None,
    };
    let file = sysctls.join("net/ipv4/ip_local_port_range");
    let reserved_file = sysctls.join("net/ipv4/ip_local_reserved_ports");
    let read = |path: &Path| std::fs::read_to_string(path);
    match (read(&file), read(&reserved_file)) {
        (Ok(range), Ok(reserved)) => {
            let is_reserved = configured.is_some();
            let ports = configured.unwrap_or(Settings::default().snat_ports);
            match environment::parse_range(&range) {
                Some(local) => vec![judge(&ports, local, reserved.trim(), is_reserved)],
                None => Vec::new(),
            }
        }
        (Err(error), _) => vec![Finding::unknown(CHECK, file.display().to_string(), &error)],
        (_, Err(error)) => {
            let place = reserved_file.display().to_string();
            vec![Finding::unknown(CHECK, place, &error)]
        }
    }
}

/// `is_configured`: an agent has set the node up, and has reserved the ports.
fn judge(ports: &[PortRange; 2], local: PortRange, reserved: &str, is_configured: bool) -> Finding {
    let ours: Vec<PortRange> = ports
        .iter()
        .copied()
        .filter(|range| range[0] != 0)
        .collect();
    let text = |ranges: &[PortRange]| {
        let texts = ranges.iter().map(|[first, last]| format!("{first}-{last}"));
        texts.collect::<Vec<_>>().join(",")
    };
    let (ours_text, local_text) = (text(&ours), text(&[local]));
    let is_reserved = |range: &PortRange| environment::is_reserved(reserved, *range);
    let shared: Vec<PortRange> = ours
        .iter()
        .filter(|range| environment::overlaps(**range, local))
        .copied()
        .collect();
    let place = "net.ipv4.ip_local_port_range";
    if shared.iter().any(|range| !is_reserved(range)) {
        let remedy = format!(
            "choose others by --snat-ports, or sysctl -w net.ipv4.ip_local_port_range='FIRST LAST' \
             outside of {ours_text}"
        );
        let (severity, found) = match is_configured {
            true => (
                Severity::Problem,
                format!(
                    "{local_text} shares ports with those of SNAT ({ours_text}), which are not in \
                     ip_local_reserved_ports: a socket of this node can take one that a flow has"
                ),
            ),
            false => (
                Severity::Warning,
                format!(
                    "{local_text} shares ports with those of SNAT ({ours_text}): an agent would \
                     reserve them, which leaves fewer to sockets"
                ),
            ),
        };
        return Finding::new(severity, CHECK, place, found).remedy(remedy);
    }
    if !shared.is_empty() {
        let found = format!(
            "{local_text} shares ports with those of SNAT ({ours_text}); they are reserved, which \
             leaves fewer to sockets"
        );
        return Finding::new(Severity::Note, CHECK, place, found);
    }
    if is_configured && !ours.iter().all(is_reserved) {
        let found = format!("{ours_text} of SNAT are not reserved: somebody has set the file");
        return Finding::new(
            Severity::Note,
            CHECK,
            "net.ipv4.ip_local_reserved_ports",
            found,
        )
        .remedy("start the agent again: it reserves them");
    }
    let found = format!("{local_text} of sockets and {ours_text} of SNAT share no port");
    Finding::ok(CHECK, place, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [PortRange; 2] = [[10_000, 29_999], [61_000, 65_535]];

    #[test]
    fn shared_ports_are_a_problem_unless_they_are_reserved() {
        let severity = |local, reserved| judge(&OURS, local, reserved, true).severity;
        assert_eq!(
            severity([32_768, 60_999], "10000-29999,61000-65535"),
            Severity::Ok
        );
        assert_eq!(severity([1_024, 60_999], ""), Severity::Problem);
        // The kernel joins ranges.
        assert_eq!(severity([1_024, 60_999], "9000-29999"), Severity::Note);
        assert_eq!(severity([1_024, 60_999], "10001-29999"), Severity::Problem);
        assert_eq!(severity([32_768, 60_999], "80"), Severity::Note);
    }

    #[test]
    fn a_node_without_an_agent_is_only_warned() {
        let finding = judge(&OURS, [1_024, 60_999], "", false);
        assert_eq!(finding.severity, Severity::Warning);
        let finding = judge(&[[10_000, 29_999], [0, 0]], [32_768, 60_999], "", false);
        assert_eq!(finding.severity, Severity::Ok);
    }
}
