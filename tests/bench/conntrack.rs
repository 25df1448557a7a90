//! The entries that a tap adds to the connection tracking of the pod's node.

use std::{io, net::UdpSocket, time::Duration};

use podtap_tests::namespace::within;

use crate::{
    columns::{Column, PLAIN_PORT, PODTAP_PORT, Receiver},
    programs::bounded,
    rounds::Bench,
    stage::Stage,
    table::{PRODUCT, Table},
};

const ROW: &str = "conntrack entries on the node after 10,000 inner flows";
const FLOWS: u16 = 10_000;
const FIRST_PORT: u16 = 20_000;

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = Table::new("conntrack").row(ROW, "entries", "<= 16 per destination");
    bench.compare(
        &[Column::podtap(PRODUCT, serde_json::json!({})), Column::Plain],
        Receiver::Drops,
        &mut table,
        |table, round, column, _| table.record(ROW, column.name(), round, run(bench.stage)),
        |table, round, column, why| table.record(ROW, column.name(), round, Err(why)),
    );
    table
}

/// Entries of the VXLAN packets, not those of inner flows, which the node may track as well. All are created within the lifetime of
/// an entry, 30 seconds.
fn run(stage: &Stage) -> Result<f64, String> {
    for port in [PODTAP_PORT, PLAIN_PORT] {
        // Fails if there is none.
        let _ = bounded(&stage.n1, 10, &["conntrack", "-D", "-p", "udp", "--orig-port-dst", &port.to_string()]);
    }
    let peer = stage.peer_address;
    let send = move || -> io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for flow in 0..FLOWS {
            // Some fail with ECONNREFUSED, the peer's answer to an earlier datagram.
            let _ = socket.send_to(&[0; 64], (peer, FIRST_PORT + flow));
            if flow % 100 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    };
    within(&stage.web, send).map_err(|error| error.to_string())?;
    let mut entries = 0;
    for port in [PODTAP_PORT, PLAIN_PORT] {
        let list = ["conntrack", "-L", "-p", "udp", "--orig-port-dst", &port.to_string()];
        entries += bounded(&stage.n1, 10, &list)?.lines().filter(|line| !line.trim().is_empty()).count();
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of entries")]
    Ok(entries as f64)
}
