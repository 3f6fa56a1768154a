//! `shunt doctor`.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::args::DoctorArgs;
use crate::doctor::{self, Finding, Report};

/// Places that a line names; the others are counted.
const PLACES_SHOWN: usize = 8;

/// Prints what was found; the code is 1 where there is a problem.
pub fn show(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = doctor::examine(&args.query.bpffs, &args.cgroup);
    super::print(&match args.query.output.form() {
        Some(form) => form.text(&report)?,
        None => text(&report),
    })?;
    Ok(match report.problems {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let Finding {
            severity,
            check,
            found,
            ..
        } = finding;
        let places = places(&finding.places);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{severity:<8} {check:<15} {places}: {found}");
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "{:<24} -> {remedy}", "");
        }
    }
    let count = |count: usize, name: &str| match count {
        0 => format!("no {name}s"),
        1 => format!("1 {name}"),
        count => format!("{count} {name}s"),
    };
    let problems = count(report.problems, "problem");
    text + &format!("\n{problems}, {}", count(report.warnings, "warning"))
}

fn places(all: &[String]) -> String {
    let shown = all[..all.len().min(PLACES_SHOWN)].join(", ");
    match all.len().saturating_sub(PLACES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn a_finding_is_a_line_and_its_remedy_another() {
        let names = (0..10).map(|number| format!("veth{number}")).collect();
        let findings = vec![
            Finding::ok("interfaces", "", "carry our programs").at(names),
            Finding::new(Severity::Problem, "bpffs", "/sys/fs/bpf", "no bpffs").remedy("mount it"),
        ];
        let text = text(&Report {
            problems: 1,
            warnings: 0,
            findings,
        });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ok       interfaces"), "{text}");
        assert!(
            lines[0].ends_with("veth7 and 2 more: carry our programs"),
            "{text}"
        );
        assert!(lines[1].starts_with("PROBLEM  bpffs"), "{text}");
        assert!(lines[2].trim_start().starts_with("-> mount it"), "{text}");
        assert_eq!(lines.last(), Some(&"1 problem, no warnings"));
    }
}
