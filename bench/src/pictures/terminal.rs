//! What a terminal shows, as SVG.

use std::fmt::Write as _;
use std::num::NonZero;

use ::tests::screen::Size;
use vt100::{Cell, Color, Parser, Screen};

/// Pixels of a character.
const CELL: (u32, u32) = (8, 17);
/// Pixels around all.
const MARGIN: u32 = 10;
const BACKGROUND: &str = "#1e1e1e";
const FOREGROUND: &str = "#d4d4d4";

/// The first sixteen colors of a terminal, as VS Code shows them.
const COLORS: [&str; 16] = [
    "#000000", "#cd3131", "#0dbc79", "#e5e510", "#2472c8", "#bc3fbc", "#11a8cd", "#e5e5e5",
    "#666666", "#f14c4c", "#23d18b", "#f5f543", "#3b8eea", "#d670d6", "#29b8db", "#ffffff",
];

/// Draws a text with escape sequences, which a terminal of this size shows.
pub fn svg(text: &str, size: Size) -> String {
    let (columns, lines) = size;
    let at_least_one = |count| NonZero::new(count).unwrap_or(NonZero::<u16>::MIN);
    let mut parser = Parser::new(at_least_one(lines), at_least_one(columns), 0);
    let text = text.trim_end_matches('\n').replace('\n', "\r\n");
    parser.process(text.as_bytes());
    let width = u32::from(columns) * CELL.0 + 2 * MARGIN;
    let height = u32::from(lines) * CELL.1 + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, \
         monospace\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" rx=\"6\" \
         fill=\"{BACKGROUND}\"/>\n"
    );
    for line in 0..lines {
        runs(&mut svg, parser.screen(), line, columns);
    }
    svg + "</svg>\n"
}

/// One line: neighbours that look the same are one text.
fn runs(svg: &mut String, screen: &Screen, line: u16, columns: u16) {
    let mut column = 0;
    while column < columns {
        let look = Look::of(screen.cell(line, column));
        let mut text = String::new();
        let start = column;
        while column < columns && Look::of(screen.cell(line, column)) == look {
            let cell = screen.cell(line, column);
            match cell.map(Cell::contents) {
                Some(shown) if !shown.is_empty() => text.push_str(shown),
                _ => text.push(' '),
            }
            column += 1;
        }
        look.draw(svg, (start, line), column - start, &text);
    }
}

/// How a character looks.
#[derive(PartialEq)]
struct Look {
    foreground: &'static str,
    background: Option<&'static str>,
    is_bold: bool,
}

impl Look {
    fn of(cell: Option<&Cell>) -> Self {
        let Some(cell) = cell else {
            return Self {
                foreground: FOREGROUND,
                background: None,
                is_bold: false,
            };
        };
        let (foreground, background) = (color(cell.fgcolor()), color(cell.bgcolor()));
        let (foreground, background) = match cell.inverse() {
            true => (
                background.or(Some(BACKGROUND)),
                foreground.or(Some(FOREGROUND)),
            ),
            false => (foreground, background),
        };
        Self {
            foreground: foreground.unwrap_or(FOREGROUND),
            background,
            is_bold: cell.bold(),
        }
    }

    fn draw(&self, svg: &mut String, (column, line): (u16, u16), length: u16, text: &str) {
        let x = MARGIN + u32::from(column) * CELL.0;
        let y = MARGIN + u32::from(line) * CELL.1;
        let width = u32::from(length) * CELL.0;
        if let Some(background) = self.background {
            // Writing to a string cannot fail.
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{}\" fill=\"{background}\"/>",
                CELL.1
            );
        }
        if text.trim().is_empty() {
            return;
        }
        let weight = if self.is_bold {
            " font-weight=\"bold\""
        } else {
            ""
        };
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{}\" textLength=\"{width}\" xml:space=\"preserve\" \
             fill=\"{}\"{weight}>{}</text>",
            y + CELL.1 - 4,
            self.foreground,
            escaped(text)
        );
    }
}

/// `None`: the terminal's own.
fn color(color: Color) -> Option<&'static str> {
    match color {
        Color::Idx(index) => COLORS.get(usize::from(index)).copied(),
        Color::Default | Color::Rgb(..) => None,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::svg;

    #[test]
    fn colors_and_marks_reach_the_picture() {
        let svg = svg("a\x1b[31mred\x1b[0m<\n\x1b[7minverse\x1b[0m", (10, 2));
        assert!(svg.contains("fill=\"#cd3131\">red</text>"), "{svg}");
        assert!(svg.contains(">&lt;"), "{svg}");
        assert!(svg.contains("fill=\"#1e1e1e\">inverse</text>"), "{svg}");
    }
}
