//! Rows of results, as a table for people and as JSON for programs.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::statistics::percentile;

/// The rows so far.
#[derive(Default)]
pub struct Report {
    rows: Vec<Value>,
}

impl Report {
    /// Adds a row of samples, in `unit`; shows the median, the 95th percentile and the range.
    pub fn add(&mut self, what: &str, target: &str, unit: &str, mut samples: Vec<f64>) {
        samples.sort_by(f64::total_cmp);
        let at = |share| percentile(&samples, share);
        let (Some(p50), Some(p95), Some(low), Some(high)) = (at(0.5), at(0.95), at(0.0), at(1.0)) else {
            println!("{what}: not measured");
            return;
        };
        println!(
            "{what:<58} target {target:<24} p50 {p50:>8.1} p95 {p95:>8.1} [{low:.1} .. {high:.1}] {unit}, n={}",
            samples.len()
        );
        self.rows
            .push(json!({"what": what, "target": target, "unit": unit, "p50": p50, "p95": p95, "samples": samples}));
    }

    /// Writes all rows into a directory.
    pub fn finish(self, directory: &Path) {
        fs::create_dir_all(directory).expect("target/ can be written to");
        let text = serde_json::to_string_pretty(&json!({"rows": self.rows})).expect("rows are JSON");
        fs::write(directory.join("establish.json"), text).expect("target/ can be written to");
    }
}
