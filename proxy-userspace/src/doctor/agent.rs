//! The agent and what it says; whether the maps are those of this version.

use super::{Agent, Finding, Node, Severity};
use crate::agent::socket;
use crate::agent::status::{SourceView, Status};
use crate::datapath::environment;
use crate::datapath::fill::{self, MapFill};

const CHECK: &str = "agent";
/// Percent of a map.
const NEARLY_FULL: u64 = 90;

pub(super) fn check(node: &Node) -> Vec<Finding> {
    let root = node.pins.root().display().to_string();
    if !node.pins.exist() {
        let text = "nothing is pinned: no agent has run here; what follows is about the node";
        let remedy = "start one (shunt agent), or name its folder by --bpffs";
        return vec![Finding::new(Severity::Note, CHECK, root, text).remedy(remedy)];
    }
    let mut found = Vec::new();
    let socket = socket::path(&node.pins);
    let place = socket.map_or_else(|_| root.clone(), |path| path.display().to_string());
    match &node.agent {
        Agent::Running(status) => found.extend(running(place, status)),
        Agent::Down => found.push(
            Finding::new(
                Severity::Problem,
                CHECK,
                place,
                "no agent answers: what is pinned serves traffic by itself, and follows no change",
            )
            .remedy("start the agent, or remove everything by shunt cleanup"),
        ),
        Agent::Silent(why) => found.push(
            Finding::new(
                Severity::Problem,
                CHECK,
                place,
                format!("an agent listens, and could not be asked: {why}"),
            )
            .remedy("look at its log; it may be of another version than this command"),
        ),
    }
    found.extend(maps(node, &root));
    found.extend(room(&fill::fill(&node.pins)));
    found
}

fn running(place: String, status: &Status) -> Vec<Finding> {
    let mut found = vec![match status.synced {
        true => {
            let text = format!(
                "version {} runs, and all lists are programmed",
                status.version
            );
            Finding::ok(CHECK, place, text)
        }
        false => Finding::new(
            Severity::Problem,
            CHECK,
            place,
            "runs, and waits for the first lists of its Node, Services and EndpointSlices",
        )
        .remedy("look at its log: does it reach the API server, past Services?"),
    }];
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        let text = format!("it is version {}, and this command {own}", status.version);
        found.push(Finding::new(Severity::Note, CHECK, "version", text));
    }
    found.push(drift(status.drift));
    found.extend(status.problems.iter().map(|problem| {
        let text = &problem.problem;
        Finding::new(problem.severity, "programmed", &problem.service, text).remedy(
            match problem.severity {
                Severity::Problem => "make room (--max-services, --max-endpoints) or see its log",
                _ => "correct the object: what is wrong with it is left out",
            },
        )
    }));
    found.extend(status.source.iter().flat_map(watches));
    found.extend(status.rejected.iter().map(|rejected| {
        let text = format!("rejected: {}", rejected.error);
        Finding::new(Severity::Warning, "programmed", &rejected.place, text)
            .remedy("correct the object; until then it is served as it was, or not at all")
    }));
    if status.problems.is_empty() && status.rejected.is_empty() && status.synced {
        let text = format!(
            "{} frontends and {} backends, and nothing is left out",
            status.frontends, status.backends
        );
        found.push(Finding::ok("programmed", "all Services", text));
    }
    found
}

/// Watches of the API server that fail.
fn watches(source: &SourceView) -> Vec<Finding> {
    let failing = source.watches.iter().filter(|watch| !watch.connected);
    failing
        .map(|watch| {
            let server = watch.server.as_deref().unwrap_or("API server");
            let error = watch.error.as_deref().unwrap_or("it has not answered yet");
            let text = format!(
                "no watch of {} for {} s: {error}",
                watch.kind, watch.since_secs
            );
            Finding::new(Severity::Problem, "api", server, text)
                .remedy("what is known is served; name servers that need no Service by --apiserver")
        })
        .collect()
}

/// Maps that are nearly full.
fn room(maps: &[MapFill]) -> Vec<Finding> {
    let full = maps.iter().filter(|map| map.percent() >= NEARLY_FULL);
    full.map(|map| {
        let (used, limit) = (map.used.unwrap_or_default(), map.limit);
        let text = format!("{used} of {limit} elements are in use");
        match map.evicts {
            true => {
                let text = format!("{text}; it drops what was longest unused");
                Finding::new(Severity::Note, "room", &map.name, text)
            }
            false => Finding::new(Severity::Warning, "room", &map.name, text)
                .remedy("larger maps: --max-services, --max-endpoints, then start the agent again"),
        }
    })
    .collect()
}

fn drift(count: u64) -> Finding {
    const CHECK: &str = "drift";
    match count {
        0 => Finding::ok(
            CHECK,
            "maps, programs and pins",
            "nothing had to be repaired",
        ),
        count => Finding::new(
            Severity::Warning,
            CHECK,
            "maps, programs and pins",
            format!(
                "somebody else has changed what is ours: repaired {count} times since the agent's \
                 start"
            ),
        )
        .remedy("the agent's log says what and when (`repaired`): find who writes there"),
    }
}

/// Pinned maps that can be read, and are of this network namespace.
fn maps(node: &Node, root: &str) -> Vec<Finding> {
    const CHECK: &str = "maps";
    let config = match &node.config {
        Ok(Some(config)) if config.abi_version != 0 => config,
        Ok(_) => {
            let text = "not configured: every packet passes";
            return vec![
                Finding::new(Severity::Problem, CHECK, root, text)
                    .remedy("the agent configures them once it has its Node and both lists"),
            ];
        }
        Err(error) => return vec![Finding::unknown(CHECK, root, error)],
    };
    let version = config.abi_version;
    let mut found = vec![match version == proxy_common::ABI_VERSION {
        true => Finding::ok(
            CHECK,
            root,
            format!("of ABI version {version}, as this command"),
        ),
        false => Finding::new(
            Severity::Warning,
            CHECK,
            root,
            format!(
                "of ABI version {version}, and this command is of {}",
                proxy_common::ABI_VERSION
            ),
        )
        .remedy("ask with the command of the agent's own version"),
    }];
    let (theirs, own) = (config.host_netns_cookie, environment::netns_cookie());
    if theirs != 0 && own != 0 && theirs != own {
        let text = "this command runs in another network namespace than the agent: what is said of \
                    interfaces and settings is not about the node";
        found.push(
            Finding::new(Severity::Warning, CHECK, "/proc/self/ns/net", text)
                .remedy("nsenter --target PID-OF-THE-AGENT --net shunt doctor"),
        );
    }
    found
}
