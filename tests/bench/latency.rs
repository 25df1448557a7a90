//! Request and response of 1 KiB, one after the other on one connection.
//!
//! Client and server are pinned to a core each. Otherwise the scheduler sometimes runs both on one core, which has a third of the latency,
//! and the columns are not comparable.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use podtap_tests::{cores::stay_on, namespace::within};

use crate::{
    columns::{Column, Receiver},
    rounds::Bench,
    statistics::percentile,
    table::Table,
};

const P50: &str = "request/response 1 KiB, p50; receiver drops";
const P99: &str = "request/response 1 KiB, p99; receiver drops";
const SIZE: usize = 1024;
/// Timeout of a read or write.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Requests at the start of each run that are not measured.
const WARM_UP: usize = 200;
/// Limits the memory of a run.
const MAX_SAMPLES: usize = 1_000_000;

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = Table::new("latency").row(P50, "us", "<= 1.05 of untapped").row(P99, "us", "<= 1.10 of untapped");
    bench.compare(
        &Column::all(),
        Receiver::Drops,
        &mut table,
        |table, round, column, _| match run(bench, Duration::from_secs(bench.seconds.into())) {
            Ok(samples) => {
                for (row, share) in [(P50, 0.5), (P99, 0.99)] {
                    let sample = percentile(&samples, share).ok_or_else(|| "no response".to_owned());
                    table.record(row, column.name(), round, sample);
                }
            }
            Err(error) => table.record(P50, column.name(), round, Err(error.to_string())),
        },
        |table, round, column, why| table.record(P50, column.name(), round, Err(why)),
    );
    table
}

/// Microseconds of each request. The tapped pod is the client.
fn run(bench: &Bench<'_>, length: Duration) -> io::Result<Vec<f64>> {
    let stage = bench.stage;
    let address = SocketAddr::new(stage.peer_address.into(), 0);
    let listener = within(&stage.peer, move || TcpListener::bind(address))?;
    let address = listener.local_addr()?;
    let client = within(&stage.web, move || TcpStream::connect_timeout(&address, TIMEOUT))?;
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
    }
    let [client_core, server_core] =
        [bench.cores.first(), bench.cores.last()].map(|core| core.copied().unwrap_or_default());
    let responding = thread::spawn(move || stay_on(server_core).map(|()| respond(server)));
    let requesting = thread::spawn(move || stay_on(client_core).and_then(|()| request(client, length)));
    let samples = requesting.join().map_err(|_| io::Error::other("the client panicked"))?;
    // The client has closed its end, so the server ends, too.
    responding.join().map_err(|_| io::Error::other("the server panicked"))??;
    samples
}

fn request(mut stream: TcpStream, length: Duration) -> io::Result<Vec<f64>> {
    let mut message = [7_u8; SIZE];
    let mut samples = Vec::with_capacity(100_000);
    for _ in 0..WARM_UP {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
    }
    let start = Instant::now();
    while start.elapsed() < length && samples.len() < MAX_SAMPLES {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        samples.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    Ok(samples)
}

fn respond(mut stream: TcpStream) {
    let mut message = [0_u8; SIZE];
    while stream.read_exact(&mut message).and_then(|()| stream.write_all(&message)).is_ok() {}
}
