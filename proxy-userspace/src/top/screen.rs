//! Drawing: what fits on the screen is formatted, and nothing else.

use std::hash::Hash;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as Cells, Table};

use super::columns::{By, Column, Counter};
use super::state::{List, State};

/// Lines around the rows: the headline, the names of the columns, the keys.
const LINES_AROUND: u16 = 3;

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(1),
    ]);
    let [top, middle, bottom] = areas.areas(frame.area());
    state.page = usize::from(frame.area().height.saturating_sub(LINES_AROUND)).max(1);
    frame.render_widget(Paragraph::new(headline(state)), top);
    match state.focus {
        None => rows(frame, middle, &mut state.services),
        Some(_) => rows(frame, middle, &mut state.backends),
    }
    frame.render_widget(Paragraph::new(footline(state)), bottom);
}

/// How much there is, and what is wrong with it.
fn headline(state: &State) -> Line<'_> {
    if let Some(trouble) = &state.trouble {
        return Line::from(trouble.as_str()).fg(Color::Red);
    }
    let mut text = match &state.focus {
        None => {
            let (shown, all) = state.services.sizes();
            let [connections, refused, dropped] =
                [Counter::Connections, Counter::Refused, Counter::Dropped]
                    .map(|counter| state.services.total_rate(counter));
            let of = count_text(shown, all, "Services");
            format!("{of}: {connections:.1} conn/s, {refused:.1} refused/s, {dropped:.1} dropped/s")
        }
        Some(service) => {
            let (shown, all) = state.backends.sizes();
            let connections = state.backends.total_rate(Counter::Connections);
            let of = count_text(shown, all, "backends");
            format!("{service}: {of}: {connections:.1} conn/s")
        }
    };
    if !state.has_names {
        text += "; no agent answers: Services have no names";
    }
    Line::from(text).bold()
}

fn count_text(shown: usize, all: usize, what: &str) -> String {
    match shown == all {
        true => format!("{all} {what}"),
        false => format!("{shown} of {all} {what}"),
    }
}

/// The filter while it is typed, else the keys.
fn footline(state: &State) -> Line<'_> {
    if state.is_typing {
        return Line::from(format!(
            "/{}█  Enter keeps it, Esc drops it",
            state.filter()
        ));
    }
    let columns = match state.focus {
        None => state.services.columns().0,
        Some(_) => state.backends.columns().0,
    };
    let sorts = columns
        .iter()
        .map(|it| format!("{} {}", it.key, it.title.to_lowercase()));
    let sorts: Vec<String> = sorts.collect();
    let ways = match state.focus {
        None => "Enter backends",
        Some(_) => "Esc back",
    };
    let filter = match state.filter() {
        "" => "/ filter".to_owned(),
        filter => format!("/{filter}"),
    };
    Line::from(format!(
        "q quit  {filter}  {ways}  sort: {}",
        sorts.join(", ")
    ))
    .dim()
}

fn rows<K: Eq + Hash>(frame: &mut Frame<'_>, area: Rect, list: &mut List<K>) {
    let (columns, sort, is_reversed) = list.columns();
    let names = columns.iter().enumerate().map(|(index, column)| {
        let marker = match (index == sort, is_reversed) {
            (false, _) => "",
            (true, false) => "▼",
            (true, true) => "▲",
        };
        cell(column, format!("{}{marker}", column.title))
    });
    let header = Cells::new(names).style(Style::new().add_modifier(Modifier::REVERSED));
    let widths = columns.iter().map(|column| match column.width {
        0 => Constraint::Min(20),
        width => Constraint::Length(width),
    });
    let chosen = list.chosen_index();
    let (shown, first) = list.window(usize::from(area.height.saturating_sub(1)));
    let lines = shown.into_iter().enumerate().map(|(index, row)| {
        let cells = columns
            .iter()
            .map(|column| cell(column, (column.text)(row)));
        let cells = Cells::new(cells);
        match first + index == chosen {
            true => cells.style(Style::new().fg(Color::Black).bg(Color::Cyan)),
            false => cells,
        }
    });
    let lines: Vec<Cells<'_>> = lines.collect();
    frame.render_widget(
        Table::new(lines, widths).header(header).column_spacing(2),
        area,
    );
}

/// Numbers stand to the right.
fn cell(column: &Column, text: String) -> Cell<'static> {
    let line = Line::from(Span::raw(text));
    Cell::from(match column.by {
        By::Text => line,
        By::Number(_) => line.right_aligned(),
    })
}
