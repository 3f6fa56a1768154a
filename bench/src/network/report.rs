//! The rows as text and as JSON.

use serde_json::{Value, json};

use super::rows::{Overhead, Report, Row};
use super::statistics::Estimate;

/// Prints everything, then what was missed.
pub fn print(report: &Report) {
    println!(
        "services path             offloads by                  figure           value unit     \
         to direct [95 %]     to kube-proxy [95 %]  by its hook"
    );
    for row in &report.rows {
        println!("{}", text(row));
    }
    for overhead in &report.overheads {
        println!("{}", overhead_text(overhead));
    }
    let judged = report.rows.iter().filter(|row| row.to_peer.is_some());
    let missed = report.rows.iter().filter(|row| !row.missed().is_empty());
    println!(
        "{} of {} judged rows miss a bar",
        missed.count(),
        judged.count()
    );
}

fn text(row: &Row) -> String {
    let to_peer = row.to_peer.map(|(_, ratio)| interval(ratio));
    let share = row.share.map(|share| format!("{:.2} %", share * 100.0));
    let line = format!(
        "{:>8} {:16} {:8} {:19} {:12} {:>10.2} {:6} {:20} {:20} {:>9}  {}",
        row.services,
        row.cell.path.name(),
        row.cell.links.name(),
        row.cell.way.name(),
        row.figure.name(),
        row.value,
        row.figure.unit(),
        interval(row.ratio),
        to_peer.unwrap_or_default(),
        share.unwrap_or_default(),
        row.missed().join(", ")
    );
    line.trim_end().to_owned()
}

/// A ratio with its interval.
pub fn interval(ratio: Estimate) -> String {
    format!("{:.3} [{:.3}, {:.3}]", ratio.median, ratio.low, ratio.high)
}

/// What the socket hook adds, in words.
pub fn overhead_text(overhead: &Overhead) -> String {
    let nanos = |it: Estimate| format!("{:.0} ns [{:.0}, {:.0}]", it.median, it.low, it.high);
    format!(
        "{} Services: connect() to a ClusterIP by the socket hook takes {} longer than to its \
         backend on the same node, {} longer than without shunt ({:.0} ns)",
        overhead.services,
        nanos(overhead.added_here),
        nanos(overhead.added),
        overhead.direct
    )
}

/// All of it in one line.
pub fn json(report: &Report) -> Value {
    json!({
        "rounds": report.rounds,
        "rows": report.rows.iter().map(row_json).collect::<Vec<_>>(),
        "connect_overhead_ns": report.overheads.iter().map(overhead_json).collect::<Vec<_>>(),
    })
}

fn row_json(row: &Row) -> Value {
    let to_peer = row.to_peer.map(|(way, ratio)| {
        let mut object = estimate_json(ratio);
        object["by"] = way.name().into();
        object
    });
    json!({
        "services": row.services, "path": row.cell.path.name(),
        "offloads": row.cell.links.name(), "by": row.cell.way.name(),
        "figure": row.figure.name(), "value": round(row.value, 100.0),
        "unit": row.figure.unit(), "to_direct": estimate_json(row.ratio),
        "to_kube_proxy": to_peer, "by_hook": row.share.map(|share| round(share, 10_000.0)),
        "missed": row.missed(),
    })
}

fn overhead_json(overhead: &Overhead) -> Value {
    json!({
        "services": overhead.services, "direct": round(overhead.direct, 1.0),
        "added": estimate_json(overhead.added),
        "added_on_same_node": estimate_json(overhead.added_here),
    })
}

fn estimate_json(ratio: Estimate) -> Value {
    let [median, low, high] = [ratio.median, ratio.low, ratio.high].map(|it| round(it, 1000.0));
    json!({"median": median, "low": low, "high": high})
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}
