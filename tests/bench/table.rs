//! Rows that compare columns: as a table for people and as JSON for programs.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use serde_json::{Value, json};

use crate::statistics::{median, ratios, spread};

/// The column that all others are compared with.
pub const UNTAPPED: &str = "untapped";
/// The column that the product is also compared with.
pub const PLAIN: &str = "plain";
/// The product's columns begin with it.
pub const PRODUCT: &str = "PodTap";

/// Rows of one family.
pub struct Table {
    name: &'static str,
    rows: Vec<Row>,
    /// Columns in the order of their first samples.
    columns: Vec<String>,
    failures: Vec<String>,
}

struct Row {
    what: &'static str,
    unit: &'static str,
    target: &'static str,
    /// By column and round.
    samples: BTreeMap<String, BTreeMap<usize, f64>>,
}

impl Table {
    pub fn new(name: &'static str) -> Self {
        Self { name, rows: Vec::new(), columns: Vec::new(), failures: Vec::new() }
    }

    /// Adds a row.
    pub fn row(mut self, what: &'static str, unit: &'static str, target: &'static str) -> Self {
        self.rows.push(Row { what, unit, target, samples: BTreeMap::new() });
        self
    }

    /// A sample of a row, or why there is none.
    pub fn record(&mut self, what: &str, column: &str, round: usize, sample: Result<f64, String>) {
        if !self.columns.iter().any(|known| known == column) {
            self.columns.push(column.to_owned());
        }
        let row = self.rows.iter_mut().find(|row| row.what == what).expect("samples are of a row that was added");
        match sample {
            Ok(value) => {
                row.samples.entry(column.to_owned()).or_default().insert(round, value);
            }
            Err(why) => self.failures.push(format!("{what}, {column}, round {}: {why}", round + 1)),
        }
    }

    /// As text: a line for each row, and one for each of its columns.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let _ = writeln!(text, "{} [{}]; target: {}", row.what, row.unit, row.target);
            if row.samples.is_empty() {
                let _ = writeln!(text, "  not measured");
            }
            for column in self.columns.iter().filter(|column| row.samples.contains_key(*column)) {
                let samples = row.by_round(column);
                let _ =
                    write!(text, "  {column:<20} {}, n={}", summary(&row.present(column)), row.present(column).len());
                for (other, word) in row.compared_with(column) {
                    let ratios = ratios(&samples, &row.by_round(other));
                    if !ratios.is_empty() {
                        let _ = write!(text, "   {} {word}", summary(&ratios));
                    }
                }
                let _ = writeln!(text);
            }
        }
        for failure in &self.failures {
            let _ = writeln!(text, "  failed: {failure}");
        }
        text
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let columns: BTreeMap<_, _> = row
                    .samples
                    .keys()
                    .map(|column| {
                        let present = row.present(column);
                        let mut value = json!({
                            "samples": row.by_round(column), "median": median(&present), "spread": spread(&present),
                        });
                        for (other, _) in row.compared_with(column) {
                            let ratios = ratios(&row.by_round(column), &row.by_round(other));
                            value[format!("of_{other}")] =
                                json!({"median": median(&ratios), "spread": spread(&ratios), "rounds": ratios});
                        }
                        (column, value)
                    })
                    .collect();
                json!({"what": row.what, "unit": row.unit, "target": row.target, "columns": columns})
            })
            .collect();
        json!({"rows": rows, "failures": self.failures})
    }

    /// Prints the table, and writes it into a directory.
    pub fn finish(self, directory: &Path) {
        println!("\n{}", self.text());
        let json = serde_json::to_string_pretty(&self.json()).expect("rows are JSON");
        fs::create_dir_all(directory).expect("target/ can be written to");
        fs::write(directory.join(format!("{}.json", self.name)), json).expect("target/ can be written to");
    }
}

impl Row {
    fn present(&self, column: &str) -> Vec<f64> {
        self.samples.get(column).map(|samples| samples.values().copied().collect()).unwrap_or_default()
    }

    fn by_round(&self, column: &str) -> Vec<Option<f64>> {
        let rounds = self.samples.values().filter_map(|s| s.keys().next_back()).max().map_or(0, |last| last + 1);
        (0..rounds).map(|round| self.samples.get(column).and_then(|samples| samples.get(&round).copied())).collect()
    }

    fn compared_with(&self, column: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
        let untapped = (column != UNTAPPED && self.samples.contains_key(UNTAPPED)).then_some((UNTAPPED, "of untapped"));
        let plain = column.starts_with(PRODUCT) && self.samples.contains_key(PLAIN);
        untapped.into_iter().chain(plain.then_some((PLAIN, "x plain")))
    }
}

fn summary(samples: &[f64]) -> String {
    match (median(samples), spread(samples)) {
        (Some(middle), Some((low, high))) => format!("{} [{} .. {}]", number(middle), number(low), number(high)),
        _ => "none".to_owned(),
    }
}

/// With as many digits as are significant.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 100.0 => format!("{value:.1}"),
        small if small >= 0.005 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("test").row("TCP", "Gbit/s", ">= 0.85");
        for (round, (untapped, podtap, plain)) in [(20.0, 16.0, 2.0), (10.0, 8.0, 1.0)].into_iter().enumerate() {
            for (column, value) in [(UNTAPPED, untapped), (PRODUCT, podtap), (PLAIN, plain)] {
                table.record("TCP", column, round, Ok(value));
            }
        }
        table
    }

    #[test]
    fn a_table_shows_medians_spreads_and_ratios_beside_the_target() {
        let text = table().text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "TCP [Gbit/s]; target: >= 0.85");
        assert_eq!(lines[1], "  untapped             15.00 [10.00 .. 20.00], n=2");
        assert_eq!(
            lines[2],
            "  PodTap               12.00 [8.00 .. 16.00], n=2   0.80 [0.80 .. 0.80] of untapped   8.00 [8.00 .. 8.00] x plain"
        );
        assert_eq!(lines[3], "  plain                1.50 [1.00 .. 2.00], n=2   0.10 [0.10 .. 0.10] of untapped");
    }

    #[test]
    fn a_failure_is_shown_and_counts_as_no_sample() {
        let mut table = table();
        table.record("TCP", PLAIN, 2, Err("it hung".to_owned()));
        let text = table.text();
        assert!(text.contains("failed: TCP, plain, round 3: it hung"), "{text}");
        assert_eq!(table.json()["rows"][0]["columns"]["plain"]["samples"], json!([2.0, 1.0]));
        assert_eq!(table.json()["rows"][0]["columns"]["PodTap"]["of_plain"]["median"], json!(8.0));
    }

    #[test]
    fn a_row_without_samples_says_so() {
        assert!(Table::new("test").row("TCP", "Gbit/s", "").text().contains("not measured"));
    }

    #[test]
    fn small_numbers_do_not_become_zero() {
        assert_eq!([0.0, 0.0012, 0.5, 123.45, 12345.6].map(number), ["0.00", "1.2e-3", "0.50", "123.5", "12346"]);
    }
}
