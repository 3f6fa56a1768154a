//! The ratios to direct as a picture: a panel a number of Services, a bar a row, with its interval.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::*;

use super::report;
use super::rows::{Report, Row};
use crate::plot::{self, FONT};

/// Height of one bar with its label.
const STEP: i32 = 18;
/// Where bars begin.
const LEFT: i32 = 490;
/// Length of a ratio of 1.
const UNIT: f64 = 280.0;
/// Where bars end, whatever the ratio.
const RATIO_MAX: f64 = 1.6;
/// Width of the picture.
const WIDTH: u32 = 1160;

/// Draws into an SVG file and a PNG file beside it; returns both.
pub fn draw(path: &Path, report: &Report) -> Result<[PathBuf; 2]> {
    let rows = &report.rows;
    let drawn: Vec<&Row> = rows
        .iter()
        .filter(|row| row.cell != row.cell.direct())
        .collect();
    let extent = (WIDTH, STEP.unsigned_abs() * (drawn.len() as u32 + 2));
    let files = plot::files(path);
    let [svg, png] = &files;
    let done = draw_on(SVGBackend::new(svg, extent), &drawn);
    done.with_context(|| format!("drawing {}", svg.display()))?;
    let done = draw_on(BitMapBackend::new(png, extent), &drawn);
    done.with_context(|| format!("drawing {}", png.display()))?;
    Ok(files)
}

fn draw_on<B: DrawingBackend>(backend: B, drawn: &[&Row]) -> Result<()> {
    let area = backend.into_drawing_area();
    let wrong = |error: DrawingAreaErrorKind<B::ErrorType>| anyhow!("{error}");
    area.fill(&WHITE).map_err(wrong)?;
    let font = (FONT, 13).into_font();
    let at = |ratio: f64| LEFT + (ratio.clamp(0.0, RATIO_MAX) * UNIT) as i32;
    for (index, row) in (1..).zip(drawn) {
        let top = index * STEP;
        let words = |text: String, left| {
            area.draw(&Text::new(text, (left, top), font.clone()))
                .map_err(wrong)
        };
        words(label(row), 6)?;
        let value = format!(
            "{} ({:.1} {})",
            report::interval(row.ratio),
            row.value,
            row.figure.unit()
        );
        words(value, at(row.ratio.high.max(1.0)) + 6)?;
        let color = match (row.cell.way.is_ours(), row.missed().is_empty()) {
            (true, true) => BLUE,
            (true, false) => RED,
            (false, _) => RGBColor(120, 120, 120),
        };
        let corners = [(LEFT, top + 2), (at(row.ratio.median), top + STEP - 4)];
        let bar = Rectangle::new(corners, color.mix(0.5).filled());
        area.draw(&bar).map_err(wrong)?;
        let middle = top + STEP / 2 - 1;
        let ends = vec![(at(row.ratio.low), middle), (at(row.ratio.high), middle)];
        let line = PathElement::new(ends, BLACK.stroke_width(1));
        area.draw(&line).map_err(wrong)?;
    }
    let bottom = STEP * (drawn.len() as i32 + 1);
    let one = PathElement::new([(at(1.0), STEP), (at(1.0), bottom)], BLACK.mix(0.6));
    area.draw(&one).map_err(wrong)?;
    area.draw(&Text::new("direct", (at(1.0) + 4, 2), font.clone()))
        .map_err(wrong)?;
    area.present().map_err(wrong)
}

fn label(row: &Row) -> String {
    let plain = match row.cell.links.name() {
        "off" => ", offloads off",
        _ => "",
    };
    format!(
        "{}, {} Services, {}{plain}, {}",
        row.figure.name(),
        row.services,
        row.cell.path.name(),
        row.cell.way.name()
    )
}
