//! `shunt service list`.

use std::collections::BTreeMap;

use comfy_table::{ContentArrangement, Table, presets};
use proxy_common::{Addr4, Addr6};

use super::args::{Output, QueryArgs};
use super::query::{self, Answer};
use crate::agent::socket::Question;
use crate::agent::view::{self, BackendView, FrontendView};

/// Backends that a row names; the others are counted.
const BACKENDS_SHOWN: usize = 8;

/// Prints every frontend with its backends, as the maps hold them.
pub fn list(args: &QueryArgs) -> anyhow::Result<()> {
    let frontends = match query::ask(args, Question::Services)? {
        Answer::Agent(frontends) => frontends,
        Answer::Maps(maps) => {
            eprintln!("no agent runs: the names of Services are not known");
            let owners = BTreeMap::new();
            let mut all = view::frontends::<Addr4>(&maps, &owners);
            all.extend(view::frontends::<Addr6>(&maps, &owners));
            all.sort();
            all
        }
    };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&frontends)?),
        Output::Table => println!("{}", table(&frontends)),
    }
    Ok(())
}

fn table(frontends: &[FrontendView]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "NAMESPACE",
        "NAME",
        "PORT",
        "TYPE",
        "FRONTEND",
        "BACKENDS",
        "POLICY",
    ]);
    for frontend in frontends {
        table.add_row([
            or_dash(&frontend.namespace),
            or_dash(&frontend.name),
            or_dash(&frontend.port_name),
            frontend.kind.clone(),
            address(frontend),
            backends(frontend),
            frontend.policy.clone(),
        ]);
    }
    let lines = table.lines().map(|line| line.trim().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn address(frontend: &FrontendView) -> String {
    let (port, protocol) = (frontend.port, &frontend.protocol);
    match frontend.address {
        Some(address) => format!("{}/{protocol}", std::net::SocketAddr::new(address, port)),
        None => format!("*:{port}/{protocol}"),
    }
}

/// The set that the policy selects from.
fn backends(frontend: &FrontendView) -> String {
    let set = match frontend.policy.as_str() {
        "Local" => &frontend.local_backends,
        _ => &frontend.backends,
    };
    if set.is_empty() {
        return "<none>".to_owned();
    }
    let mut names: Vec<String> = set.iter().take(BACKENDS_SHOWN).map(backend).collect();
    if set.len() > BACKENDS_SHOWN {
        names.push(format!("+{} more", set.len() - BACKENDS_SHOWN));
    }
    names.join(",")
}

fn backend(backend: &BackendView) -> String {
    match backend.state.as_str() {
        "Active" => backend.address.to_string(),
        state => format!("{} ({state})", backend.address),
    }
}

#[cfg(test)]
mod tests {
    use super::{BackendView, FrontendView, table};

    #[test]
    fn rows_align_and_name_what_is_dialed() {
        let backend = BackendView {
            address: "10.1.0.2:8080".parse().unwrap(),
            state: "Active".to_owned(),
            local: true,
        };
        let node_port = FrontendView {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            port_name: "http".to_owned(),
            kind: "NodePort".to_owned(),
            address: None,
            port: 30080,
            protocol: "TCP".to_owned(),
            policy: "Cluster".to_owned(),
            backends: vec![backend],
            local_backends: Vec::new(),
        };
        let empty = FrontendView {
            kind: "ClusterIP".to_owned(),
            address: Some("fd00::5".parse().unwrap()),
            port: 80,
            backends: Vec::new(),
            ..node_port.clone()
        };
        let text = table(&[node_port, empty]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].trim_start().starts_with("NAMESPACE"), "{text}");
        assert!(lines[1].contains("*:30080/TCP"), "{text}");
        assert!(lines[1].contains("10.1.0.2:8080"), "{text}");
        assert!(lines[2].contains("[fd00::5]:80/TCP"), "{text}");
        assert!(lines[2].contains("<none>"), "{text}");
        assert_eq!(lines[0].find("POLICY"), lines[1].find("Cluster"), "{text}");
    }
}
