//! The exporter beside the collector.

use std::{process::Command, time::Duration};

use podtap_tests::{
    collector::{Collector, binary},
    exporter::{Exporter, export},
    frames::connection,
    net::Network,
    pcap,
    wait::{PATIENCE, until},
};

use crate::network::{Path, SERVER_PORT, servers};

const TO_STDOUT: &str = "sinks: [{name: logs, stdout: {}}]";

fn flows(file: &std::path::Path) -> String {
    let printed = pcap::output(Command::new(binary()).arg("--read").arg(file).args(["--print", "flows"]));
    String::from_utf8(printed).expect("text")
}

#[test]
fn lines_of_a_file_are_exported_as_they_are() {
    let frames: Vec<_> = (40_000..40_100)
        .flat_map(|port| connection(([10, 0, 0, 1].into(), port), ([10, 0, 0, 2].into(), 80)))
        .collect();
    let file = pcap::File::timed((0..).map(Duration::from_millis).zip(frames));
    let lines = flows(file.path());
    assert_eq!(lines.lines().count(), 200, "{lines}");
    let replies = lines.lines().filter(|line| line.contains(r#""Reply":true"#));
    assert_eq!(replies.filter(|line| line.contains(r#""SrcPort":80"#)).count(), 100, "{lines}");
    let exported = export(&Network::new(), &lines, TO_STDOUT);
    assert!(exported.status.success(), "{}", exported.errors);
    assert_eq!(exported.output, lines);
    assert!(exported.errors.contains("200 lines read, 0 of them no flows"), "{}", exported.errors);
}

#[test]
fn a_line_that_is_no_flow_is_left_out_and_counted() {
    let exported = export(&Network::new(), "{\"Proto\":6}\n{\"Proto\":6,\n{\"Proto\":17}\n{\"Pro", TO_STDOUT);
    assert_eq!(exported.status.code(), Some(1));
    assert_eq!(exported.output, "{\"Proto\":6}\n{\"Proto\":17}\n");
    assert!(exported.errors.contains("3 lines read, 2 of them no flows"), "{}", exported.errors);
}

/// The ports of clients, in order.
fn ports(lines: &str) -> Vec<u64> {
    let flows = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an object"));
    flows.filter(|flow| flow["DstPort"] == SERVER_PORT).filter_map(|flow| flow["SrcPort"].as_u64()).collect()
}

#[test]
fn the_collector_does_not_wait_for_the_exporter() {
    let path = Path::new();
    path.serve();
    let mut exporter = Exporter::new(&path.client, TO_STDOUT);
    let arguments = ["--interface", "eth0", "--export-socket", &exporter.socket()];
    let collector = Collector::start(path.client.path(), &arguments);
    let request = || u64::from(path.request((servers()[0], SERVER_PORT), 1000).0);
    let mut expected = vec![request()];
    let until_printed = |expected: &[u64]| {
        until("the flow is printed", PATIENCE, || {
            let ports = ports(&collector.lines());
            if ports == expected { Ok(()) } else { Err(format!("{ports:?}")) }
        });
    };
    // Nothing listens yet.
    until_printed(&expected);
    exporter.listen();
    expected.push(request());
    let until_exported = |exporter: &Exporter<'_>, expected: &[u64]| {
        until("the flows are exported", PATIENCE, || {
            let ports = ports(&exporter.output());
            if ports == expected { Ok(()) } else { Err(format!("{ports:?}")) }
        });
    };
    until_exported(&exporter, &expected);
    assert_eq!(exporter.condition("logs"), Ok((Some(true), String::new())));
    assert_eq!(exporter.metric("podtap_exporter_records_sent_total{sink=\"logs\"}"), Ok(2));
    assert_eq!(exporter.metric("podtap_exporter_lines_total"), Ok(4));
    exporter.kill();
    expected.push(request());
    until_printed(&expected);
    exporter.listen();
    expected.push(request());
    until_exported(&exporter, &expected[2..]);
    let ended = exporter.end();
    assert!(ended.status.success(), "{}", ended.errors);
    assert!(ended.errors.contains("4 lines read, 0 of them no flows"), "{}", ended.errors);
    let (lines, _) = collector.end();
    assert_eq!(ports(&lines), expected);
}
