//! Taps that mirror less: a filter, headers only, sampling.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    columns::{Column, Receiver},
    flood::Flood,
    iperf::Load,
    rounds::Bench,
    table::Table,
};

/// What the pod does.
#[derive(Clone, Copy)]
enum Traffic {
    Tcp { flows: u32 },
    Udp { flows: usize },
}

/// A row: what the pod does, and what the tap's `spec` has beyond its defaults.
struct Row {
    what: &'static str,
    target: &'static str,
    traffic: Traffic,
    column: &'static str,
    spec: fn() -> Value,
}

const FILTER: &str = "PodTap, filter";
const HEADERS: &str = "PodTap, headersOnly";
const SAMPLE: &str = "PodTap, sample";

/// No pod here sends to or from TCP port 1.
fn nothing() -> Value {
    json!({"filter": {"include": [{"protocol": "TCP", "ports": [{"port": 1}]}]}})
}

fn headers() -> Value {
    json!({"truncate": {"headersOnly": true}})
}

fn sample() -> Value {
    json!({"sample": {"oneInFlows": 10}})
}

#[rustfmt::skip]
const ROWS: [Row; 6] = [
    Row { what: "UDP 64 B, a filter that matches nothing", target: ">= 0.98 of untapped",
          traffic: Traffic::Udp { flows: 1 }, column: FILTER, spec: nothing },
    Row { what: "TCP, 1 flow, a filter that matches nothing", target: "-",
          traffic: Traffic::Tcp { flows: 1 }, column: FILTER, spec: nothing },
    Row { what: "TCP, 1 flow, headersOnly", target: ">= 0.90 of untapped",
          traffic: Traffic::Tcp { flows: 1 }, column: HEADERS, spec: headers },
    Row { what: "UDP 64 B, headersOnly", target: "-",
          traffic: Traffic::Udp { flows: 1 }, column: HEADERS, spec: headers },
    // Many flows, because a single one is either in the sample or not.
    Row { what: "TCP, 64 flows, 1 in 10 sampled", target: ">= 0.90 of untapped",
          traffic: Traffic::Tcp { flows: 64 }, column: SAMPLE, spec: sample },
    Row { what: "UDP 64 B, 200 flows, 1 in 10 sampled", target: ">= 0.92 of untapped",
          traffic: Traffic::Udp { flows: 200 }, column: SAMPLE, spec: sample },
];

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = Table::new("fields");
    for row in &ROWS {
        let unit = match row.traffic {
            Traffic::Tcp { .. } => "Gbit/s",
            Traffic::Udp { .. } => "packets/s",
        };
        table = table.row(row.what, unit, row.target);
    }
    for column in [FILTER, HEADERS, SAMPLE] {
        let rows: Vec<&Row> = ROWS.iter().filter(|row| row.column == column).collect();
        let first = rows[0];
        bench.compare(
            &[Column::Untapped, Column::podtap(column, (first.spec)())],
            Receiver::Drops,
            &mut table,
            |table, round, column, _| {
                for row in &rows {
                    table.record(row.what, column.name(), round, run(bench, row.traffic));
                }
            },
            |table, round, column, why| table.record(first.what, column.name(), round, Err(why)),
        );
    }
    table
}

fn run(bench: &Bench<'_>, traffic: Traffic) -> Result<f64, String> {
    match traffic {
        Traffic::Tcp { flows } => {
            let load = Load { flows, receive: false, rate: None, seconds: bench.seconds };
            load.run(bench.stage).map(|outcome| outcome.gigabits)
        }
        Traffic::Udp { flows } => {
            let length = Duration::from_secs(bench.seconds.into());
            Flood { flows, receive: false, rate: None, length }.run(bench.stage)
        }
    }
}
