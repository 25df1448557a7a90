//! TCP at its maximum rate.

use crate::{
    columns::{Column, Receiver},
    rounds::Bench,
    table::Table,
};

/// Number of flows, whether the pod receives, and the names of the row when the receiver drops and when it decapsulates.
const ROWS: [(u32, bool, &str, &str); 4] = [
    (1, false, "TCP, 1 flow, pod sends; receiver drops", "TCP, 1 flow, pod sends; receiver decapsulates"),
    (1, true, "TCP, 1 flow, pod receives; receiver drops", "TCP, 1 flow, pod receives; receiver decapsulates"),
    (16, false, "TCP, 16 flows, pod sends; receiver drops", "TCP, 16 flows, pod sends; receiver decapsulates"),
    (16, true, "TCP, 16 flows, pod receives; receiver drops", "TCP, 16 flows, pod receives; receiver decapsulates"),
];

const LOST: &str = "TCP: frames that the capture lost, receiver drops";

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = Table::new("tcp");
    for (_, _, dropping, _) in ROWS {
        table = table.row(dropping, "Gbit/s", ">= 0.85 of untapped, >= 5 x plain");
    }
    for (_, _, _, decapsulating) in ROWS {
        table = table.row(decapsulating, "Gbit/s", ">= 0.78 of untapped");
    }
    table = table.row(LOST, "%", "0");
    for receiver in [Receiver::Drops, Receiver::Decapsulates] {
        let mut columns = Column::all();
        if receiver == Receiver::Decapsulates {
            columns.push(Column::raw());
        }
        let name = |row: (u32, bool, &'static str, &'static str)| match receiver {
            Receiver::Drops => row.2,
            Receiver::Decapsulates => row.3,
        };
        bench.compare(
            &columns,
            receiver,
            &mut table,
            |table, round, column, running| {
                for row in ROWS {
                    table.record(name(row), column.name(), round, bench.gigabits(row.0, row.1));
                }
                if let (Receiver::Drops, Some(lost)) = (receiver, running.capture_loss()) {
                    table.record(LOST, column.name(), round, lost);
                }
            },
            |table, round, column, why| table.record(name(ROWS[0]), column.name(), round, Err(why)),
        );
    }
    table
}
