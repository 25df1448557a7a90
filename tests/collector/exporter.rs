//! The exporter beside the collector.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use podtap_tests::{
    collector::{Collector, binary},
    exporter::{Exporter, export},
    frames::connection,
    http, pcap,
    wait::{PATIENCE, until},
};
use serde_json::json;

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
    let exported = export(&lines, TO_STDOUT);
    assert!(exported.success, "{}", exported.errors);
    assert_eq!(exported.output, lines);
    assert!(exported.errors.contains("200 lines read, 0 of them no flows"), "{}", exported.errors);
}

#[test]
fn a_line_that_is_no_flow_is_left_out_and_counted() {
    let exported = export("{\"Proto\":6}\n{\"Proto\":6,\n{\"Proto\":17}\n{\"Pro", TO_STDOUT);
    assert!(!exported.success);
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
    let socket: PathBuf = std::env::temp_dir().join(format!("podtap-flows-{}.sock", std::process::id()));
    let arguments = ["--interface", "eth0", "--export-socket", socket.to_str().expect("text")];
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
    let mut exporter = Exporter::start(path.client.path(), &socket, TO_STDOUT);
    expected.push(request());
    let until_exported = |exporter: &Exporter, expected: &[u64]| {
        until("the flows are exported", PATIENCE, || {
            let ports = ports(&exporter.output());
            if ports == expected { Ok(()) } else { Err(format!("{ports:?}")) }
        });
    };
    until_exported(&exporter, &expected);
    let get = |exporter: &Exporter, path_of: &str| {
        let address = exporter.address;
        let path_of = path_of.to_owned();
        let network = path.client.path().to_owned();
        podtap_tests::namespace::within(&network, move || http::get(address, &path_of)).expect("an answer").1
    };
    let status: serde_json::Value = serde_json::from_str(&get(&exporter, "/status")).expect("JSON");
    assert_eq!(status, json!([{"sink": "logs", "exporting": true}]));
    let metrics = get(&exporter, "/metrics");
    assert!(metrics.contains("podtap_exporter_records_sent_total{sink=\"logs\"} 2\n"), "{metrics}");
    assert!(metrics.contains("podtap_exporter_lines_total 4\n"), "{metrics}");
    exporter.kill();
    expected.push(request());
    until_printed(&expected);
    let exporter = Exporter::start(path.client.path(), &socket, TO_STDOUT);
    expected.push(request());
    until_exported(&exporter, &expected[2..]);
    let said = exporter.end();
    assert!(said.contains("4 lines read, 0 of them no flows"), "{said}");
    let (lines, _) = collector.end();
    assert_eq!(ports(&lines), expected);
    fs::remove_file(socket).expect("it exists");
}
