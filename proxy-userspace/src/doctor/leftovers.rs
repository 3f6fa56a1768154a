//! kube-proxy: what it left, and whether it runs.

use std::fs;

use super::{Finding, Severity};
use crate::leftovers::{self, Found};

const CHECK: &str = "kube-proxy";

pub(super) fn check() -> Vec<Finding> {
    let mut found: Vec<Finding> = processes().into_iter().map(process).collect();
    found.extend(match leftovers::find() {
        Ok(rules) => judge(&rules),
        Err(error) => vec![Finding::unknown(CHECK, "netfilter", error.as_ref())],
    });
    found
}

fn process(pid: u32) -> Finding {
    let text = "kube-proxy runs: it writes rules for the Services that shunt serves";
    Finding::new(Severity::Warning, CHECK, format!("process {pid}"), text)
        .remedy("end it (its DaemonSet) once shunt serves; then shunt cleanup --kube-proxy")
}

fn judge(rules: &Found) -> Vec<Finding> {
    let mut found = Vec::new();
    for leftover in &rules.leftovers {
        let text = "there, from kube-proxy: rules that nobody updates reject or misdirect what \
                    does not go by shunt";
        let finding = Finding::new(Severity::Warning, CHECK, leftover.to_string(), text);
        found.push(finding.remedy("shunt cleanup --kube-proxy, once kube-proxy does not run"));
    }
    for failure in &rules.failures {
        let text = format!("could not be looked at: {failure}");
        found.push(Finding::new(Severity::Warning, CHECK, "netfilter", text));
    }
    if !rules.missing_tools.is_empty() {
        let text = "not installed here: what only it can see was not looked at";
        let finding = Finding::new(Severity::Note, CHECK, "", text);
        found.push(finding.at(rules.missing_tools.clone()));
    }
    if found.is_empty() {
        let text = "no rules, chains or device of kube-proxy";
        found.push(Finding::ok(CHECK, "netfilter and ipvs", text));
    }
    found
}

/// Processes of that name, as far as this PID namespace shows them.
fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|entry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "kube-proxy")
    });
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leftovers::Leftover;

    #[test]
    fn what_is_there_and_what_is_not_seen_are_told_apart() {
        let rules = Found {
            leftovers: vec![Leftover::Table("ip"), Leftover::Ipvs],
            missing_tools: vec!["iptables-legacy".to_owned()],
            failures: vec!["nft: Operation not permitted".to_owned()],
        };
        let severities: Vec<_> = judge(&rules).iter().map(|it| it.severity).collect();
        let expected = [
            Severity::Warning,
            Severity::Warning,
            Severity::Warning,
            Severity::Note,
        ];
        assert_eq!(severities, expected);
        assert_eq!(judge(&Found::default())[0].severity, Severity::Ok);
    }
}
