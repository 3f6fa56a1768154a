//! The interfaces: which carry our programs and which do not, and programs of others beside ours.

use std::collections::BTreeMap;

use super::{Agent, Finding, Node, Severity};
use crate::datapath::cgroup::Cgroup;
use crate::datapath::interfaces::{self, Rules, Snapshot};
use crate::datapath::serve::InterfaceStatus;
use crate::datapath::strangers::{self, Order, Stranger};
use crate::error_chain;

const CHECK: &str = "interfaces";

/// Whether every interface with a role carries our programs.
pub(super) fn check(node: &Node) -> Vec<Finding> {
    let snapshot = match &node.snapshot {
        Ok(snapshot) => snapshot,
        Err(error) => return vec![Finding::unknown(CHECK, "netlink", error)],
    };
    let mut found = detached(node);
    found.extend(match (&node.agent, node.pins.exist()) {
        (Agent::Running(status), _) => by_agent(node, snapshot, &status.interfaces),
        (_, true) => by_pins(node, snapshot),
        (_, false) => by_plan(snapshot),
    });
    found
}

/// What the agent says, compared with what the kernel has.
fn by_agent(node: &Node, snapshot: &Snapshot, known: &[InterfaceStatus]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut left_alone = BTreeMap::<&str, Vec<String>>::new();
    let mut served = Vec::new();
    for interface in known {
        let name = interface.name.clone();
        if let Some(problem) = &interface.problem {
            let text = format!("has a role, and could not be served: {problem}");
            found.push(
                Finding::new(Severity::Problem, CHECK, name, text)
                    .remedy("the agent tries again every 10 s; free the hook that is in its way"),
            );
        } else if let Some(reason) = &interface.left_alone {
            left_alone.entry(reason).or_default().push(name);
        } else if interface.attached && is_carried(node, interface.ifindex) {
            served.push(name);
        } else if interface.attached {
            found.push(not_carried(name));
        }
    }
    let unknown = snapshot.links.iter().filter(|(ifindex, link)| {
        !link.is_loopback && known.iter().all(|interface| interface.ifindex != **ifindex)
    });
    let unknown: Vec<String> = unknown.map(|(_, link)| link.name.clone()).collect();
    if !unknown.is_empty() {
        let text = "the agent does not know of it: it has just come, or this command runs in \
                    another network namespace than the agent";
        found.push(Finding::new(Severity::Warning, CHECK, "", text).at(unknown));
    }
    found.extend(served_at(served));
    found.extend(xdp(known));
    found.extend(left_alone_at(left_alone));
    found
}

/// How uplinks run the XDP program, and why those that do not are served by tc alone.
fn xdp(known: &[InterfaceStatus]) -> Vec<Finding> {
    let mut reasons = BTreeMap::<&str, Vec<String>>::new();
    let mut modes = BTreeMap::<String, Vec<String>>::new();
    for interface in known.iter().filter(|it| it.attached) {
        let name = interface.name.clone();
        match (interface.xdp, &interface.no_xdp) {
            (Some(mode), _) => modes.entry(mode.to_string()).or_default().push(name),
            (None, Some(reason)) => reasons.entry(reason).or_default().push(name),
            // It leads to pods.
            (None, None) => {}
        }
    }
    let modes = modes.into_iter().map(|(mode, names)| {
        let text = format!("XDP runs here ({mode})");
        Finding::ok("xdp", "", text).at(names)
    });
    let reasons = reasons.into_iter().map(|(reason, names)| {
        let text = format!("no XDP, tc does it all: {reason}");
        Finding::new(Severity::Note, "xdp", "", text).at(names)
    });
    modes.chain(reasons).collect()
}

/// Without an agent: every interface that our usual rules give a role should carry programs.
fn by_pins(node: &Node, snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut left_alone = BTreeMap::<String, Vec<String>>::new();
    let (mut served, mut uncovered) = (Vec::new(), Vec::new());
    for (ifindex, plan) in interfaces::plan(snapshot, &Rules::default()) {
        match plan.left_alone {
            _ if is_carried(node, ifindex) => served.push(plan.name),
            Some(reason) => {
                let names = left_alone.entry(reason.to_string()).or_default();
                names.push(plan.name);
            }
            None => uncovered.push(plan.name),
        }
    }
    if !uncovered.is_empty() {
        let text = "no program of ours, and it would have a role by the routes: without an agent \
                    nobody attaches to what has come since";
        let finding = Finding::new(Severity::Problem, CHECK, "", text).at(uncovered);
        found.push(finding.remedy("start the agent; ignore this where --interfaces leaves it out"));
    }
    found.extend(served_at(served));
    let reasons = left_alone.iter();
    let reasons = reasons.map(|(reason, names)| (reason.as_str(), names.clone()));
    found.extend(left_alone_at(reasons.collect()));
    found
}

/// A node that never had an agent.
fn by_plan(snapshot: &Snapshot) -> Vec<Finding> {
    let plans = interfaces::plan(snapshot, &Rules::default());
    let wanted = plans.values().filter(|plan| plan.is_attached());
    let names: Vec<String> = wanted.map(|plan| plan.name.clone()).collect();
    vec![match names.is_empty() {
        true => Finding::new(
            Severity::Warning,
            CHECK,
            "routes",
            "no interface has an address or a route: none would be served",
        )
        .remedy("name them by --interfaces"),
        false => Finding::ok(CHECK, "", "would be served").at(names),
    }]
}

/// Hooks that are pinned and empty.
fn detached(node: &Node) -> Vec<Finding> {
    let empty = node.running.iter().filter(|it| it.is_detached());
    let places: Vec<String> = empty.map(|it| it.place()).collect();
    if places.is_empty() {
        return Vec::new();
    }
    let text = "somebody has detached our program; the agent's next audit puts it back";
    let finding = Finding::new(Severity::Problem, "programs", "", text).at(places);
    vec![
        finding.remedy("find who detaches it (bpftool link, tc), and start the agent if none runs"),
    ]
}

fn is_carried(node: &Node, ifindex: u32) -> bool {
    let has = |hook: &str| {
        let mut running = node.running.iter();
        running.any(|it| it.ifindex == Some(ifindex) && it.hook == hook && it.program_id.is_some())
    };
    has("ingress") && has("egress")
}

fn not_carried(name: String) -> Finding {
    let text = "the agent has attached programs, and they are not there";
    Finding::new(Severity::Problem, CHECK, name, text)
        .remedy("find who detaches them (bpftool net, tc); the agent's next audit puts them back")
}

fn served_at(names: Vec<String>) -> Option<Finding> {
    let text = match names.len() {
        0 => return None,
        1 => "carries our programs".to_owned(),
        count => format!("these {count} carry our programs"),
    };
    Some(Finding::ok(CHECK, "", text).at(names))
}

fn left_alone_at(reasons: BTreeMap<&str, Vec<String>>) -> Vec<Finding> {
    let reasons = reasons.into_iter();
    reasons
        .map(|(reason, names)| {
            let text = format!("left alone: {reason}");
            Finding::new(Severity::Note, CHECK, "", text).at(names)
        })
        .collect()
}

/// Programs of others at the hooks that ours use.
pub(super) fn strangers(node: &Node) -> Vec<Finding> {
    const CHECK: &str = "others";
    let ours = strangers::our_programs(&node.pins);
    let mut found = Vec::new();
    let mut all = Vec::new();
    if let Ok(snapshot) = &node.snapshot {
        for (&ifindex, link) in snapshot.links.iter().filter(|(_, link)| !link.is_loopback) {
            match strangers::on_interface(&ours, ifindex, link) {
                Ok(more) => all.extend(more),
                Err(error) => found.push(Finding::unknown(CHECK, &link.name, &error)),
            }
        }
    }
    found.extend(all.iter().map(|stranger| on_interface(CHECK, stranger)));
    match Cgroup::open(&node.cgroup) {
        Ok(cgroup) => match strangers::on_cgroup(&ours, &cgroup) {
            Ok(all) => found.extend(all.iter().map(|stranger| on_socket(CHECK, stranger))),
            Err(error) => {
                let place = node.cgroup.display().to_string();
                found.push(Finding::unknown(CHECK, place, &error));
            }
        },
        // The check of the mounts says so.
        Err(error) => tracing::debug!(error = error_chain(&error), "no cgroup to look at"),
    }
    if found.is_empty() {
        let text = "no program of others at the hooks of interfaces and sockets";
        found.push(Finding::ok(CHECK, "tc, XDP and cgroup hooks", text));
    }
    found
}

fn on_interface(check: &'static str, stranger: &Stranger) -> Finding {
    let Stranger { place, program, .. } = stranger;
    // P-1: others see packets between client and backend.
    let is_ingress = place.ends_with("ingress");
    match stranger.order {
        Order::Before if is_ingress => {
            let text = format!("{program} runs before ours, and sees packets to Services");
            Finding::new(Severity::Warning, check, place, text)
                .remedy("start the agent again: it puts its programs first")
        }
        Order::After if !is_ingress => {
            let text = format!("{program} runs after ours, and sees packets of Services");
            Finding::new(Severity::Warning, check, place, text)
                .remedy("start the agent again: it puts its programs last")
        }
        Order::Alone if place.ends_with("xdp") => {
            let text = format!("{program} has the hook: ours runs at tc, where it was to be here");
            Finding::new(Severity::Note, check, place, text)
        }
        Order::Before | Order::After => {
            let text = format!("{program} runs too, and sees packets between client and backend");
            Finding::new(Severity::Note, check, place, text)
        }
        Order::Alone => {
            let text = format!("{program} runs, and none of ours");
            Finding::new(Severity::Note, check, place, text)
        }
    }
}

fn on_socket(check: &'static str, stranger: &Stranger) -> Finding {
    let Stranger { place, program, .. } = stranger;
    let text = match stranger.order {
        Order::Before => format!("{program} runs before ours, and may change addresses first"),
        Order::After => format!("{program} runs after ours, and may change addresses again"),
        Order::Alone => format!("{program} runs, and none of ours"),
    };
    let severity = match stranger.order {
        Order::Alone => Severity::Note,
        Order::Before | Order::After => Severity::Warning,
    };
    Finding::new(severity, check, place, text).remedy(
        "two load balancers at one socket hook: switch one of them off (here by --socket-lb off)",
    )
}
