//! One picture of all programs: time to program all, time of one change, memory. The axes are
//! logarithmic, because the times lie orders of magnitude apart.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::*;
use plotters::style::register_font;

use crate::objects::Size;
use crate::peers::Row;

/// One of the three panels.
struct Panel {
    title: &'static str,
    unit: &'static str,
    value: fn(&Row) -> Option<f64>,
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "all programmed",
        unit: "s",
        value: |row| row.program_s,
    },
    Panel {
        title: "one change",
        unit: "ms",
        value: |row| row.change_s.map(|seconds| seconds * 1e3),
    },
    Panel {
        title: "resident memory",
        unit: "MiB",
        value: |row| Some(row.rss_mib),
    },
];

/// Pixels of a picture.
const EXTENT: (u32, u32) = (1080, 300);
/// The only font, which is compiled in: pictures need none of the machine's.
pub const FONT: &str = "sans-serif";

/// Draws the rows into an SVG file and a PNG file beside it; returns both.
pub fn draw(path: &Path, size: Size, rows: &[Row]) -> Result<[PathBuf; 2]> {
    let files = files(path);
    let [svg, png] = &files;
    let drawn = draw_on(SVGBackend::new(svg, EXTENT), size, rows);
    drawn.with_context(|| format!("drawing {}", svg.display()))?;
    let drawn = draw_on(BitMapBackend::new(png, EXTENT), size, rows);
    drawn.with_context(|| format!("drawing {}", png.display()))?;
    Ok(files)
}

/// The SVG file and the PNG file of a picture, after making the font known.
pub fn files(path: &Path) -> [PathBuf; 2] {
    // Fails only where the font is unusable, which drawing tells better.
    let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    ["svg", "png"].map(|extension| path.with_extension(extension))
}

fn draw_on<B: DrawingBackend>(backend: B, size: Size, rows: &[Row]) -> Result<()> {
    let text = (FONT, 15).into_font();
    let area = backend.into_drawing_area();
    let wrong = |error: DrawingAreaErrorKind<B::ErrorType>| anyhow!("{error}");
    area.fill(&WHITE).map_err(wrong)?;
    let title = format!("{} Services, {} endpoints", size.services, size.endpoints);
    let area = area.titled(&title, (FONT, 20)).map_err(wrong)?;
    for (panel, part) in PANELS.iter().zip(area.split_evenly((1, PANELS.len()))) {
        let title = format!("{} ({}, log)", panel.title, panel.unit);
        let part = part.titled(&title, (FONT, 16)).map_err(wrong)?;
        let (width, _) = part.dim_in_pixel();
        let values = rows.iter().filter_map(panel.value);
        let (least, most) = values.fold((f64::MAX, 0.0), |(least, most), value| {
            (value.min(least), value.max(most))
        });
        for (index, row) in (0..).zip(rows) {
            let top = 30 + index * 70;
            let value = (panel.value)(row);
            let label = match value {
                Some(value) => format!("{}: {value:.3} {}", row.name, panel.unit),
                None => format!("{}: did not finish", row.name),
            };
            let length = length(value.unwrap_or(most), least, most, width);
            let color = Palette99::pick(index as usize).mix(0.8);
            part.draw(&Rectangle::new(
                [(10, top + 20), (10 + length, top + 50)],
                color.filled(),
            ))
            .map_err(wrong)?;
            part.draw(&Text::new(label, (10, top), text.clone()))
                .map_err(wrong)?;
        }
    }
    area.present().map_err(wrong)
}

/// Length of a bar: a tenth of the least value has none.
fn length(value: f64, least: f64, most: f64, width: u32) -> i32 {
    let decades = (most / least).log10() + 1.0;
    let share = ((value / least).log10() + 1.0) / decades;
    (f64::from(width - 20) * share) as i32
}
