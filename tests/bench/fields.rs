//! Taps that mirror less: filters, headers only, sampling, flows that are cut off.

use serde_json::{Value, json};

use crate::{
    columns::{Column, Receiver},
    http::Requests,
    rounds::Bench,
    table::Table,
};

/// The pod's traffic.
#[derive(Clone, Copy)]
enum Traffic {
    Tcp { flows: u32 },
    Udp { flows: usize },
    Http { requests: usize, clients: usize, reconnect: bool },
}

/// A row: the pod's traffic, and fields of the tap's `spec`.
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
const CUTOFF: &str = "PodTap, bytesPerFlow";
const EXEMPT: &str = "PodTap, exemptBytes";

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

fn cutoff() -> Value {
    json!({"limit": {"bytesPerFlow": "64Ki"}})
}

fn exempt() -> Value {
    json!({"truncate": {"headersOnly": true, "exemptBytes": 4096}})
}

#[rustfmt::skip]
const ROWS: [Row; 13] = [
    Row { what: "UDP 64 B, a filter that matches nothing", target: ">= 0.98 of untapped",
          traffic: Traffic::Udp { flows: 1 }, column: FILTER, spec: nothing },
    Row { what: "TCP, 1 flow, a filter that matches nothing", target: "-",
          traffic: Traffic::Tcp { flows: 1 }, column: FILTER, spec: nothing },
    Row { what: "TCP, 1 flow, headersOnly", target: ">= 0.90 of untapped",
          traffic: Traffic::Tcp { flows: 1 }, column: HEADERS, spec: headers },
    Row { what: "UDP 64 B, headersOnly", target: "-",
          traffic: Traffic::Udp { flows: 1 }, column: HEADERS, spec: headers },
    // Many flows, since a single one is either sampled or not.
    Row { what: "TCP, 64 flows, 1 in 10 sampled", target: ">= 0.90 of untapped",
          traffic: Traffic::Tcp { flows: 64 }, column: SAMPLE, spec: sample },
    Row { what: "UDP 64 B, 200 flows, 1 in 10 sampled", target: ">= 0.92 of untapped",
          traffic: Traffic::Udp { flows: 200 }, column: SAMPLE, spec: sample },
    Row { what: "TCP, 1 flow, bytesPerFlow 64Ki; receiver decapsulates", target: ">= 0.95 of untapped",
          traffic: Traffic::Tcp { flows: 1 }, column: CUTOFF, spec: cutoff },
    Row { what: "TCP, 16 flows, bytesPerFlow 64Ki; receiver decapsulates", target: "-",
          traffic: Traffic::Tcp { flows: 16 }, column: CUTOFF, spec: cutoff },
    Row { what: "UDP 64 B, bytesPerFlow 64Ki; receiver decapsulates", target: "-",
          traffic: Traffic::Udp { flows: 1 }, column: CUTOFF, spec: cutoff },
    Row { what: "10,000 HTTP requests for 4 KiB, 16 connections, bytesPerFlow 64Ki; receiver decapsulates", target: ">= 0.93 of untapped",
          traffic: Traffic::Http { requests: 10_000, clients: 16, reconnect: false }, column: CUTOFF, spec: cutoff },
    Row { what: "100,000 HTTP requests for 4 KiB, 16 connections, bytesPerFlow 64Ki; receiver decapsulates", target: "-",
          traffic: Traffic::Http { requests: 100_000, clients: 16, reconnect: false }, column: CUTOFF, spec: cutoff },
    // None is cut off: what the table of flows costs.
    Row { what: "10,000 HTTP requests for 4 KiB, a connection each, bytesPerFlow 64Ki; receiver decapsulates", target: "-",
          traffic: Traffic::Http { requests: 10_000, clients: 4, reconnect: true }, column: CUTOFF, spec: cutoff },
    Row { what: "TCP, 1 flow, headersOnly but the first 4 KiB", target: ">= 0.90 of untapped",
          traffic: Traffic::Tcp { flows: 1 }, column: EXEMPT, spec: exempt },
];

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = Table::new("fields");
    for row in &ROWS {
        let unit = match row.traffic {
            Traffic::Tcp { .. } => "Gbit/s",
            Traffic::Udp { .. } => "packets/s",
            Traffic::Http { .. } => "requests/s",
        };
        table = table.row(row.what, unit, row.target);
    }
    for column in [FILTER, HEADERS, SAMPLE, CUTOFF, EXEMPT] {
        let rows: Vec<&Row> = ROWS.iter().filter(|row| row.column == column).collect();
        let first = rows[0];
        bench.compare(
            &[Column::Untapped, Column::podtap(column, (first.spec)())],
            // What is hardly mirrored costs the receiver little, too.
            if column == CUTOFF { Receiver::Decapsulates } else { Receiver::Drops },
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
        Traffic::Tcp { flows } => bench.gigabits(flows, false),
        Traffic::Udp { flows } => bench.datagrams(flows, false),
        Traffic::Http { requests, clients, reconnect } => {
            Requests { count: requests, clients, reconnect }.run(bench.stage)
        }
    }
}
