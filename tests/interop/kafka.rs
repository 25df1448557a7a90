//! Flows in a real broker, read by its own consumer.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    process::Command,
    thread,
    time::Duration,
};

use podtap_tests::{
    collector,
    exporter::{Ended, Exporter, export, report},
    frames::{connection, udp},
    net::Network,
    pcap,
    wait::{PATIENCE, until},
};
use serde_json::Value;

use crate::broker::{Broker, Message, PASSWORD, PLAINTEXT, SASL_PLAINTEXT, SASL_SSL, SECOND, SSL, USER};

const PARTITIONS: u32 = 4;
/// `PODTAP_INTEROP_RECORDS` sets another number. The order of more than these is not checked, only their count.
const RECORDS: u32 = 100_000;

fn records() -> u32 {
    std::env::var("PODTAP_INTEROP_RECORDS").map_or(RECORDS, |number| number.parse().expect("a number"))
}

/// How long that many take on a busy machine.
fn patience(records: u32) -> Duration {
    PATIENCE * (10 + records / 10_000)
}

/// Lines that the collector prints: of connections, and of questions that are not answered.
fn lines() -> Vec<String> {
    let mut frames = Vec::new();
    for port in 0..300 {
        let (client, server) = ((Ipv4Addr::new(10, 0, 0, 1), 10_000 + port), (Ipv4Addr::new(10, 0, 0, 2), 80));
        frames.extend(connection(client, server));
        frames.push(udp(client, (Ipv4Addr::new(10, 0, 0, 3), 5000), b"question"));
    }
    let file = pcap::File::timed((0..).map(Duration::from_millis).zip(&frames));
    let output = Command::new(collector::binary()).arg("--read").arg(file.path()).args(["--print", "flows"]).output();
    let output = output.expect("it runs");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

/// Sinks, one a line: its name and its settings.
fn config(sinks: &[(&str, String)]) -> String {
    let sinks = sinks.iter().map(|(name, settings)| format!("  - {{name: {name}, kafka: {{{settings}}}}}\n"));
    format!("sinks:\n{}", sinks.collect::<String>())
}

fn sasl(mechanism: &str, password: &std::path::Path) -> String {
    format!("sasl: {{mechanism: {mechanism}, username: {USER}, passwordFile: {}}}", password.display())
}

#[test]
fn messages_are_the_lines_of_the_collector() {
    let network = Network::new();
    let broker = Broker::start(&network);
    broker.create("flows", PARTITIONS, &[]);
    let tls = format!("tls: {{caFile: {}}}", broker.authority().display());
    let password = broker.password();
    let sinks = [
        ("plain", format!("brokers: ['127.0.0.1:1', '{PLAINTEXT}'], compression: none")),
        ("tls", format!("brokers: ['{SSL}'], {tls}, compression: gzip")),
        ("password", format!("brokers: ['{SASL_SSL}'], {tls}, {}, compression: snappy", sasl("PLAIN", &password))),
        ("scram256", format!("brokers: ['{SASL_PLAINTEXT}'], {}, compression: zstd", sasl("SCRAM-SHA-256", &password))),
        ("scram512", format!("brokers: ['{SASL_SSL}'], {tls}, {}", sasl("SCRAM-SHA-512", &password))),
    ];
    let sinks = sinks.map(|(name, settings)| (name, format!("{settings}, topic: flows")));
    let lines = lines();
    assert!(lines.iter().any(|line| line.contains("ConnId")) && lines.iter().any(|line| !line.contains("ConnId")));
    let Ended { status, errors, .. } = export(&network, &(lines.join("\n") + "\n"), &config(&sinks));
    assert!(status.success(), "{errors}");
    assert!(!errors.contains(PASSWORD), "{errors}");

    let messages = broker.consume("flows");
    let mut values: Vec<&str> = messages.iter().map(|message| &*message.value).collect();
    values.sort_unstable();
    let mut expected: Vec<&str> = lines.iter().flat_map(|line| [&**line; 5]).collect();
    expected.sort_unstable();
    assert!(values == expected, "{} messages of {}", values.len(), expected.len());
    // All of a flow is in one partition.
    let mut partition_of = BTreeMap::new();
    for Message { partition, key, value } in &messages {
        assert_eq!(partition_of.entry(key).or_insert(partition), &partition, "{key}");
        let flow: Value = serde_json::from_str(value).expect("JSON");
        match flow["ConnId"].as_str() {
            Some(connection) => assert_eq!(connection, key),
            None => assert!(key.starts_with("17 10.0.0.1:") && key.ends_with(" 10.0.0.3:5000"), "{key}"),
        }
    }
    assert_eq!(partition_of.len(), 600);
    assert_eq!(partition_of.values().collect::<BTreeSet<_>>().len(), PARTITIONS as usize);
}

#[test]
fn what_is_wrong_is_told() {
    let network = Network::new();
    let broker = Broker::start(&network);
    broker.create("flows", 1, &[]);
    broker.create("small", 1, &["max.message.bytes=100"]);
    let tls = format!("tls: {{caFile: {}}}", broker.authority().display());
    let (right, wrong) = (broker.password(), broker.wrong_password());
    let cases = [
        ("down", "brokers: ['127.0.0.1:1'], topic: flows".to_owned(), "127.0.0.1:1: Connection refused"),
        ("untrusted", format!("brokers: ['{SSL}'], topic: flows, tls: {{}}"), "invalid peer certificate"),
        ("tls-to-plain", format!("brokers: ['{PLAINTEXT}'], topic: flows, {tls}"), "TLS"),
        ("plain-to-tls", format!("brokers: ['{SSL}'], topic: flows"), "the broker may expect TLS"),
        ("no-sasl", format!("brokers: ['{SASL_PLAINTEXT}'], topic: flows"), "it may expect TLS or SASL"),
        (
            "password",
            format!("brokers: ['{SASL_SSL}'], topic: flows, {tls}, {}", sasl("PLAIN", &wrong)),
            "SASL PLAIN: SaslAuthenticationFailed: Authentication failed: Invalid username or password",
        ),
        (
            "scram",
            format!("brokers: ['{SASL_SSL}'], topic: flows, {tls}, {}", sasl("SCRAM-SHA-512", &wrong)),
            "SASL SCRAM-SHA-512: SaslAuthenticationFailed: Authentication failed",
        ),
        (
            "mechanism",
            format!("brokers: ['{SASL_PLAINTEXT}'], topic: flows, {}", sasl("PLAIN", &right)),
            "UnsupportedSaslMechanism; the broker takes SCRAM-SHA-",
        ),
        ("unlisted", "brokers: ['localhost:9092'], topic: flows".to_owned(), "called 127.0.0.1:9092: add them"),
        ("topic", format!("brokers: ['{PLAINTEXT}'], topic: unknown"), "there is no topic unknown"),
        ("large", format!("brokers: ['{PLAINTEXT}'], topic: small"), "partition 0: MessageTooLarge"),
    ];
    let sinks: Vec<_> = cases.iter().map(|(name, settings, _)| (*name, settings.clone())).collect();
    let mut exporter = Exporter::new(&network, &config(&sinks));
    let mut input = exporter.read();
    input.write_all(report(1).as_bytes()).expect("it reads");
    for (name, _, expected) in &cases {
        until(name, PATIENCE, || match exporter.condition(name)? {
            (Some(false), message) if message.contains(expected) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    assert_eq!(exporter.metric("podtap_exporter_records_dropped_total{sink=\"large\",reason=\"refused\"}"), Ok(1));
    let Ended { status, errors, .. } = exporter.end();
    assert_eq!(status.code(), Some(1), "{errors}");
    for (name, ..) in cases {
        assert!(errors.contains(&format!("{name} did not get 1 records")), "{errors}");
    }
    assert!(!errors.contains(PASSWORD), "{errors}");
    assert_eq!(broker.count("flows"), 0);
}

/// Checks that each partition has its messages once and in the order of the records.
fn check_order(messages: &[Message], records: u32) {
    let mut partitions = BTreeMap::<u32, Vec<&Message>>::new();
    for message in messages {
        partitions.entry(message.partition).or_default().push(message);
    }
    let keys: BTreeMap<u32, BTreeSet<&str>> = partitions
        .iter()
        .map(|(partition, messages)| (*partition, messages.iter().map(|message| &*message.key).collect()))
        .collect();
    for (partition, messages) in partitions {
        let is_here = |number: &u32| keys[&partition].contains(&*format!("{:016x}", number % 1000));
        let expected = (0..records).filter(is_here).map(report).collect::<String>();
        let values = messages.iter().flat_map(|message| [&*message.value, "\n"]).collect::<String>();
        assert!(values == expected, "partition {partition} has {} messages", messages.len());
    }
}

#[test]
fn a_broker_that_fails_gets_everything_once_and_in_order() {
    let (network, records) = (Network::new(), records());
    let mut broker = Broker::start(&network);
    broker.create("flows", PARTITIONS, &[]);
    let sinks = [("kafka", format!("brokers: ['{PLAINTEXT}'], topic: flows"))];
    let mut exporter = Exporter::new(&network, &config(&sinks));
    let mut input = exporter.read();
    let writer = thread::spawn(move || {
        for number in 0..records {
            input.write_all(report(number).as_bytes()).expect("it reads");
        }
    });
    let sent = "podtap_exporter_records_sent_total{sink=\"kafka\"}";
    for part in 1..=3 {
        until("a part was sent", patience(records), || match exporter.metric(sent)? {
            sent if sent >= u64::from(records / 4 * part) => Ok(()),
            sent => Err(format!("{sent}")),
        });
        // The third time, it answers what it was sent before when that was sent again already.
        if part == 3 {
            broker.pause();
        } else {
            broker.kill();
        }
        until("it is told", PATIENCE, || match exporter.condition("kafka")? {
            (Some(false), _) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        if part == 3 { broker.resume() } else { broker.restart() }
    }
    writer.join().expect("it writes");
    let Ended { status, errors, .. } = exporter.wait();
    assert!(status.success(), "{errors}");
    assert_eq!(broker.count("flows"), 2 * u64::from(records));
    if records <= RECORDS {
        check_order(&broker.consume("flows"), records);
    }
}

#[test]
fn what_a_broker_that_is_down_does_not_get_is_counted() {
    let (network, records) = (Network::new(), records());
    let mut broker = Broker::start(&network);
    broker.create("flows", PARTITIONS, &[]);
    let sink = format!("sinks: [{{name: kafka, queueMiB: 1, kafka: {{brokers: ['{PLAINTEXT}'], topic: flows}}}}]");
    let mut exporter = Exporter::new(&network, &sink);
    exporter.listen();
    let mut collector = UnixStream::connect(exporter.socket()).expect("it listens");
    for number in 0..records {
        collector.write_all(report(number).as_bytes()).expect("it reads");
        if number == records / 2 {
            broker.kill();
        }
    }
    drop(collector);
    until("all lines are read", patience(records), || match exporter.metric("podtap_exporter_lines_total")? {
        lines if lines == 2 * u64::from(records) => Ok(()),
        lines => Err(format!("{lines}")),
    });
    let metric = |name: &str| exporter.metric(name).expect("it is there");
    let dropped = || metric("podtap_exporter_records_dropped_total{sink=\"kafka\",reason=\"queueFull\"}");
    let sent = || metric("podtap_exporter_records_sent_total{sink=\"kafka\"}");
    broker.restart();
    until("each record is sent or dropped", patience(records), || match (sent(), dropped()) {
        (sent, dropped) if sent + dropped == u64::from(records) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (sent, dropped) = (sent(), dropped());
    assert!(dropped > 0);
    println!("{sent} records were sent, {dropped} dropped");
    let Ended { status, errors, .. } = exporter.end();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains(&format!("kafka did not get {dropped} records")), "{errors}");
    assert_eq!(broker.count("flows"), 2 * sent);
    let messages = broker.consume("flows");
    let values: BTreeSet<&str> = messages.iter().map(|message| &*message.value).collect();
    assert_eq!(values.len() as u64, 2 * sent, "none comes twice");
}

#[test]
fn partitions_of_a_broker_that_is_down_do_not_hold_up_others() {
    const PART: u32 = 10_000;
    let network = Network::new();
    let broker = Broker::start(&network);
    let mut second = broker.join();
    broker.create_on("flows", &[1, 2, 1, 2]);
    // The one that fails is asked first.
    let sink = format!(
        "sinks: [{{name: kafka, queueMiB: 512, kafka: {{brokers: ['{SECOND}', '{PLAINTEXT}'], topic: flows}}}}]"
    );
    let mut exporter = Exporter::new(&network, &sink);
    exporter.listen();
    let mut collector = UnixStream::connect(exporter.socket()).expect("it listens");
    let mut write = |numbers: std::ops::Range<u32>| {
        numbers.for_each(|number| collector.write_all(report(number).as_bytes()).expect("it reads"));
    };
    let sent = || exporter.metric("podtap_exporter_records_sent_total{sink=\"kafka\"}");
    let until_sent = |records: u64| {
        until("they are sent", patience(PART), || match sent()? {
            sent if sent >= records => Ok(()),
            sent => Err(format!("{sent} of {records}")),
        });
    };
    // One of each connection: where its reports go.
    write(0..1000);
    until_sent(1000);
    let messages = broker.consume("flows");
    let first: BTreeSet<_> =
        messages.iter().filter(|message| message.partition % 2 == 0).map(|message| message.key.clone()).collect();
    assert!((1..1000).contains(&first.len()), "both brokers have some");

    write(1000..PART);
    until_sent(2000);
    second.kill();
    until("it is told", PATIENCE, || match exporter.condition("kafka")? {
        (Some(false), message) if message.contains("of flows has no leader") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let before = sent().expect("it is there");
    write(PART..2 * PART);
    // Each connection has as many of them.
    until_sent(before + u64::from(PART) / 1000 * first.len() as u64);
    assert!(sent().expect("it is there") < u64::from(2 * PART));
    assert_eq!(exporter.condition("kafka").expect("it is told").0, Some(false));

    second.restart();
    until_sent((2 * PART).into());
    let Ended { status, errors, .. } = exporter.end();
    assert!(status.success(), "{errors}");
    assert_eq!(broker.count("flows"), 2 * u64::from(2 * PART));
    check_order(&broker.consume("flows"), 2 * PART);
}
