//! The SQL of docs/history.md, on files that the exporter has written.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use podtap_tests::{
    collector::{binary, pod},
    exporter::export,
    frames::{ACK, End, SYN, connection, tcp},
    net::Network,
    pcap::{self, output},
};
use serde_json::{Value, json};

use crate::sql::{Directory, Document, Engine, top};

const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const CART: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const PAYMENTS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 3);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 5);
const OFFICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const HOUR: u64 = 3_600_000;
const RST: u8 = 4;

fn names() -> Value {
    json!({"pods": [pod("web-1", "web", WEB), pod("cart-1", "cart", CART), pod("payments-1", "payments", PAYMENTS)],
        "services": [{"namespace": "shop", "name": "cart-front", "addresses": [SERVICE],
            "ports": [{"port": 80, "targetPort": 8080}], "backends": [{"address": CART}]}],
        "networks": [["192.0.2.0/24", "office"]]})
}

/// The collector's lines of frames with their times in milliseconds since 1970.
fn flows(directory: &Directory, mut frames: Vec<(u64, Vec<u8>)>) -> String {
    frames.sort();
    let file = pcap::File::timed(frames.iter().map(|(at, frame)| (Duration::from_millis(*at), frame)));
    let names_file = directory.join("names.json");
    fs::write(&names_file, names().to_string()).expect("it can be written");
    let mut command = Command::new(binary());
    command.arg("--read").arg(file.path()).args(["--print", "flows", "--names", &names_file]);
    String::from_utf8(output(&mut command)).expect("text")
}

/// A week and more of calls, and when now is.
fn week() -> (Vec<(u64, Vec<u8>)>, u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
    let now = u64::try_from(now.as_millis()).expect("it fits");
    let mut frames = Vec::new();
    let mut port = 40_000;
    let mut call = |hours: u64, client: Ipv4Addr, server: End| {
        port += 1;
        let first = now - hours * HOUR;
        frames.extend((first..).zip(connection((client, port), server)));
    };
    call(9 * 24, WEB, (SERVICE, 80));
    call(3 * 24, WEB, (SERVICE, 80));
    call(3 * 24 + 1, WEB, (CART, 8080));
    call(8 * 24, WEB, (OFFICE, 443));
    call(2, WEB, (OFFICE, 443));
    call(24, WEB, (PAYMENTS, 443));
    // It is refused.
    let (client, server) = ((CART, 50_000), (PAYMENTS, 443));
    frames.push((now - HOUR, tcp(client, server, SYN, (1, 0), b"")));
    frames.push((now - HOUR + 1, tcp(server, client, RST | ACK, (0, 2), b"")));
    (frames, now)
}

/// Size of files, and the time of a query: of flows that tests/interop/history/sample.py makes up, written by the release build, copied to
/// 100 million. It needs 4 GB of disk.
#[test]
#[ignore = "it takes minutes: cargo build --release -p podtap-exporter && make interop TESTS='--ignored --nocapture history::figures'"]
fn figures() {
    const REPORTS: u32 = 400_000;
    const COPIES: u32 = 250;
    // Bytes of one are megabytes of a million.
    let per_million = |bytes: usize| f64::from(u32::try_from(bytes).expect("it fits")) / f64::from(REPORTS);
    let directory = Directory::new("figures");
    let (sample, written, sinks) =
        (directory.join("sample.jsonl"), directory.join("written"), directory.join("sinks.yaml"));
    let mut command = Command::new("python3");
    command.arg(top().join("tests/interop/history/sample.py")).arg(REPORTS.to_string());
    let lines = output(&mut command);
    println!("JSON lines: {:.1} MB per million flows", per_million(lines.len()));
    fs::write(&sample, lines).expect("it can be written");
    let text = format!("sinks: [{{name: p, files: {{directory: {written}, format: Parquet}}}}]");
    fs::write(&sinks, text).expect("it can be written");
    let mut command = Command::new(top().join("target/release/podtap-exporter"));
    output(command.args(["--config", &sinks, "--read", &sample]));
    let folder = fs::read_dir(&written).expect("it was made").next().expect("a day").expect("an entry").path();
    let file = fs::read_dir(&folder).expect("a day").next().expect("a file").expect("an entry").path();
    let size = fs::read(&file).expect("it exists").len();
    println!("Parquet: {:.1} MB per million flows", per_million(size));
    for copy in 1..COPIES {
        fs::copy(&file, file.with_extension(format!("{copy}.parquet"))).expect("there is room");
    }
    let document = Document::read("docs/history.md", &[("/var/lib/podtap-flows", &written)]);
    for (engine, threads) in [(Engine::DuckDb, "SET threads = 2"), (Engine::ClickHouse, "SET max_threads = 2")] {
        let views = document.block("History", engine, 0);
        let edge = "SELECT SrcK8S_Namespace AS n, SrcK8S_OwnerName AS w, DstK8S_Namespace AS m, DstK8S_OwnerName AS v FROM flows
            WHERE DstK8S_Type = 'Pod' AND Failure IS NULL LIMIT 1";
        let edge = engine.run(&[views, &[edge.to_owned()]].concat()).remove(0);
        let text = |name: &str| format!("'{}'", edge[name].as_str().expect("a name"));
        let question = &document.block("When was this edge last used", engine, 0)[0];
        let question = question.replacen("'shop'", &text("n"), 1).replacen("'web'", &text("w"), 1);
        let question = question.replacen("'shop'", &text("m"), 1).replacen("'cart'", &text("v"), 1);
        let times = engine.time(&[views, &[threads.to_owned(), question]].concat(), 5);
        println!("{engine:?}: {times:.2?} seconds for an edge of {} flows", REPORTS * COPIES);
    }
}

fn set(rows: &[Value]) -> BTreeSet<String> {
    rows.iter().map(Value::to_string).collect()
}

#[test]
fn the_questions_of_the_document_are_answered() {
    let directory = Directory::new("history");
    let (frames, now) = week();
    let lines = flows(&directory, frames);
    let files = directory.join("flows");
    let exported = export(
        &Network::new(),
        &lines,
        &format!(
            "sinks:\n- {{name: p, files: {{directory: {files}, format: Parquet}}}}\n\
             - {{name: j, files: {{directory: {files}, format: JSONLines}}}}\n"
        ),
    );
    assert!(exported.status.success(), "{}", exported.errors);
    let release = format!("epoch_ms({})::TIMESTAMPTZ", now - 48 * HOUR);
    let release_64 = format!("fromUnixTimestamp64Milli({}, 'UTC')", now - 48 * HOUR);
    let document = Document::read(
        "docs/history.md",
        &[
            ("/var/lib/podtap-flows", &files),
            ("TIMESTAMPTZ '2026-11-20 14:00:00+00'", &release),
            ("toDateTime64('2026-11-20 14:00:00', 3, 'UTC')", &release_64),
        ],
    );
    // Each one is asked below.
    assert_eq!(document.len(), 2 * 6);
    // Of the last frame of a connection that began so long ago.
    let last = |hours: u64| now - hours * HOUR + 5;
    for engine in Engine::ALL {
        let ask = |section, number| {
            let all = [document.block("History", engine, 0), document.block(section, engine, number)].concat();
            engine.run(&all)
        };
        let lasts = json!([{"last_used": last(72)}]);
        assert_eq!(json!(ask("When was this edge last used", 0)), lasts, "{engine:?}");
        assert_eq!(json!(ask("JSON lines", 0)), lasts, "{engine:?}");
        let edge = |server: (&str, &str), more: Value| {
            let mut row =
                json!({"client_namespace": "shop", "client": "web", "server_namespace": server.0, "server": server.1});
            row.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            row
        };
        assert_eq!(
            ask("When was this edge last used", 1),
            [
                edge(("shop", "cart"), json!({"last_used": last(72)})),
                edge(("shop", "payments"), json!({"last_used": last(24)})),
                edge(("", "office"), json!({"last_used": last(2)})),
            ],
            "{engine:?}"
        );
        // A request has 7 bytes, and a response 8. What is older than a week does not count.
        let talker = |namespace: &str, workload: &str, sent: u32, received: u32| json!({"namespace": namespace, "workload": workload, "sent": sent, "received": received});
        let talkers = ask("Top talkers last week", 0);
        assert_eq!(talkers[0], talker("shop", "web", 28, 32), "{engine:?}");
        let expected = [
            talker("shop", "web", 28, 32),
            talker("shop", "cart", 16, 14),
            talker("shop", "payments", 8, 7),
            talker("", "office", 8, 7),
        ];
        assert_eq!(set(&talkers), set(&expected), "{engine:?}");
        let first = now - 24 * HOUR;
        assert_eq!(
            ask("New since the release", 0),
            [edge(("shop", "payments"), json!({"first_used": first, "reports": 1}))],
            "{engine:?}"
        );
    }
}
