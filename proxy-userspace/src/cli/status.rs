//! `shunt status`.

use std::fmt::Write as _;

use super::args::{Output, QueryArgs};
use super::query::{self, Answer};
use crate::agent::socket::Question;
use crate::agent::status::{AgentState, Status};
use crate::datapath::features::Features;
use crate::datapath::serve::InterfaceStatus;

/// Prints the status of the agent, or of what it left in the kernel.
pub fn show(args: &QueryArgs) -> anyhow::Result<()> {
    let status = match query::ask(args, Question::Status)? {
        Answer::Agent(status) => status,
        Answer::Maps(maps) => Status::of_maps(&maps, Features::probe()?),
    };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Table => print!("{}", text(&status)),
    }
    Ok(())
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<14}{value}", format!("{name}:"));
    };
    let agent = match (status.agent, status.synced) {
        (AgentState::Running, true) => "running, synced",
        (AgentState::Running, false) => "running, waiting for the first lists",
        (AgentState::Down, _) => "not running; what is pinned serves traffic by itself",
    };
    line("Agent", agent.to_owned());
    if !status.node.is_empty() {
        line("Node", status.node.clone());
    }
    line("Version", status.version.clone());
    let Features { kernel, .. } = &status.features;
    line("Kernel", format!("{kernel} with {}", status.features));
    if let Some(tc) = &status.tc {
        line("Attached by", tc.clone());
        let socket_lb = if status.socket_lb { "on" } else { "off" };
        line("Socket LB", socket_lb.to_owned());
    }
    match &status.datapath {
        Some(datapath) => {
            let version = datapath.abi_version;
            line(
                "Maps",
                format!("ABI version {version}, clock {} Hz", datapath.hz),
            );
        }
        None => line("Maps", "not configured: every packet passes".to_owned()),
    }
    line("Frontends", status.frontends.to_string());
    line("Backends", status.backends.to_string());
    for interface in &status.interfaces {
        line("Interface", interface_line(interface));
    }
    for rejected in &status.rejected {
        line(
            "Rejected",
            format!("{}: {}", rejected.place, rejected.error),
        );
    }
    for problem in &status.problems {
        line(
            "Problem",
            format!("{}: {}", problem.service, problem.problem),
        );
    }
    for (name, value) in &status.counters {
        line("Counter", format!("{name} {value}"));
    }
    text
}

fn interface_line(interface: &InterfaceStatus) -> String {
    let InterfaceStatus { name, ifindex, .. } = interface;
    let attached = match (interface.attached, interface.pod_side) {
        (false, _) => "left alone",
        (true, false) => "served",
        (true, true) => "served, pod side",
    };
    let xdp = interface.xdp.map(|mode| format!(", {mode} XDP"));
    format!("{name} ({ifindex}): {attached}{}", xdp.unwrap_or_default())
}
