//! The rows as text, as JSON and as a picture.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::*;
use proxy_common::protocol;
use serde_json::{Value, json};

use super::what::What;
use crate::plot;

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// `tc` or `xdp`.
    pub program: &'static str,
    /// 4 or 6.
    pub family: u8,
    /// IP protocol.
    pub protocol: u8,
    /// What was measured.
    pub what: What,
    /// Flows that are known.
    pub flows: u32,
    /// Services.
    pub services: u32,
    /// Nanoseconds of one packet.
    pub ns: f64,
    /// To its yardstick with the same number of flows.
    pub ratio: f64,
}

/// With fewer flows everything lies in the caches: such rows are printed, not judged.
const JUDGED_FLOWS: u32 = 10_000;

/// True where a row is judged, or a yardstick that others are judged by.
pub fn is_judged(what: What, flows: u32) -> bool {
    flows >= JUDGED_FLOWS && (what.is_yardstick() || what.bar().is_some())
}

impl Row {
    fn protocol(&self) -> &'static str {
        if self.protocol == protocol::UDP {
            "udp"
        } else {
            "tcp"
        }
    }

    /// True where a bar holds and is missed.
    fn is_over(&self) -> bool {
        let bar = self.what.bar().filter(|_| is_judged(self.what, self.flows));
        bar.is_some_and(|bar| self.ratio > bar)
    }

    fn as_json(&self) -> Value {
        json!({
            "program": self.program,
            "family": self.family,
            "protocol": self.protocol(),
            "what": self.what.name(),
            "flows": self.flows,
            "services": self.services,
            "ns": round(self.ns, 10.0),
            "ratio": round(self.ratio, 1000.0),
        })
    }
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

/// The names of the columns.
pub fn heading() {
    println!("program family protocol     flows services what                       ns  ratio");
}

/// The rows, one a line.
pub fn print(rows: &[Row]) {
    for row in rows {
        let verdict = if row.is_over() { "over its bar" } else { "" };
        println!(
            "{:7} IPv{:<3} {:8} {:>9} {:>8} {:20} {:>8.1} {:>6.2} {verdict}",
            row.program,
            row.family,
            row.protocol(),
            row.flows,
            row.services,
            row.what.name(),
            row.ns,
            row.ratio
        );
    }
}

/// How many rows are as good as they must be.
pub fn judge(rows: &[Row]) {
    let judged = rows
        .iter()
        .filter(|row| row.flows >= JUDGED_FLOWS && row.what.bar().is_some());
    let over = rows.iter().filter(|row| row.is_over()).count();
    println!(
        "{over} of {} judged rows are over their bars",
        judged.count()
    );
}

/// All rows in one line.
pub fn json(rows: &[Row]) -> Value {
    json!({ "rows": rows.iter().map(Row::as_json).collect::<Vec<_>>() })
}

/// Height of one bar with its label.
const STEP: i32 = 18;
/// Where bars begin.
const LEFT: i32 = 420;
/// Length of a ratio of 1.
const UNIT: f64 = 200.0;

/// Draws the ratios into an SVG file and a PNG file beside it: a bar each, with a line where the
/// yardstick is.
pub fn draw(path: &Path, rows: &[Row]) -> Result<()> {
    let drawn: Vec<&Row> = rows
        .iter()
        .filter(|row| !matches!(row.what, What::Yardstick | What::YardstickNew))
        .collect();
    let extent = (1080, STEP.unsigned_abs() * (drawn.len() as u32 + 2));
    let [svg, png] = plot::files(path);
    draw_on(SVGBackend::new(&svg, extent), &drawn)
        .with_context(|| format!("drawing {}", svg.display()))?;
    draw_on(BitMapBackend::new(&png, extent), &drawn)
        .with_context(|| format!("drawing {}", png.display()))
}

fn draw_on<B: DrawingBackend>(backend: B, drawn: &[&Row]) -> Result<()> {
    let area = backend.into_drawing_area();
    let height = STEP * (drawn.len() as i32 + 2);
    let wrong = |error: DrawingAreaErrorKind<B::ErrorType>| anyhow!("{error}");
    area.fill(&WHITE).map_err(wrong)?;
    let font = (plot::FONT, 13).into_font();
    for (index, row) in (1..).zip(drawn) {
        let top = index * STEP;
        let label = format!(
            "{} IPv{} {} {}: {} flows, {} Services",
            row.program,
            row.family,
            row.protocol(),
            row.what.name(),
            row.flows,
            row.services
        );
        area.draw(&Text::new(label, (6, top), font.clone()))
            .map_err(wrong)?;
        let length = (row.ratio.clamp(0.0, 3.0) * UNIT) as i32;
        let color = if row.is_over() { RED } else { BLUE };
        let corners = [(LEFT, top + 2), (LEFT + length, top + STEP - 4)];
        area.draw(&Rectangle::new(corners, color.mix(0.5).filled()))
            .map_err(wrong)?;
        let value = format!("{:.2} ({:.0} ns)", row.ratio, row.ns);
        area.draw(&Text::new(value, (LEFT + length + 6, top), font.clone()))
            .map_err(wrong)?;
    }
    let one = LEFT + UNIT as i32;
    area.draw(&PathElement::new(
        [(one, STEP), (one, height)],
        BLACK.mix(0.6),
    ))
    .map_err(wrong)?;
    area.draw(&Text::new("the yardstick", (one + 4, 2), font))
        .map_err(wrong)?;
    area.present().map_err(wrong)
}
