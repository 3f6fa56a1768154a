//! Memory over time, drawn.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::*;

use super::samples::{Sample, Samples};
use crate::plot::{self, FONT};

/// One line of the picture.
type Line = (&'static str, fn(&Sample) -> f64);

const LINES: [Line; 3] = [
    ("agent that lives all the time", |sample| sample.old_agent),
    ("agent that is restarted and killed", |sample| {
        sample.young_agent
    }),
    ("maps of one node", |sample| sample.maps),
];

/// Pixels of a picture.
const EXTENT: (u32, u32) = (900, 360);

/// Draws into an SVG file and a PNG file beside it; returns both.
pub fn draw(path: &Path, samples: &Samples) -> Result<[PathBuf; 2]> {
    let files = plot::files(path);
    let [svg, png] = &files;
    let drawn = draw_on(SVGBackend::new(svg, EXTENT), samples);
    drawn.with_context(|| format!("drawing {}", svg.display()))?;
    let drawn = draw_on(BitMapBackend::new(png, EXTENT), samples);
    drawn.with_context(|| format!("drawing {}", png.display()))?;
    Ok(files)
}

fn draw_on<B: DrawingBackend>(backend: B, samples: &Samples) -> Result<()> {
    let wrong = |error: DrawingAreaErrorKind<B::ErrorType>| anyhow!("{error}");
    let area = backend.into_drawing_area();
    area.fill(&WHITE).map_err(wrong)?;
    let all = samples.all();
    let end = all.last().map_or(1.0, |sample| sample.secs);
    let values = all
        .iter()
        .flat_map(|sample| LINES.map(|(_, value)| value(sample)));
    let top = values.fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .caption("memory under traffic, churn and restarts", (FONT, 18))
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..end, 0.0..top)
        .map_err(wrong)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("seconds").y_desc("MiB").label_style((FONT, 12));
    mesh.draw().map_err(wrong)?;
    for (index, (name, value)) in LINES.into_iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let points = all.iter().map(|sample| (sample.secs, value(sample)));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))
            .map_err(wrong)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    let mut labels = chart.configure_series_labels();
    labels.border_style(BLACK).background_style(WHITE);
    labels.label_font((FONT, 12)).draw().map_err(wrong)?;
    area.present().map_err(wrong)
}
