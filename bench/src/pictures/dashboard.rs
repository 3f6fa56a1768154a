//! The dashboard's panels, evaluated by Prometheus' own engine over real scrapes and laid out as
//! Grafana lays them out.

use std::path::Path;

use ::tests::deployed::{self, Kind, Panel, Target};
use anyhow::{Context as _, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::prometheus::{self, Question, Scrape, Series};
use crate::plot::{self, FONT};

/// Pixels of one column of 24, and of one unit of height.
const UNIT: (u32, u32) = (64, 28);
const COLUMNS: u32 = 24;
/// Lines of a panel that are named.
const NAMED_MAX: usize = 5;
/// Points of a line are so far apart.
const STEP_SECS: i64 = 5;
/// What `$__rate_interval` is, with scrapes every [`STEP_SECS`].
const RATE_INTERVAL: &str = "20s";

/// A line and its name.
type Line = (String, Vec<(f64, f64)>);

/// Evaluates everything, draws the panels into an SVG file, and says which of the alerts are on.
pub fn draw(path: &Path, scrapes: Vec<Scrape>) -> Result<Vec<String>> {
    let panels = panels()?;
    let alerts = deployed::alerts()?;
    let of_panels = panels.iter().flat_map(|panel| &panel.targets);
    let expressions = of_panels.map(|target| target.expression.clone());
    let of_alerts = alerts.iter().map(|(_, expression)| expression.clone());
    let question = Question {
        scrapes,
        step: STEP_SECS,
        expressions: expressions.chain(of_alerts).collect(),
        rules: vec![deployed::RULES.to_owned()],
    };
    let answer = prometheus::ask(&question)?;
    let wrong: Vec<_> = answer.rules.into_iter().flatten().flatten().collect();
    ensure!(wrong.is_empty(), "the rule file: {wrong:#?}");
    let mut results = Vec::new();
    for (expression, result) in question.expressions.iter().zip(answer.results) {
        let (error, series) = (result.error, result.series);
        ensure!(error.is_none(), "{expression}: {error:?}");
        results.push(series.unwrap_or_default());
    }
    let mut results = results.into_iter();
    let mut drawn = Vec::new();
    for panel in panels {
        let mut lines = Vec::new();
        for Target { legend, .. } in &panel.targets {
            let series = results.next().context("a result for each expression")?;
            lines.extend(series.into_iter().map(|it| line(legend, it)));
        }
        drawn.push((panel, lines));
    }
    picture(path, &drawn)?;
    let is_on = |series: Vec<Series>| series.iter().any(|it| !it.points.is_empty());
    let on = alerts.into_iter().zip(results);
    Ok(on
        .filter_map(|((name, _), it)| is_on(it).then_some(name))
        .collect())
}

/// Panels that ask for what every choice leaves.
fn panels() -> Result<Vec<Panel>> {
    let mut panels = deployed::panels()?;
    let targets = panels.iter_mut().flat_map(|panel| &mut panel.targets);
    targets.for_each(|target| target.expression = chosen(&target.expression));
    Ok(panels)
}

/// An expression with every choice left open.
fn chosen(expression: &str) -> String {
    let all = [
        ("$__rate_interval", RATE_INTERVAL),
        ("$instance", ".*"),
        ("$namespace", ".*"),
        ("$service", ".*"),
    ];
    all.iter()
        .fold(expression.to_owned(), |text, (name, value)| {
            text.replace(name, value)
        })
}

fn line(legend: &str, series: Series) -> Line {
    let name = series
        .labels
        .iter()
        .fold(legend.to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{{{name}}}}}"), value)
        });
    (name, series.points)
}

fn picture(path: &Path, drawn: &[(Panel, Vec<Line>)]) -> Result<()> {
    let [svg, _] = plot::files(path);
    let bottoms = drawn.iter().map(|(panel, _)| panel.at.1 + panel.size.1);
    let extent = (COLUMNS * UNIT.0, bottoms.max().unwrap_or(1) * UNIT.1);
    let area = SVGBackend::new(&svg, extent).into_drawing_area();
    area.fill(&RGBColor(244, 245, 245))
        .map_err(|error| anyhow!("{error}"))?;
    for (panel, lines) in drawn {
        let corner = (panel.at.0 * UNIT.0, panel.at.1 * UNIT.1);
        let size = (panel.size.0 * UNIT.0, panel.size.1 * UNIT.1);
        let part = area.clone().shrink(corner, size);
        one(&part, panel, lines).with_context(|| panel.title.clone())?;
    }
    area.present().map_err(|error| anyhow!("{error}"))
}

fn one<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    panel: &Panel,
    lines: &[Line],
) -> Result<()> {
    let wrong = |error: DrawingAreaErrorKind<B::ErrorType>| anyhow!("{error}");
    if panel.kind == Kind::Row {
        let title = Text::new(panel.title.clone(), (8, 6), (FONT, 18).into_font());
        return area.draw(&title).map_err(wrong);
    }
    let (width, height) = area.dim_in_pixel();
    let area = area.clone().shrink((3, 3), (width - 6, height - 6));
    area.fill(&WHITE).map_err(wrong)?;
    let title = Text::new(panel.title.clone(), (8, 6), (FONT, 14).into_font());
    area.draw(&title).map_err(wrong)?;
    if panel.kind == Kind::Stat {
        let last = lines.iter().filter_map(|(_, points)| points.last()).next();
        let value = last.map_or("no data".to_owned(), |(_, value)| {
            shown(*value, &panel.unit)
        });
        let number = Text::new(value, (20, 36), (FONT, 44).into_font().color(&BLUE));
        return area.draw(&number).map_err(wrong);
    }
    chart(&area.margin(26, 2, 6, 10), panel, lines)
}

fn chart<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    panel: &Panel,
    lines: &[Line],
) -> Result<()> {
    let wrong = |error: DrawingAreaErrorKind<B::ErrorType>| anyhow!("{error}");
    let points = || lines.iter().flat_map(|(_, points)| points);
    let Some(begin) = points().map(|it| it.0).reduce(f64::min) else {
        let nothing = Text::new("no data", (60, 60), (FONT, 14).into_font());
        return area.draw(&nothing).map_err(wrong);
    };
    let end = points().map(|it| it.0).fold(begin + 1.0, f64::max);
    let top = points().map(|it| it.1).fold(0.0, f64::max);
    let top = if top == 0.0 { 1.0 } else { top * 1.35 };
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(20)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..end - begin, 0.0..top)
        .map_err(wrong)?;
    let unit = panel.unit.clone();
    let mut mesh = chart.configure_mesh();
    mesh.x_labels(6)
        .y_labels(5)
        .light_line_style(WHITE)
        .label_style((FONT, 11));
    mesh.x_label_formatter(&|secs| format!("{secs:.0} s"));
    mesh.y_label_formatter(&|value| shown(*value, &unit))
        .draw()
        .map_err(wrong)?;
    let named = named(lines);
    for (index, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let points = points.iter().map(|(at, value)| (at - begin, *value));
        let drawn = chart.draw_series(LineSeries::new(points, color.stroke_width(2)));
        let drawn = drawn.map_err(wrong)?;
        if named.contains(&index) {
            drawn.label(name.as_str()).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 14, y)], color.stroke_width(3))
            });
        }
    }
    let mut labels = chart.configure_series_labels();
    labels
        .position(SeriesLabelPosition::UpperLeft)
        .legend_area_size(18);
    labels
        .background_style(WHITE.mix(0.7))
        .label_font((FONT, 11));
    labels.draw().map_err(wrong)
}

/// Which lines are named: those that rise highest, so that the names hide little.
fn named(lines: &[Line]) -> Vec<usize> {
    let top = |line: &Line| line.1.iter().map(|it| it.1).fold(0.0, f64::max);
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by(|a, b| top(&lines[*b]).total_cmp(&top(&lines[*a])));
    order.truncate(NAMED_MAX);
    order
}

/// A value with its unit, by Grafana's names of units.
fn shown(value: f64, unit: &str) -> String {
    let scaled = |value: f64, base: f64, signs: [&str; 4]| {
        let steps = [base.powi(3), base.powi(2), base, 1.0]
            .into_iter()
            .zip(signs);
        let fits = steps.into_iter().find(|(step, _)| value.abs() >= *step);
        let (step, sign) = fits.unwrap_or((1.0, signs[3]));
        let value = value / step;
        match value.fract() == 0.0 || value.abs() >= 100.0 {
            true => format!("{value:.0}{sign}"),
            false => format!("{value:.2}{sign}"),
        }
    };
    match unit {
        "percentunit" => format!("{:.1} %", value * 100.0),
        "bytes" => scaled(value, 1024.0, [" GiB", " MiB", " KiB", " B"]),
        "Bps" => scaled(value, 1e3, [" GB/s", " MB/s", " kB/s", " B/s"]),
        "s" if value < 1.0 => format!("{:.1} ms", value * 1e3),
        "s" => format!("{value:.1} s"),
        _ => scaled(value, 1e3, ["G", "M", "k", ""]),
    }
}

#[cfg(test)]
mod tests {
    use super::{Target, chosen, panels, shown};

    #[test]
    fn every_panel_has_a_place_and_no_choice_is_left() {
        let panels = panels().unwrap();
        assert!(panels.len() > 30);
        for panel in panels {
            for Target { expression, .. } in panel.targets {
                assert!(!expression.contains('$'), "{}: {expression}", panel.title);
            }
        }
        assert_eq!(
            chosen("rate(a{i=~\"$instance\"}[$__rate_interval])"),
            "rate(a{i=~\".*\"}[20s])"
        );
    }

    #[test]
    fn values_are_shown_in_their_units() {
        assert_eq!(shown(0.5, "percentunit"), "50.0 %");
        assert_eq!(shown(1536.0, "bytes"), "1.50 KiB");
        assert_eq!(shown(0.002, "s"), "2.0 ms");
        assert_eq!(shown(2000.0, "cps"), "2k");
    }
}
