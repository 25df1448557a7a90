//! What it costs that mirrored frames leave over IPv6.

use std::time::Duration;

use serde_json::json;

use crate::{
    columns::{Column, Receiver},
    flood::Flood,
    iperf::Load,
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
            let load = Load { flows: 1, receive: false, rate: None, seconds: bench.seconds };
            table.record(TCP, column.name(), round, load.run(bench.stage).map(|outcome| outcome.gigabits));
            let length = Duration::from_secs(bench.seconds.into());
            let arrived = Flood { flows: 1, receive: false, rate: None, length }.run(bench.stage);
            table.record(UDP, column.name(), round, arrived);
        },
        |table, round, column, why| table.record(TCP, column.name(), round, Err(why)),
    );
    table
}
