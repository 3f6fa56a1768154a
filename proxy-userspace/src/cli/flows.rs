//! `shunt flows`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use comfy_table::Table;
use serde::Serialize;

use super::args::FlowsArgs;
use super::query::Nameless;
use super::table;
use super::watch::{self, Parts};
use crate::agent::names::{self, is_address, is_service};
use crate::datapath::pin::Pins;
use crate::flows::{self, FlowView};

const HEADER: [&str; 11] = [
    "PROTO",
    "CLIENT",
    "FRONTEND",
    "BACKEND",
    "SEEN AS",
    "STATE",
    "AGE",
    "IDLE",
    "BYTES TO",
    "BYTES FROM",
    "SERVICE",
];

/// Prints the live connections of the packet path.
pub fn show(args: &FlowsArgs) -> anyhow::Result<()> {
    if args.watch {
        return watch(args);
    }
    let flows = read(args, &mut Nameless::default())?;
    super::print(&match args.query.output.form() {
        Some(form) => form.text(&flows)?,
        None => shown(&flows),
    })?;
    Ok(())
}

/// The names are the agent's; everything else is read from the pins.
fn read(args: &FlowsArgs, nameless: &mut Nameless) -> anyhow::Result<Vec<FlowView>> {
    let pins = Pins::at(&args.query.bpffs);
    let names = names::ask(&pins);
    nameless.note(names.is_some());
    let mut flows = flows::read(&pins, names.as_ref())?;
    flows.retain(|flow| is_wanted(args, flow));
    Ok(flows)
}

fn is_wanted(args: &FlowsArgs, flow: &FlowView) -> bool {
    let service = args.service.as_deref();
    let backend = args.backend.as_deref();
    service.is_none_or(|wanted| {
        let found = flow.service.as_deref();
        found.is_some_and(|found| is_service(wanted, found))
    }) && backend.is_none_or(|wanted| is_address(wanted, flow.backend))
}

fn shown(flows: &[FlowView]) -> String {
    let mut table = table::new(&HEADER);
    for flow in flows {
        table.add_row(cells(flow));
    }
    table::text(&table)
}

fn cells(flow: &FlowView) -> [String; 11] {
    let seen_as = match (flow.snat, flow.source == flow.client) {
        (true, _) | (_, false) => flow.source.to_string(),
        (false, true) => "client".to_owned(),
    };
    let state = format!("{:?}", flow.state);
    let age = match flow.age_secs {
        Some(secs) => table::age(secs.into()),
        None => "-".to_owned(),
    };
    let idle = format!("{}s", flow.idle_secs);
    [
        flow.protocol.clone(),
        flow.client.to_string(),
        flow.frontend.to_string(),
        flow.backend.to_string(),
        seen_as,
        state,
        age,
        idle,
        table::bytes(flow.traffic.bytes_to),
        table::bytes(flow.traffic.bytes_from),
        flow.service.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

/// What a watch has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    /// A connection that was not there a second ago.
    New,
    /// Its state is another one.
    State,
    /// It is not there any more.
    Gone,
}

#[derive(Serialize)]
struct Event {
    change: Change,
    flow: FlowView,
}

/// What makes two views the same connection.
fn identity(flow: &FlowView) -> (String, SocketAddr, SocketAddr) {
    (flow.protocol.clone(), flow.client, flow.frontend)
}

fn changes(before: &[FlowView], after: &[FlowView]) -> Vec<Event> {
    let mut known: BTreeMap<_, _> = before.iter().map(|flow| (identity(flow), flow)).collect();
    let mut events = Vec::new();
    for flow in after {
        let change = match known.remove(&identity(flow)) {
            None => Change::New,
            Some(old) if (old.state, old.backend) != (flow.state, flow.backend) => Change::State,
            Some(_) => continue,
        };
        let flow = flow.clone();
        events.push(Event { change, flow });
    }
    let gone = known.into_values().cloned();
    events.extend(gone.map(|flow| Event {
        change: Change::Gone,
        flow,
    }));
    events
}

/// Prints what is there, then what changes.
fn watch(args: &FlowsArgs) -> anyhow::Result<()> {
    let mut known = Vec::new();
    let (mut parts, mut nameless) = (Parts::default(), Nameless::default());
    watch::watch(|| {
        let now = read(args, &mut nameless)?;
        let events = changes(&known, &now);
        known = now;
        Ok(match args.query.output.form() {
            Some(form) => form.parts(&events)?,
            None => parts.text(events_table(&events)),
        })
    })
}

fn events_table(events: &[Event]) -> Table {
    let mut table = table::new(&[["CHANGE"].as_slice(), &HEADER].concat());
    for Event { change, flow } in events {
        let change = match change {
            Change::New => "new",
            Change::State => "state",
            Change::Gone => "gone",
        };
        table.add_row([change.to_owned()].into_iter().chain(cells(flow)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{Change, changes, is_address, is_service, shown};
    use crate::flows::{FlowState, FlowView, Traffic};

    fn flow() -> FlowView {
        FlowView {
            service: Some("shop/web:http".to_owned()),
            protocol: "TCP".to_owned(),
            client: "10.4.1.2:40000".parse().unwrap(),
            frontend: "10.96.0.10:80".parse().unwrap(),
            backend: "10.4.2.5:8080".parse().unwrap(),
            source: "10.4.1.2:40000".parse().unwrap(),
            snat: false,
            hairpin: false,
            state: FlowState::Answered,
            age_secs: Some(125),
            traffic: Traffic {
                bytes_to: 2048,
                ..Traffic::default()
            },
            idle_secs: 3,
            expires_secs: 57,
            redirected_to: None,
        }
    }

    #[test]
    fn services_and_backends_are_named_in_any_usual_form() {
        for name in ["web", "shop/web", "shop/web:http"] {
            assert!(is_service(name, "shop/web:http"), "{name}");
        }
        for name in ["we", "shop", "http", "shop/web:https", "api/web"] {
            assert!(!is_service(name, "shop/web:http"), "{name}");
        }
        assert!(is_service("#7", "#7"));
        for (text, expected) in [
            ("10.4.2.5", true),
            ("10.4.2.5:8080", true),
            ("10.4.2.5:80", false),
            ("10.4.2", false),
        ] {
            assert_eq!(is_address(text, flow().backend), expected, "{text}");
        }
    }

    #[test]
    fn rows_say_who_the_backend_sees() {
        let masqueraded = FlowView {
            source: "10.4.0.1:61000".parse().unwrap(),
            snat: true,
            ..flow()
        };
        let text = shown(&[flow(), masqueraded]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains(" client "), "{text}");
        assert!(lines[2].contains(" 10.4.0.1:61000 "), "{text}");
        assert!(lines[1].ends_with("shop/web:http"), "{text}");
        assert!(
            lines[1].contains(" 2m5s ") && lines[1].contains(" 2.0 KiB "),
            "{text}"
        );
        assert_eq!(lines[0].find("STATE"), lines[1].find("Answered"), "{text}");
    }

    #[test]
    fn a_watch_tells_what_came_changed_and_went() {
        let established = FlowView {
            state: FlowState::Established,
            idle_secs: 0,
            ..flow()
        };
        let quiet = FlowView {
            idle_secs: 4,
            ..flow()
        };
        let told = |before: &[FlowView], after: &[FlowView]| {
            let all = changes(before, after);
            all.into_iter()
                .map(|event| event.change)
                .collect::<Vec<_>>()
        };
        assert_eq!(told(&[], &[flow()]), [Change::New]);
        assert_eq!(told(&[flow()], &[quiet]), []);
        assert_eq!(told(&[flow()], &[established]), [Change::State]);
        assert_eq!(told(&[flow()], &[]), [Change::Gone]);
    }
}
