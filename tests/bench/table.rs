//! Rows that compare columns: as a table for people and as JSON for programs.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use serde_json::{Value, json};

use crate::statistics::{median, ratios, spread};

/// The column that all others are compared with.
pub const UNTAPPED: &str = "untapped";
/// The column that PodTap is also compared with.
pub const PLAIN: &str = "plain";
/// PodTap with raw frames, the column that receivers with other frames are compared with.
pub const RAW: &str = "PodTap, raw";
/// PodTap with a reader at the receiver.
pub const READ: &str = "PodTap, read";
/// What the collector is compared with.
pub const TCPDUMP: &str = "tcpdump -w /dev/null";
/// See [`TCPDUMP`].
pub const SOFTFLOWD: &str = "softflowd, nfcapd";
/// See [`TCPDUMP`].
pub const TSHARK: &str = "tshark";
/// Prefix of PodTap's columns.
pub const PRODUCT: &str = "PodTap";

/// The rows of one family.
pub struct Table {
    name: &'static str,
    rows: Vec<Row>,
    /// Columns in the order of their first sample.
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

    /// Records a sample of a row, or why there is none.
    pub fn record(&mut self, what: &str, column: &str, round: usize, sample: Result<f64, String>) {
        if !self.columns.iter().any(|known| known == column) {
            self.columns.push(column.to_owned());
        }
        let row = self.rows.iter_mut().find(|row| row.what == what).expect("the row was added");
        match sample {
            Ok(value) => {
                row.samples.entry(column.to_owned()).or_default().insert(round, value);
            }
            Err(why) => self.failures.push(format!("{what}, {column}, round {}: {why}", round + 1)),
        }
    }

    /// As text: a line per row, and one per column of it.
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
                if let Some(verdict) = row.verdict(column) {
                    let _ = write!(text, "   {verdict}");
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
                        value["verdict"] = json!(row.verdict(column));
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

    /// Whether a column of PodTap meets the target for the ratio to another one: in all rounds, in none, or in some.
    fn verdict(&self, column: &str) -> Option<&'static str> {
        let (comparison, rest) = self.target.split_once(' ')?;
        let (bound, unit) = rest.split_once(' ')?;
        let mut others = self.compared_with(column).filter(|_| column.starts_with(PRODUCT));
        let (other, _) = others.find(|(_, word)| unit.starts_with(word))?;
        let bound: f64 = bound.parse().ok()?;
        let (low, high) = spread(&ratios(&self.by_round(column), &self.by_round(other)))?;
        let (worst, best) = match comparison {
            ">=" => (low - bound, high - bound),
            "<=" => (bound - high, bound - low),
            _ => return None,
        };
        Some(if worst >= 0.0 {
            "met"
        } else if best < 0.0 {
            "missed"
        } else {
            "undecided: the spread crosses the target"
        })
    }

    fn compared_with<'a>(&'a self, column: &'a str) -> impl Iterator<Item = (&'static str, &'static str)> + 'a {
        let untapped = (column != UNTAPPED && self.samples.contains_key(UNTAPPED)).then_some((UNTAPPED, "of untapped"));
        let others = [
            (PLAIN, "x plain"),
            (RAW, "of raw"),
            (TCPDUMP, "of tcpdump"),
            (SOFTFLOWD, "of softflowd"),
            (TSHARK, "of tshark"),
        ];
        let is_compared =
            move |other: &str| column.starts_with(PRODUCT) && column != other && self.samples.contains_key(other);
        untapped.into_iter().chain(others.into_iter().filter(move |(other, _)| is_compared(other)))
    }
}

fn summary(samples: &[f64]) -> String {
    match (median(samples), spread(samples)) {
        (Some(middle), Some((low, high))) => format!("{} [{} .. {}]", number(middle), number(low), number(high)),
        _ => "none".to_owned(),
    }
}

/// Formats a value with its significant digits.
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
        let mut table = Table::new("test").row("TCP", "Gbit/s", ">= 0.85 of untapped");
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
        assert_eq!(lines[0], "TCP [Gbit/s]; target: >= 0.85 of untapped");
        assert_eq!(lines[1], "  untapped             15.00 [10.00 .. 20.00], n=2");
        assert_eq!(
            lines[2],
            "  PodTap               12.00 [8.00 .. 16.00], n=2   0.80 [0.80 .. 0.80] of untapped   8.00 [8.00 .. 8.00] x plain   missed"
        );
        assert_eq!(lines[3], "  plain                1.50 [1.00 .. 2.00], n=2   0.10 [0.10 .. 0.10] of untapped");
    }

    #[test]
    fn a_target_is_only_met_by_all_rounds() {
        let verdict = |target: &'static str, ratios: &[f64]| {
            let mut table = Table::new("test").row("row", "us", target);
            for (round, ratio) in ratios.iter().enumerate() {
                table.record("row", UNTAPPED, round, Ok(100.0));
                table.record("row", "PodTap, raw", round, Ok(100.0 * ratio));
                table.record("row", PLAIN, round, Ok(100.0 * ratio));
            }
            let column = |name: &str| table.json()["rows"][0]["columns"][name]["verdict"].clone();
            assert!(column(PLAIN).is_null() && column(UNTAPPED).is_null());
            column("PodTap, raw")
        };
        let undecided = "undecided: the spread crosses the target";
        assert_eq!(verdict(">= 0.85 of untapped, >= 5 x plain", &[0.85, 0.9]), "met");
        assert_eq!(verdict(">= 0.85 of untapped, >= 5 x plain", &[0.8, 0.9, 0.9, 0.9]), undecided);
        assert_eq!(verdict(">= 0.85 of untapped", &[0.8, 0.84]), "missed");
        assert_eq!(verdict("<= 1.10 of untapped", &[1.0, 1.1]), "met");
        assert_eq!(verdict("<= 1.10 of untapped", &[1.0, 1.2]), undecided);
        assert_eq!(verdict("<= 1.10 of untapped", &[1.2, 1.3]), "missed");
        assert_eq!(verdict("none more than untapped", &[1.2]), Value::Null);
    }

    #[test]
    fn a_failure_is_shown_but_is_no_sample() {
        let mut table = table();
        table.record("TCP", PLAIN, 2, Err("timed out".to_owned()));
        let text = table.text();
        assert!(text.contains("failed: TCP, plain, round 3: timed out"), "{text}");
        assert_eq!(table.json()["rows"][0]["columns"]["plain"]["samples"], json!([2.0, 1.0]));
        assert_eq!(table.json()["rows"][0]["columns"]["PodTap"]["of_plain"]["median"], json!(8.0));
    }

    #[test]
    fn a_row_without_samples_is_not_measured() {
        assert!(Table::new("test").row("TCP", "Gbit/s", "").text().contains("not measured"));
    }

    #[test]
    fn small_values_are_not_rounded_to_zero() {
        assert_eq!([0.0, 0.0012, 0.5, 123.45, 12345.6].map(number), ["0.00", "1.2e-3", "0.50", "123.5", "12346"]);
    }
}
