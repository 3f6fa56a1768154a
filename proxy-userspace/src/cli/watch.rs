//! Lists that go on: `-w`.

use std::time::Duration;

use comfy_table::{ColumnConstraint, Table, Width};

use super::{Reader, table};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Prints what `next` returns, once a second, until nobody reads.
pub fn watch(mut next: impl FnMut() -> anyhow::Result<String>) -> anyhow::Result<()> {
    while super::print(&next()?)? == Reader::Reads {
        std::thread::sleep(PERIOD);
    }
    Ok(())
}

/// Tables that are printed one below the other, as if they were one.
#[derive(Debug, Default)]
pub struct Parts {
    widths: Vec<u16>,
}

impl Parts {
    /// The lines of a further part: without its header, and never narrower than what is above.
    pub fn text(&mut self, mut part: Table) -> String {
        if part.is_empty() {
            return String::new();
        }
        let headers = usize::from(!self.widths.is_empty());
        let widths = part.column_max_content_widths();
        self.widths.resize(widths.len(), 0);
        for (index, width) in widths.into_iter().enumerate() {
            let known = &mut self.widths[index];
            *known = width.max(*known);
            if let Some(column) = part.column_mut(index) {
                let width = Width::Fixed(*known + column.padding_width());
                column.set_constraint(ColumnConstraint::LowerBoundary(width));
            }
        }
        let text = table::text(&part);
        let lines = text.lines().skip(headers);
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::{Parts, table};

    #[test]
    fn parts_have_one_header_and_the_same_columns() {
        let mut parts = Parts::default();
        let mut next = |rows: &[[&str; 2]]| {
            let mut part = table::new(&["NAME", "STATE"]);
            part.add_rows(rows);
            parts.text(part)
        };
        assert_eq!(next(&[]), "");
        let first = next(&[["a-long-name", "new"], ["b", "new"]]);
        let column = first.lines().next().unwrap().find("STATE");
        assert!(first.starts_with("NAME"), "{first}");
        assert_eq!(first.lines().nth(1).unwrap().find("new"), column);
        assert_eq!(next(&[]), "");
        let second = next(&[["c", "gone"]]);
        assert_eq!((second.lines().count(), second.find("gone")), (1, column));
    }
}
