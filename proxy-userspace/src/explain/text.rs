//! An answer for people.

use std::fmt::Write as _;

use super::{Answer, kind_text};

/// One line a stage, then the decision with its particulars.
pub fn text(answer: &Answer) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<12}{value}", format!("{name}:"));
    };
    for stage in &answer.stages {
        line(stage.stage, &stage.answer);
    }
    line("reason", &answer.reason);
    if let (Some(service), Some(kind)) = (&answer.service, answer.kind) {
        line("service", &format!("{service} ({})", kind_text(kind)));
    }
    if let Some(chosen) = &answer.chosen {
        line("backends", &answer.backends.join(", "));
        line("chosen", chosen);
        let snat = match (answer.snat, answer.snat_address) {
            (false, _) => "no: the backend sees the source".to_owned(),
            (true, Some(addr)) => format!("yes: the backend sees {addr}"),
            (true, None) => "yes, but the address is not changed here: see nat".to_owned(),
        };
        line("snat", &snat);
        if answer.hairpin {
            line("hairpin", "yes: the backend is the client itself");
        }
    }
    text
}
