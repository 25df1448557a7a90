//! `podtap-controller compile-expression`, which parses user text.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

fn run(text: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_podtap-controller"))
        .arg("compile-expression")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn answer(text: &str) -> Value {
    let output = run(text);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}: {} {words}", output.status);
    serde_json::from_slice(&output.stdout).expect("it is JSON")
}

#[test]
fn an_expression_becomes_a_program() {
    let program = answer("arp");
    assert_eq!(
        program["program"],
        serde_json::json!([[40, 0, 0, 12], [21, 0, 1, 2054], [6, 0, 0, 262_144], [6, 0, 0, 0]])
    );
}

/// The longest text that is valid. Whether nodes run as many instructions is checked later.
#[test]
fn a_long_expression_needs_no_more_than_the_process_may_take() {
    let ports: Vec<String> = (1..80).map(|port| format!("port {}", 2 * port)).collect();
    let answer = answer(&ports.join(" or "));
    assert!(answer["program"].as_array().is_some_and(|program| program.len() > 80), "{answer}");
}

#[test]
fn an_error_is_reported_in_the_words_of_libpcap() {
    let error = answer("tcp prot 443")["error"].as_str().expect("an error").to_owned();
    assert!(error.contains("syntax error"), "{error}");
}

#[test]
fn no_name_is_resolved() {
    // All of these are known to a process that may read /etc.
    let started = Instant::now();
    for text in [
        "host localhost",
        "net loopback",
        "port http",
        "ether host localhost",
        "gateway localhost",
        "ip proto \\gre",
        "ip6 proto egp",
    ] {
        assert!(answer(text)["error"].is_string(), "{text}");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "and nothing blocks");
}

#[test]
fn long_expressions_compile_quickly() {
    let hosts = (0..55).map(|number| format!("host 10.1.{number}.7")).collect::<Vec<_>>().join(" or ");
    let nested = format!("{}arp{}", "not (".repeat(165), ")".repeat(165));
    let ports =
        (0..40).map(|number| format!("portrange {number}-{}", 60_000 + number)).collect::<Vec<_>>().join(" or ");
    let arithmetic = format!("ip[0] {} > 5", "+ ip[1] * len".repeat(70));
    for text in [hosts, nested, ports, arithmetic] {
        assert!(text.len() <= 1024, "{}", text.len());
        let started = Instant::now();
        let answer = answer(&text);
        println!(
            "{} instructions or {} in {:?}",
            answer["program"].as_array().map_or(0, Vec::len),
            answer["error"],
            started.elapsed()
        );
        assert!(started.elapsed() < Duration::from_secs(2), "{text}");
    }
}

#[test]
fn nonsense_never_crashes_it() {
    // A simple generator is enough: the words of the language in any order.
    const WORDS: [&str; 32] = [
        "tcp",
        "udp",
        "ip",
        "ip6",
        "arp",
        "host",
        "net",
        "port",
        "portrange",
        "1.2.3.4",
        "::1",
        "10.0.0.0/8",
        "80",
        "1-5",
        "and",
        "or",
        "not",
        "(",
        ")",
        "[",
        "]",
        "+",
        "/",
        "0",
        "len",
        "vlan",
        "mpls",
        "pppoes",
        "geneve",
        "ether",
        "proto",
        "&",
    ];
    let mut state = 7u64;
    for _ in 0..200 {
        let mut words = Vec::new();
        for _ in 0..=((state >> 33) % 12) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            words.push(WORDS[usize::try_from(state >> 59).expect("five bits")]);
        }
        let text = words.join(" ");
        let answer = answer(&text);
        assert!(answer["program"].is_array() || answer["error"].is_string(), "{text}: {answer}");
    }
}
