//! `shunt service list` and `shunt service get`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use comfy_table::Table;
use proxy_common::{Addr4, Addr6};

use super::args::{Output, QueryArgs, ServiceGetArgs, ServiceListArgs};
use super::query::{self, Answer, Nameless};
use super::table;
use super::watch::{self, Parts};
use crate::agent::names::is_service;
use crate::agent::socket::Question;
use crate::agent::view::{self, BackendView, FrontendView};

/// Backends that a row names; the others are counted.
const BACKENDS_SHOWN: usize = 8;

/// Prints every frontend with its backends, as the maps hold them.
pub fn list(args: &ServiceListArgs) -> anyhow::Result<()> {
    let query = QueryArgs {
        bpffs: args.bpffs.clone(),
        output: Output::Table,
    };
    if args.watch {
        return watch(args, &query);
    }
    let frontends = ask(&query, &mut Nameless::default())?;
    super::print(&match args.output.form() {
        Some(form) => form.text(&frontends)?,
        None => table::text(&rows(&frontends, args.output)),
    })?;
    Ok(())
}

/// Prints one Service: its frontends, and its backends with what they were given.
pub fn get(args: &ServiceGetArgs) -> anyhow::Result<()> {
    let mut frontends = ask(&args.query, &mut Nameless::default())?;
    frontends.retain(|found| is_service(&args.name, &service_port(found)));
    if frontends.is_empty() {
        bail!("no frontend of a Service {:?} in the maps", args.name);
    }
    super::print(&match args.query.output.form() {
        Some(form) => form.text(&frontends)?,
        None => {
            let all = table::text(&rows(&frontends, Output::Wide));
            format!("{all}\n\n{}", backends_of(&frontends))
        }
    })?;
    Ok(())
}

fn ask(query: &QueryArgs, nameless: &mut Nameless) -> anyhow::Result<Vec<FrontendView>> {
    let answer = query::ask(query, Question::Services)?;
    nameless.note(matches!(answer, Answer::Agent(_)));
    Ok(match answer {
        Answer::Agent(frontends) => frontends,
        Answer::Maps(maps) => {
            let owners = BTreeMap::new();
            let mut all = view::frontends::<Addr4>(&maps, &owners);
            all.extend(view::frontends::<Addr6>(&maps, &owners));
            all.sort();
            all
        }
    })
}

/// Prints what is there, then every row that is another one a second later.
fn watch(args: &ServiceListArgs, query: &QueryArgs) -> anyhow::Result<()> {
    let mut known = BTreeSet::new();
    let (mut parts, mut nameless) = (Parts::default(), Nameless::default());
    watch::watch(|| {
        let now: BTreeSet<FrontendView> = ask(query, &mut nameless)?.into_iter().collect();
        let fresh: Vec<FrontendView> = now.difference(&known).cloned().collect();
        known = now;
        Ok(match args.output.form() {
            Some(form) => form.parts(&fresh)?,
            None => parts.text(rows(&fresh, args.output)),
        })
    })
}

/// `ns/name:port`.
fn service_port(frontend: &FrontendView) -> String {
    let (namespace, name) = (&frontend.namespace, &frontend.name);
    format!("{namespace}/{name}:{}", frontend.port_name)
}

fn rows(frontends: &[FrontendView], output: Output) -> Table {
    let mut header = vec![
        "NAMESPACE",
        "NAME",
        "PORT",
        "TYPE",
        "FRONTEND",
        "BACKENDS",
        "POLICY",
    ];
    if output == Output::Wide {
        header.extend(["CONNECTIONS", "REFUSED", "DROPPED"]);
    }
    let mut table = table::new(&header);
    for frontend in frontends {
        let mut row = vec![
            or_dash(&frontend.namespace),
            or_dash(&frontend.name),
            or_dash(&frontend.port_name),
            frontend.kind.clone(),
            address(frontend),
            backends(frontend),
            frontend.policy.clone(),
        ];
        if output == Output::Wide {
            let counts = [frontend.connections, frontend.refused, frontend.dropped];
            row.extend(counts.map(|count| count.to_string()));
        }
        table.add_row(row);
    }
    table
}

/// The backends of all these frontends, each once for each service port.
fn backends_of(frontends: &[FrontendView]) -> String {
    let mut table = table::new(&[
        "PORT",
        "BACKEND",
        "STATE",
        "NODE",
        "CONNECTIONS",
        "PACKETS TO",
        "BYTES TO",
        "PACKETS FROM",
        "BYTES FROM",
    ]);
    let mut rows = BTreeMap::new();
    for frontend in frontends {
        for backend in frontend.backends.iter().chain(&frontend.local_backends) {
            rows.insert((&frontend.port_name, backend.address), backend);
        }
    }
    for ((port, address), backend) in rows {
        table.add_row([
            or_dash(port),
            address.to_string(),
            backend.state.clone(),
            if backend.local { "this" } else { "other" }.to_owned(),
            backend.connections.to_string(),
            backend.traffic.packets_to.to_string(),
            table::bytes(backend.traffic.bytes_to),
            backend.traffic.packets_from.to_string(),
            table::bytes(backend.traffic.bytes_from),
        ]);
    }
    table::text(&table)
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
    use super::{BackendView, FrontendView, Output, backends_of, rows, table};
    use crate::flows::Traffic;

    #[test]
    fn rows_align_and_name_what_is_dialed() {
        let backend = BackendView {
            address: "10.1.0.2:8080".parse().unwrap(),
            state: "Active".to_owned(),
            local: true,
            connections: 7,
            traffic: Traffic {
                bytes_to: 3 << 20,
                ..Traffic::default()
            },
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
            connections: 12,
            refused: 3,
            dropped: 0,
        };
        let empty = FrontendView {
            kind: "ClusterIP".to_owned(),
            address: Some("fd00::5".parse().unwrap()),
            port: 80,
            backends: Vec::new(),
            ..node_port.clone()
        };
        let text = table::text(&rows(&[node_port.clone(), empty], Output::Table));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].trim_start().starts_with("NAMESPACE"), "{text}");
        assert!(lines[1].contains("*:30080/TCP"), "{text}");
        assert!(lines[1].contains("10.1.0.2:8080"), "{text}");
        assert!(lines[2].contains("[fd00::5]:80/TCP"), "{text}");
        assert!(lines[2].contains("<none>"), "{text}");
        assert_eq!(lines[0].find("POLICY"), lines[1].find("Cluster"), "{text}");
        let wide = table::text(&rows(std::slice::from_ref(&node_port), Output::Wide));
        let (header, row) = wide.split_once('\n').unwrap();
        let column = header.find("REFUSED").unwrap();
        assert!(row[column..].starts_with('3'), "{wide}");
        // A backend of two frontends is one.
        let backends = backends_of(&[node_port.clone(), node_port]);
        assert_eq!(backends.lines().count(), 2, "{backends}");
        assert!(
            backends.contains("this  7 ") && backends.contains(" 3.0 MiB "),
            "{backends}"
        );
    }
}
