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

/// A time in its two largest units.
pub fn age(secs: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let Some(first) = UNITS.iter().position(|(unit, _)| secs >= *unit) else {
        return "0s".to_owned();
    };
    let (unit, name) = UNITS[first];
    let mut text = format!("{}{name}", secs / unit);
    if let Some((smaller, name)) = UNITS.get(first + 1)
        && secs % unit / smaller > 0
    {
        text += &format!("{}{name}", secs % unit / smaller);
    }
    text
}

/// A number of bytes with the largest unit that leaves something before the point.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64 / 1024.0;
    if value < 1.0 {
        return format!("{count} B");
    }
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = Some(next);
    }
    format!("{value:.1} {}", unit.copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{age, bytes};

    #[test]
    fn ages_have_their_two_largest_units() {
        let texts = [0, 59, 61, 3_600, 7_384, 200_000].map(age);
        assert_eq!(texts, ["0s", "59s", "1m1s", "1h", "2h3m", "2d7h"]);
    }

    #[test]
    fn bytes_have_one_unit() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
