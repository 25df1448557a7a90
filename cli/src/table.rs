//! Columns, as kubectl prints them.

use crate::console::plain;

/// The widths of columns, which grow with what is printed.
#[derive(Debug, Default)]
pub struct Columns(Vec<usize>);

impl Columns {
    /// Rows with columns of the same width, three spaces apart.
    pub fn text(&mut self, rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
        for row in &rows {
            self.0.resize(self.0.len().max(row.len()), 0);
            for (width, cell) in self.0.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&self.0).map(|(cell, width)| format!("{cell:<width$}"));
            format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
        };
        rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = |rows: &[[&str; 2]]| rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect::<Vec<_>>();
        let mut columns = Columns::default();
        let text = columns.text(&rows(&[["NAME", "READY"], ["web-connections", "True"], ["é", ""]]));
        assert_eq!(text, "NAME              READY\nweb-connections   True\né\n");
        assert_eq!(columns.text(&rows(&[["db", "False"]])), "db                False\n", "and stay so");
    }
}
