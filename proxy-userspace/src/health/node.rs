//! Metrics of the node: its agent, the source of its objects, its interfaces, its maps and its
//! process.

use super::exposition::Exposition;
use crate::agent::cpu_time;
use crate::agent::status::SourceView;
use crate::datapath::fill::MapFill;
use crate::datapath::runs::ProgramRuns;
use crate::datapath::serve::InterfaceStatus;
use crate::pipeline::store::Summary;

/// Kinds that a source gives, as `shunt status` names them.
const KINDS: [&str; 4] = ["Service", "EndpointSlice", "Node", "ServiceCIDR"];

/// What an agent knows of itself.
#[derive(Debug)]
pub struct NodeState<'a> {
    /// True once both first lists are programmed.
    pub is_synced: bool,
    /// Where the objects come from.
    pub source: &'a SourceView,
    /// What the source has told.
    pub objects: &'a Summary,
    /// The interfaces.
    pub interfaces: &'a [InterfaceStatus],
    /// Objects that were rejected.
    pub rejected: usize,
    /// What is not served as it should be: warnings, problems.
    pub troubles: [usize; 2],
    /// Map writes that were successful, and that failed.
    pub writes: [u64; 2],
    /// How many SNAT ports there are; 0 before the datapath is configured.
    pub snat_ports: u32,
}

/// The agent's own state.
pub fn text(state: &NodeState<'_>) -> String {
    let mut out = Exposition::default();
    let build = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    out.metric(
        ("shunt_build_info", "gauge", "1, with the agent's version"),
        [(build, 1)],
    );
    out.gauge(
        "shunt_agent_synced",
        "1 once the first lists are programmed",
        u8::from(state.is_synced),
    );
    objects(&mut out, state);
    interfaces(&mut out, state.interfaces);
    let results = ["ok", "failed"].into_iter().zip(state.writes);
    out.metric(
        ("shunt_map_writes_total", "counter", "Writes to the maps"),
        results.map(|(result, count)| (format!("result=\"{result}\""), count)),
    );
    out.gauge(
        "shunt_snat_ports",
        "Source ports that masqueraded connections to one backend share",
        state.snat_ports,
    );
    out.into_text()
}

fn objects(out: &mut Exposition, state: &NodeState<'_>) {
    let watches = &state.source.watches;
    // Files do not go away.
    let is_there = |kind: &str| watches.iter().all(|it| it.kind != kind || it.connected);
    out.metric(
        (
            "shunt_source_connected",
            "gauge",
            "1 while the source gives objects of this kind",
        ),
        KINDS.map(|kind| (format!("kind=\"{kind}\""), u8::from(is_there(kind)))),
    );
    let Summary {
        services,
        endpoint_slices,
        endpoints,
        ..
    } = *state.objects;
    let counts = [
        ("Service", services),
        ("EndpointSlice", endpoint_slices),
        ("Endpoint", endpoints),
    ];
    out.metric(
        ("shunt_objects", "gauge", "Objects that are known"),
        counts.map(|(kind, count)| (format!("kind=\"{kind}\""), count)),
    );
    out.gauge(
        "shunt_objects_rejected",
        "Objects that could not be read",
        state.rejected,
    );
    let severities = ["warning", "problem"].into_iter().zip(state.troubles);
    out.metric(
        (
            "shunt_problems",
            "gauge",
            "What is not served as its Service asks for",
        ),
        severities.map(|(severity, count)| (format!("severity=\"{severity}\""), count)),
    );
}

fn interfaces(out: &mut Exposition, all: &[InterfaceStatus]) {
    let count = |is_it: fn(&InterfaceStatus) -> bool| all.iter().filter(|it| is_it(it)).count();
    let states = [
        ("served", count(|it| it.attached)),
        ("failed", count(|it| it.problem.is_some())),
        ("left_alone", count(|it| it.left_alone.is_some())),
    ];
    out.metric(
        ("shunt_interfaces", "gauge", "Interfaces of the node"),
        states.map(|(state, count)| (format!("state=\"{state}\""), count)),
    );
}

/// How full the maps are, and how many SNAT ports are used to one backend at most.
pub fn map_text(fills: &[MapFill], snat_ports_used: Option<u64>) -> String {
    let mut out = Exposition::default();
    let labels = |fill: &MapFill| format!("map=\"{}\",evicts=\"{}\"", fill.name, fill.evicts);
    out.metric(
        ("shunt_map_entries", "gauge", "Elements in use"),
        fills.iter().filter_map(|it| Some((labels(it), it.used?))),
    );
    out.metric(
        (
            "shunt_map_capacity",
            "gauge",
            "Elements that there is room for; evicts: what was longest unused makes room",
        ),
        fills.iter().map(|it| (labels(it), it.limit)),
    );
    if let Some(used) = snat_ports_used {
        out.gauge(
            "shunt_snat_ports_used",
            "SNAT ports that connections to the same backend use, where they are most",
            used,
        );
    }
    out.into_text()
}

/// What our programs have done.
pub fn program_text(all: &[ProgramRuns]) -> String {
    let mut out = Exposition::default();
    let labels = |it: &ProgramRuns| format!("program=\"{}\"", it.name);
    out.metric(
        (
            "shunt_program_runs_total",
            "counter",
            "Runs of a program, while the kernel counts them",
        ),
        all.iter().map(|it| (labels(it), it.count)),
    );
    out.metric(
        (
            "shunt_program_run_seconds_total",
            "counter",
            "Time that a program ran, while the kernel counts it",
        ),
        all.iter().map(|it| (labels(it), it.time.as_secs_f64())),
    );
    out.into_text()
}

/// What every process tells (S-160), as far as /proc is there.
pub fn process_text() -> String {
    let mut out = Exposition::default();
    out.metric(
        ("process_cpu_seconds_total", "counter", "CPU time"),
        [("", cpu_time().as_secs_f64())],
    );
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split(' ').map(str::parse::<u64>);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    if let (Some(Ok(all)), Some(Ok(resident)), Ok(Some(page))) = (pages.next(), pages.next(), page)
    {
        let page = page.unsigned_abs();
        out.gauge("process_virtual_memory_bytes", "Address space", all * page);
        out.gauge(
            "process_resident_memory_bytes",
            "Memory in RAM",
            resident * page,
        );
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        out.gauge("process_open_fds", "Open file descriptors", open.count());
    }
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    if let Ok((soft, _)) = limit {
        out.gauge("process_max_fds", "Limit of open file descriptors", soft);
    }
    out.into_text()
}

#[cfg(test)]
mod tests {
    use super::{map_text, process_text};
    use crate::datapath::fill::MapFill;

    #[test]
    fn maps_that_could_not_be_counted_have_a_capacity_only() {
        let fill = |name: &str, used| MapFill {
            name: name.to_owned(),
            used,
            limit: 8,
            evicts: false,
        };
        let text = map_text(&[fill("SLOTS", Some(3)), fill("FLOWS4", None)], Some(7));
        let samples: Vec<&str> = text.lines().filter(|it| !it.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                r#"shunt_map_entries{map="SLOTS",evicts="false"} 3"#,
                r#"shunt_map_capacity{map="SLOTS",evicts="false"} 8"#,
                r#"shunt_map_capacity{map="FLOWS4",evicts="false"} 8"#,
                "shunt_snat_ports_used 7",
            ]
        );
    }

    #[test]
    fn a_process_tells_of_itself() {
        crate::rules(&["S-160"]);
        let text = process_text();
        for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds"] {
            let name = format!("process_{name} ");
            assert!(text.lines().any(|it| it.starts_with(&name)), "{name}{text}");
        }
    }
}
