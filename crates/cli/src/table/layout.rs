//! Columns and sheets: how text is laid out. Knows nothing of what it says.

use crate::plain;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, Table, Width, presets};

/// Between two columns.
const GAP: u16 = 2;

/// A table in the making. A heading that begins with `>` is of numbers, aligned to the right.
pub(super) struct Rows(Table);

impl Rows {
    pub(super) fn new(heading: &[&str]) -> Self {
        Self::with_heading(heading.iter().map(|title| (*title).to_owned()).collect())
    }

    pub(super) fn with_heading(heading: Vec<String>) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let numbers: Vec<bool> = heading.iter().map(|title| title.starts_with('>')).collect();
        table.set_header(
            heading
                .iter()
                .map(|title| Cell::new(title.trim_start_matches('>'))),
        );
        for (column, is_number) in table.column_iter_mut().zip(numbers) {
            column.set_padding((0, GAP));
            if is_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self(table)
    }

    pub(super) fn add(&mut self, row: impl IntoIterator<Item = String>) {
        // A line feed in a foreign text must not break the row.
        self.0
            .add_row(row.into_iter().map(|cell| plain::line(&cell).into_owned()));
    }

    pub(super) fn text(self) -> String {
        self.0.trim_fmt()
    }

    /// One of several parts, under the heading of the first. Its columns are not narrower than those of the parts before.
    pub(super) fn part(mut self, widths: &mut Widths) -> String {
        let is_first = widths.0.is_empty();
        let own = self.0.column_max_content_widths();
        widths.0.resize(own.len(), 0);
        for (width, own) in widths.0.iter_mut().zip(own) {
            *width = own.max(*width);
        }
        for (column, width) in self.0.column_iter_mut().zip(&widths.0) {
            let with_padding = width.saturating_add(GAP);
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(with_padding)));
        }
        let text = self.0.trim_fmt();
        match text.split_once('\n') {
            Some((_heading, rows)) if !is_first => rows.to_owned(),
            Some(_) | None => text,
        }
    }
}

/// How wide the columns of a table are, of which parts are printed already.
#[derive(Debug, Default)]
pub(crate) struct Widths(Vec<u16>);

/// Names and values of one object, one pair a line.
#[derive(Default)]
pub(super) struct Sheet(Vec<Option<(String, String)>>);

impl Sheet {
    pub(super) fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = plain::line(&value.to_string()).into_owned();
        self.0.push(Some((plain::line(name).into_owned(), value)));
    }

    pub(super) fn blank(&mut self) {
        self.0.push(None);
    }

    pub(super) fn text(self) -> String {
        let names = self.0.iter().flatten().map(|(name, _)| name.len());
        let width = names.max().unwrap_or(0) + 1;
        let lines = self.0.into_iter().map(|line| match line {
            None => String::new(),
            Some((name, value)) => format!("{:width$} {value}", format!("{name}:")),
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_table_stand_under_its_heading() {
        let part = |names: &[&str], widths: &mut Widths| {
            let mut rows = Rows::new(&["NAME", ">VMS", "GROUP"]);
            for name in names {
                rows.add([(*name).to_owned(), "7".to_owned(), "default".to_owned()]);
            }
            rows.part(widths)
        };
        let whole = part(&["alpha-long", "b", "c"], &mut Widths::default());
        let mut widths = Widths::default();
        let parts: Vec<_> = [["alpha-long"], ["b"], ["c"]]
            .iter()
            .map(|names| part(names, &mut widths))
            .collect();
        assert_eq!(parts.join("\n"), whole);
        for name in ["one-that-is-longer", "d"] {
            let row = part(&[name], &mut widths);
            assert_eq!(row, format!("{name:<18}    7  default"));
        }
    }
}
