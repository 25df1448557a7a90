//! What it costs that mirrored frames leave over IPv6.

use serde_json::json;

use crate::{
    columns::{Column, Receiver},
    rounds::Bench,
    table::{PRODUCT, Table},
};

const TCP: &str = "TCP, 1 flow; receiver drops";
const UDP: &str = "UDP 64 B; receiver drops";

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = Table::new("underlay").row(TCP, "Gbit/s", "as over IPv4").row(UDP, "packets/s", "as over IPv4");
    bench.compare(
        &[Column::Untapped, Column::podtap(PRODUCT, json!({})), Column::Ipv6],
        Receiver::Drops,
        &mut table,
        |table, round, column, _| {
            table.record(TCP, column.name(), round, bench.gigabits(1, false));
            table.record(UDP, column.name(), round, bench.datagrams(1, false));
        },
        |table, round, column, why| table.record(TCP, column.name(), round, Err(why)),
    );
    table
}
