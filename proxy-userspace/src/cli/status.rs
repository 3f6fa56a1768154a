//! `shunt status`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::args::QueryArgs;
use super::query::{self, Answer};
use super::table;
use crate::agent::socket::Question;
use crate::agent::status::{AgentState, SourceView, Status};
use crate::datapath::features::Features;
use crate::datapath::pin::Pins;
use crate::datapath::running::RunningProgram;
use crate::datapath::serve::InterfaceStatus;
use crate::doctor::Severity;

/// Lines of one kind that are shown; the others are counted.
const LINES_SHOWN: usize = 20;

/// Prints the status of the agent, or of what it left in the kernel; the code is 1 where something
/// is not as it should be.
pub fn show(args: &QueryArgs) -> anyhow::Result<ExitCode> {
    let mut status = match query::ask(args, Question::Status)? {
        Answer::Agent(status) => status,
        Answer::Maps(maps) => Status::of_maps(&maps, Features::probe()?),
    };
    status.complete(&Pins::at(&args.bpffs));
    super::print(&match args.output.form() {
        Some(form) => form.text(&status)?,
        None => text(&status),
    })?;
    Ok(match status.is_healthy() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Lines with a name in front.
#[derive(Default)]
struct Lines(Vec<String>);

impl Lines {
    fn line(&mut self, name: &str, value: impl AsRef<str>) {
        let name = format!("{name}:");
        self.0.push(format!("{name:<14}{}", value.as_ref()));
    }

    /// As many as fit, and how many more there are.
    fn some(&mut self, name: &str, values: impl Iterator<Item = String>) {
        let mut values = values.peekable();
        for value in values.by_ref().take(LINES_SHOWN) {
            self.line(name, value);
        }
        match values.count() {
            0 => {}
            more => self.line(name, format!("and {more} more; -o json has them all")),
        }
    }

    fn table(&mut self, text: String) {
        self.0.push(String::new());
        self.0.push(text);
    }
}

fn text(status: &Status) -> String {
    let mut lines = Lines::default();
    lines.line("Agent", agent(status));
    lines.line(
        "Healthy",
        match status.unhealthy.is_empty() {
            true => "yes".to_owned(),
            false => format!("no: {}", status.unhealthy.join("; ")),
        },
    );
    if !status.node.is_empty() {
        lines.line("Node", &status.node);
    }
    lines.line("Version", &status.version);
    let Features { kernel, .. } = &status.features;
    lines.line("Kernel", format!("{kernel} with {}", status.features));
    lines.some("Source", status.source.iter().flat_map(source));
    if let Some(objects) = &status.objects {
        lines.line(
            "Objects",
            format!(
                "{} Services, {} EndpointSlices with {} endpoints",
                objects.services, objects.endpoint_slices, objects.endpoints
            ),
        );
        let waiting = objects.without_address.iter();
        lines.some(
            "No address",
            waiting.map(|name| format!("{name} (type LoadBalancer)")),
        );
    }
    let (frontends, backends) = (status.frontends, status.backends);
    lines.line(
        "Programmed",
        format!("{frontends} frontends, {backends} backends"),
    );
    datapath(&mut lines, status);
    errors(&mut lines, status);
    lines.some(
        "Counter",
        status
            .counters
            .iter()
            .map(|(name, value)| format!("{name} {value}")),
    );
    lines.table(interfaces(status));
    lines.table(maps(status));
    lines.0.join("\n")
}

fn agent(status: &Status) -> String {
    match (status.agent, status.synced) {
        (AgentState::Running, true) => {
            let since = table::age(status.synced_secs.unwrap_or_default());
            match status.updated_secs {
                Some(secs) => format!(
                    "running, synced for {since}, last update {} ago, {} repairs",
                    table::age(secs),
                    status.drift
                ),
                None => format!("running, synced for {since}"),
            }
        }
        (AgentState::Running, false) => "running, waiting for the first lists".to_owned(),
        (AgentState::Down, _) => "not running; what is pinned serves traffic by itself".to_owned(),
    }
}

/// A line a server, and one a watch that fails.
fn source(source: &SourceView) -> Vec<String> {
    if source.watches.is_empty() {
        return vec![format!("{} {}", source.kind, source.paths.join(", "))];
    }
    let mut by_server = BTreeMap::<&str, Vec<String>>::new();
    let mut failing = Vec::new();
    for watch in &source.watches {
        let server = watch.server.as_deref().unwrap_or("API server");
        let (kind, since) = (&watch.kind, table::age(watch.since_secs));
        if watch.connected {
            let kinds = by_server.entry(server).or_default();
            kinds.push(format!("{kind} ({since})"));
        } else {
            let error = watch.error.as_deref().unwrap_or("no answer yet");
            failing.push(format!(
                "{server} does not give {kind} since {since}: {error}"
            ));
        }
    }
    let watched = by_server.into_iter();
    let watched = watched.map(|(server, kinds)| format!("{server} gives {}", kinds.join(", ")));
    watched.chain(failing).collect()
}

fn datapath(lines: &mut Lines, status: &Status) {
    match &status.datapath {
        Some(datapath) => {
            let (version, hz) = (datapath.abi_version, datapath.hz);
            lines.line("Maps", format!("ABI version {version}, clock {hz} Hz"));
        }
        None => lines.line("Maps", "not configured: every packet passes"),
    }
    if status.tc.is_some() && !status.socket_lb {
        lines.line("Socket LB", "off");
        return;
    }
    let hooks = status
        .programs
        .iter()
        .filter(|program| program.ifindex.is_none());
    let hooks: Vec<String> = hooks
        .map(|program| format!("{} {}", program.hook, link(program)))
        .collect();
    lines.line(
        "Socket LB",
        match hooks.is_empty() {
            true => "no program is attached".to_owned(),
            false => format!("hooks by link: {}", hooks.join(", ")),
        },
    );
}

/// What is wrong, by object.
fn errors(lines: &mut Lines, status: &Status) {
    let rejected = status.rejected.iter();
    lines.some(
        "Rejected",
        rejected.map(|rejected| format!("{}: {}", rejected.place, rejected.error)),
    );
    for (severity, name) in [
        (Severity::Problem, "Problem"),
        (Severity::Warning, "Left out"),
    ] {
        let of_it = status.problems.iter().filter(|it| it.severity == severity);
        lines.some(
            name,
            of_it.map(|it| format!("{}: {}", it.service, it.problem)),
        );
    }
    let unserved = status.interfaces.iter();
    lines.some(
        "Problem",
        unserved.filter_map(|it| Some(format!("interface {}: {}", it.name, it.problem.as_ref()?))),
    );
}

/// Those that are served and those that should be; the doctor says why others are left alone.
fn interfaces(status: &Status) -> String {
    let mut table = table::new(&["INTERFACE", "INDEX", "ROLE", "INGRESS", "EGRESS", "XDP"]);
    let of_interest = |it: &&InterfaceStatus| it.attached || it.problem.is_some();
    let mut all = status.interfaces.iter().filter(of_interest);
    for interface in all.by_ref().take(LINES_SHOWN) {
        let at = |hook: &str| {
            let mut programs = status.programs.iter();
            let found =
                programs.find(|it| it.ifindex == Some(interface.ifindex) && it.hook == hook);
            found.map_or_else(|| "-".to_owned(), |it| format!("{} {}", it.mode, link(it)))
        };
        table.add_row([
            interface.name.clone(),
            interface.ifindex.to_string(),
            match (&interface.problem, interface.pod_side) {
                (Some(_), _) => "not served",
                (None, true) => "pods",
                (None, false) => "network",
            }
            .to_owned(),
            at("ingress"),
            at("egress"),
            at("xdp"),
        ]);
    }
    match all.count() {
        0 => table::text(&table),
        more => format!(
            "{}\nand {more} more; -o json has them all",
            table::text(&table)
        ),
    }
}

/// The kernel's id of the link; a filter has none.
fn link(program: &RunningProgram) -> String {
    match (program.is_detached(), program.link_id) {
        (true, _) => "DETACHED".to_owned(),
        (false, Some(id)) => format!("#{id}"),
        (false, None) => "filter".to_owned(),
    }
}

/// Maps that hold something.
fn maps(status: &Status) -> String {
    let mut table = table::new(&["MAP", "USED", "LIMIT", "FULL", "WHEN FULL"]);
    for map in status.maps.iter().filter(|map| map.used != Some(0)) {
        let used = map
            .used
            .map_or_else(|| "unknown".to_owned(), |used| used.to_string());
        let when_full = match map.evicts {
            true => "drops the longest unused",
            false => "takes no more",
        };
        table.add_row([
            map.name.clone(),
            used,
            map.limit.to_string(),
            format!("{}%", map.percent()),
            when_full.to_owned(),
        ]);
    }
    table::text(&table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::WatchView;

    #[test]
    fn a_source_is_a_line_a_server_and_one_a_failure() {
        let watch = |kind: &str, error: Option<&str>| WatchView {
            kind: kind.to_owned(),
            server: Some("https://192.0.2.5:6443/".to_owned()),
            connected: error.is_none(),
            since_secs: 61,
            error: error.map(str::to_owned),
        };
        let lines = source(&SourceView {
            kind: "api".to_owned(),
            paths: Vec::new(),
            watches: vec![
                watch("Node", None),
                watch("Service", None),
                watch("EndpointSlice", Some("refused")),
            ],
        });
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].ends_with("gives Node (1m1s), Service (1m1s)"),
            "{lines:?}"
        );
        assert!(
            lines[1].contains("EndpointSlice since 1m1s: refused"),
            "{lines:?}"
        );
    }
}
