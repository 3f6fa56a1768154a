//! Tables as kubectl prints them: columns by blanks, no lines.

use comfy_table::{ContentArrangement, Table, presets};

/// An empty table with these names of columns.
pub fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table
}

/// Its lines, without blanks at their ends.
pub fn text(table: &Table) -> String {
    let lines = table.lines().map(|line| line.trim().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}
