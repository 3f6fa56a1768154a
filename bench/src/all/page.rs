//! The page.

use std::fmt::Write as _;

use serde_json::Value;

use super::Found;
use crate::network::{self, Report};

/// All of it as Markdown.
pub fn text(found: &Found) -> String {
    let command = match found.is_quick {
        true => "cargo xtask bench all --quick",
        false => "cargo xtask bench all",
    };
    let mut text = format!(
        "# Benchmarks\n\nWritten by `{command}`: change the program, not this page. Only ratios \
         of one run are compared; absolute figures depend on the machine.\n\n"
    );
    if found.is_quick {
        text +=
            "This was a quick run: it shows that everything works, its figures say nothing.\n\n";
    }
    text += "| | |\n|---|---|\n";
    text += &found.machine;
    datapath(&mut text, &found.datapath);
    network(&mut text, &found.network);
    control_plane(&mut text, found);
    text
}

fn datapath(text: &mut String, rows: &[Value]) {
    *text += "\n## A packet in our programs\n\nNanoseconds of one packet, and their ratio to the \
              least that such a packet can cost ([speed.md](speed.md) says what each row is).\n\n\
              ![ratios to the yardstick](benchmarks-datapath.svg)\n\n\
              | program | family | protocol | flows | Services | row | ns | to yardstick |\n\
              |---|---|---|---|---|---|---|---|\n";
    for row in rows {
        let word = |name: &str| match &row[name] {
            Value::String(word) => word.clone(),
            other => other.to_string(),
        };
        let words = [
            "program", "family", "protocol", "flows", "services", "what", "ns", "ratio",
        ];
        line(text, &words.map(word));
    }
}

fn network(text: &mut String, report: &Report) {
    let _ = write!(
        text,
        "\n## The network\n\nReal sockets over network namespaces, {} rounds, medians; ratios with \
         their 95 % intervals, of which more is better, of times too \
         ([speed.md](speed.md#through-the-network) says what each row is).\n\n\
         ![ratios to direct](benchmarks-network.svg)\n\n",
        report.rounds
    );
    *text += "| Services | path | offloads | by | figure | value | to direct | to kube-proxy's \
              better mode | by its hook | missed |\n|---|---|---|---|---|---|---|---|---|---|\n";
    for row in &report.rows {
        let words = [
            row.services.to_string(),
            row.cell.path.name().to_owned(),
            row.cell.links.name().to_owned(),
            row.cell.way.name().to_owned(),
            row.figure.name().to_owned(),
            format!("{:.2} {}", row.value, row.figure.unit()),
            network::interval(row.ratio),
            row.to_peer
                .map(|(_, ratio)| network::interval(ratio))
                .unwrap_or_default(),
            row.share
                .map(|share| format!("{:.2} %", share * 100.0))
                .unwrap_or_default(),
            row.missed().join(", "),
        ];
        line(text, &words);
    }
    *text += "\n";
    for overhead in &report.overheads {
        let _ = writeln!(text, "- {}.", network::overhead_text(overhead));
    }
}

fn control_plane(text: &mut String, found: &Found) {
    let (services, endpoints) = found.size;
    let _ = write!(
        text,
        "\n## The control plane\n\n{services} Services with {endpoints} endpoints from a real API \
         server ([scale.md](scale.md) says what each column is). Ratios are to shunt.\n\n\
         ![all programs](benchmarks-control-plane.svg)\n\n\
         | | all programmed | ratio | one change | ratio | resident memory | ratio |\n\
         |---|---|---|---|---|---|---|\n"
    );
    let Some(own) = found.control_plane.first() else {
        return;
    };
    for row in &found.control_plane {
        let [all, all_ratio] = pair(row.program_s, own.program_s, 1.0, "s");
        let [change, change_ratio] = pair(row.change_s, own.change_s, 1e3, "ms");
        let [memory, memory_ratio] = pair(Some(row.rss_mib), Some(own.rss_mib), 1.0, "MiB");
        let words = [all, all_ratio, change, change_ratio, memory, memory_ratio];
        let words: Vec<String> = std::iter::once(row.name.clone()).chain(words).collect();
        line(text, &words);
    }
}

/// A value in words, and its ratio to our own.
fn pair(value: Option<f64>, own: Option<f64>, scale: f64, unit: &str) -> [String; 2] {
    let Some(value) = value else {
        return ["did not finish".to_owned(), String::new()];
    };
    let ratio = own.map(|own| format!("{:.2}", value / own));
    [
        format!("{:.2} {unit}", value * scale),
        ratio.unwrap_or_default(),
    ]
}

fn line(text: &mut String, words: &[String]) {
    let _ = writeln!(text, "| {} |", words.join(" | "));
}
