//! What it costs that a receiver shows frames as on the wire, compared with one that shows them as the kernel has them.

use crate::{
    columns::{Column, Receiver},
    rounds::Bench,
    table::{RAW, Table},
};

/// Where the receiver is, and the names of the rows without and with a reader.
const ROWS: [(bool, &str, &str); 2] = [
    (
        false,
        "TCP, 1 flow, receiver on the other node, nobody reads",
        "TCP, 1 flow, receiver on the other node, tcpdump reads",
    ),
    (
        true,
        "TCP, 1 flow, receiver on the pod's node, nobody reads",
        "TCP, 1 flow, receiver on the pod's node, tcpdump reads",
    ),
];

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = Table::new("readers");
    for (_, unread, read) in ROWS {
        table = table.row(unread, "Gbit/s", ">= 0.95 of raw").row(read, "Gbit/s", ">= 0.60 of raw");
    }
    for (on_the_pods_node, unread, read) in ROWS {
        let columns = [Column::raw(), Column::podtap(crate::table::PRODUCT, serde_json::json!({})), Column::read()];
        let columns = columns.map(|column| if on_the_pods_node { column.on_the_pods_node() } else { column });
        let rows = |column: &Column| match column {
            Column::PodTap { read: true, .. } => vec![read],
            column if column.name() == RAW => vec![unread, read],
            _ => vec![unread],
        };
        bench.compare(
            &columns,
            Receiver::Decapsulates,
            &mut table,
            |table, round, column, _| {
                let outcome = bench.gigabits(1, false);
                for row in rows(column) {
                    table.record(row, column.name(), round, outcome.clone());
                }
            },
            |table, round, column, why| {
                for row in rows(column) {
                    table.record(row, column.name(), round, Err(why.clone()));
                }
            },
        );
    }
    table
}
