//! Memory of the exporter, whatever its sinks do.

use std::{fs, io::Write as _, net::TcpListener, os::unix::net::UnixStream, thread};

use podtap_tests::{
    exporter::{Ended, Exporter, report},
    net::Network,
    wait::{PATIENCE, until},
};

/// The memory limit of the chart's container, in KiB.
const MEMORY: u64 = 256 << 10;
/// Sinks that get records by Kafka.
const BROKERS: u16 = 11;
/// More than fit into a queue of 16 MiB, and into a row group of Parquet.
const RECORDS: u32 = 90_000;

/// The most memory that a process had so far, in KiB.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).expect("a size")
}

#[test]
fn sinks_that_take_nothing_cost_bounded_memory() {
    let network = Network::new();
    // It accepts connections, and neither reads nor answers.
    let silent = network.within(|| TcpListener::bind("127.0.0.1:9092")).expect("it can listen");
    thread::spawn(move || silent.incoming().collect::<Vec<_>>());
    let mut names = vec!["logs".to_owned()];
    let mut sinks = vec!["{name: logs, stdout: {}}".to_owned()];
    for number in 0..BROKERS {
        // Nothing listens on the other port.
        let port = if number % 2 == 0 { 9092 } else { 9093 };
        names.push(format!("kafka{number}"));
        sinks.push(format!("{{name: kafka{number}, kafka: {{brokers: ['127.0.0.1:{port}'], topic: flows}}}}"));
    }
    for (name, kind) in [
        ("ipfix", "ipfix: {host: 127.0.0.1, port: 9092, transport: TCP}"),
        ("otlp/logs", "otlp: {url: 'http://127.0.0.1:9092', signals: [logs]}"),
    ] {
        names.push(name.to_owned());
        sinks.push(format!("{{name: {}, {kind}}}", name.trim_end_matches("/logs")));
    }
    // They keep what they count, and not records.
    let directory = std::env::temp_dir().join(format!("podtap-slow-sinks-{}", std::process::id()));
    sinks.push(format!("{{name: files, files: {{directory: {}, format: Parquet}}}}", directory.display()));
    sinks.push("{name: metrics-of-flows, remoteWrite: {url: 'http://127.0.0.1:9092', profile: netobserv}}".to_owned());
    let mut exporter = Exporter::new(&network, &format!("sinks: [{}]", sinks.join(", ")));
    exporter.listen_unread();
    let mut collector = UnixStream::connect(exporter.socket()).expect("it listens");
    let process = exporter.process();
    let empty = peak(process);
    for number in 0..RECORDS {
        collector.write_all(report(number).as_bytes()).expect("it reads, whatever sinks do");
    }
    until("all lines are read", PATIENCE, || match exporter.metric("podtap_exporter_lines_total")? {
        lines if lines == 2 * u64::from(RECORDS) => Ok(()),
        lines => Err(lines.to_string()),
    });
    for name in &names {
        let dropped = format!("podtap_exporter_records_dropped_total{{sink=\"{name}\",reason=\"queueFull\"}}");
        assert!(exporter.metric(&dropped).expect("it is there") > 0, "the queue of {name} is full");
    }
    let full = peak(process);
    println!("{empty} KiB empty, {full} KiB with {} sinks", sinks.len());
    // It ends, although nothing is taken.
    let Ended { status, errors, .. } = exporter.end();
    assert_eq!(status.code(), Some(1), "{errors}");
    for name in &names {
        assert!(errors.contains(&format!("{name} did not get ")), "{errors}");
    }
    fs::remove_dir_all(directory).expect("it was written to");
    assert!(full <= MEMORY, "{full} KiB");
}
