//! Datagrams of 64 bytes, each of which costs a mirror as much as a GSO packet.

use crate::{
    columns::{Column, Receiver},
    rounds::Bench,
    table::Table,
};

const ROWS: [(bool, &str); 2] =
    [(false, "UDP 64 B, pod sends; receiver drops"), (true, "UDP 64 B, pod receives; receiver drops")];

const LOST: &str = "the same: frames that the capture lost";

pub fn measure(bench: &Bench<'_>) -> Table {
    let table = Table::new("udp");
    let mut table = ROWS.into_iter().fold(table, |table, (_, name)| {
        table.row(name, "packets/s", ">= 0.70 of untapped, better than both alternatives")
    });
    table = table.row(LOST, "%", "0");
    bench.compare(
        &Column::all(),
        Receiver::Drops,
        &mut table,
        |table, round, column, running| {
            for (receive, name) in ROWS {
                table.record(name, column.name(), round, bench.datagrams(1, receive));
            }
            if let Some(lost) = running.capture_loss() {
                table.record(LOST, column.name(), round, lost);
            }
        },
        |table, round, column, why| table.record(ROWS[0].1, column.name(), round, Err(why)),
    );
    table
}
