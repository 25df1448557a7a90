use podtap_model::{Instruction, Oversize, Reason, bounds::MAX_INSTRUCTIONS};
use serde_json::{Value, json};

use super::*;
use crate::{
    fixtures::{World, object, tap},
    validate::{expression::ExpressionError, tap::validate},
};

/// The options of a tap with these fields, as nodes get them.
fn options(fields: &Value) -> Result<(MirrorOptions, Option<Program>), String> {
    let mut tap = tap("t", json!([{"node": {"name": "n2"}}]));
    tap.spec.mirror.options = serde_json::from_value(fields.clone()).map_err(|error| error.to_string())?;
    let snapshot = World { taps: vec![tap.clone()], ..World::small() }.snapshot();
    let options = TapOptions::new(&tap.spec.mirror.options, &snapshot.expressions, || None);
    let TapOptions { options, program, rejected_expression } = options.map_err(|failure| failure.message)?;
    assert_eq!(rejected_expression, None);
    Ok((options, program))
}

#[track_caller]
fn refused(fields: &Value, words: &str) {
    let message = options(fields).expect_err("it is invalid");
    assert!(message.contains(words), "expected “{words}”, got {message}");
}

#[test]
fn what_requests_nothing_is_the_default() {
    for fields in [json!({}), json!({"oversize": "Fragment"})] {
        assert_eq!(options(&fields), Ok((MirrorOptions::default(), None)), "{fields}");
    }
}

#[test]
fn everything_reaches_the_nodes() {
    let fields = json!({
        "filter": {
            "include": [{"protocol": "TCP", "ports": [{"port": 443}, {"port": 1000, "endPort": 2000}], "cidrs": ["10.1.2.3/8"]}],
            "exclude": [{"protocol": "ICMPv6"}, {"cidrs": ["2001:db8::1/32"]}],
            "expression": "arp",
        },
        "truncate": {"bytes": 128, "exemptBytes": 4096}, "sample": {"oneInFlows": 10}, "oversize": "Truncate",
        "limit": {"bitsPerSecond": 100_000_000, "packetsPerSecond": 0, "bytesPerFlow": 65_536},
        "deduplicate": {"handshakes": "Both"},
    });
    let (options, program) = self::options(&fields).expect("valid");
    assert_eq!(json!(options), fields);
    assert_eq!(options.oversize, Oversize::Truncate);
    let instruction = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let instructions = vec![
        instruction(0x28, 0, 0, 12),
        instruction(0x15, 0, 1, 0x806),
        instruction(6, 0, 0, 262_144),
        instruction(6, 0, 0, 0),
    ];
    let program = program.expect("a program");
    assert_eq!(program.instructions, instructions);
    // printf '\0\x28\0\0\0\0\0\x0c\0\x15\0\x01\0\0\x08\x06\0\x06\0\0\0\x04\0\0\0\x06\0\0\0\0\0\0' | sha256sum
    assert_eq!(program.id.to_string(), "sha256:8a6a670451b3e2ce32434251811fa149ccc1450a407968d979b43146f9e45077");
    let (headers, _) = self::options(&json!({"truncate": {"headersOnly": true}})).expect("valid");
    assert!(headers.truncate.is_some_and(|truncate| truncate.headers_only && truncate.bytes.is_none()));
}

#[test]
fn an_invalid_expression_is_reported_in_the_words_of_libpcap() {
    refused(
        &json!({"filter": {"expression": "tcp prot 443"}}),
        "filter.expression \"tcp prot 443\" is invalid; libpcap reports: can't parse filter expression: syntax error",
    );
    for text in ["inbound", "not outbound and tcp", "ifindex 3", "tcp[-20] = 1"] {
        refused(&json!({"filter": {"expression": text}}), "spec.direction selects");
    }
    refused(&json!({"filter": {"expression": " "}}), "must be a pcap-filter expression of 1 to 1024 ASCII characters");
    let long: Vec<String> = (0..58).map(|number| format!("ip host 1.{number}.7.9 and tcp[{number}] = 1")).collect();
    let long = long.join(" or ").chars().take(1021).collect::<String>();
    let result = options(&json!({"filter": {"expression": long}}));
    assert!(
        result.is_ok()
            || result.is_err_and(|message| message.contains("filter.include") || message.contains("libpcap"))
    );
    let too_long = ExpressionError::TooLong(600).to_string();
    assert!(too_long.contains(&format!("600 instructions, and {MAX_INSTRUCTIONS} are allowed")));
    assert_eq!(ExpressionError::Pending.failure().reason, Reason::Pending);
}

#[test]
fn a_loop_is_refused_before_the_nodes_refuse_it() {
    for text in ["ip protochain 6", "ip6 protochain 6", "tcp port 80 or protochain 51"] {
        refused(&json!({"filter": {"expression": text}}), "write proto instead of protochain");
    }
    assert_eq!(ExpressionError::Loop(String::new()).failure().reason, Reason::InvalidSpec);
    // An established tap keeps what it has.
    let mut tap = tap("t", json!([{"node": {"name": "n2"}}]));
    tap.spec.mirror.options = object(json!({"filter": {"expression": "ip protochain 6"}}));
    let snapshot = World { taps: vec![tap.clone()], ..World::small() }.snapshot();
    let (_, program) = options(&json!({"filter": {"expression": "arp"}})).expect("valid");
    let before = CompiledExpression { text: "arp".into(), program: program.clone().expect("a program") };
    let kept = TapOptions::new(&tap.spec.mirror.options, &snapshot.expressions, || Some(Established(Some(before))))
        .expect("the previous one");
    assert_eq!(kept.rejected_expression.map(|failure| failure.reason), Some(Reason::InvalidSpec));
    assert_eq!((kept.options.expression(), kept.program), (Some("arp"), program));
    // Also if it has none.
    let kept = TapOptions::new(&tap.spec.mirror.options, &snapshot.expressions, || Some(Established(None)))
        .expect("no expression");
    assert_eq!((kept.options, kept.program), (MirrorOptions::default(), None));
    assert!(kept.rejected_expression.is_some());
}

#[test]
fn what_the_schema_would_refuse_is_refused_here_too() {
    let entry = |entry: Value| json!({"filter": {"include": [entry]}});
    refused(&entry(json!({})), "at least one of protocol, ports and cidrs");
    refused(&entry(json!({"protocol": "ICMP", "ports": [{"port": 1}]})), "have no ports");
    for (port, end) in [(0, 5), (5, 4)] {
        refused(&entry(json!({"ports": [{"port": port, "endPort": end}]})), "is not a port range");
    }
    refused(&entry(json!({"ports": [{"port": 1, "endPort": 65_536}]})), "65536");
    refused(&entry(json!({"cidrs": ["10.0.0.0"]})), "invalid IP address");
    refused(&entry(json!({"cidrs": vec!["10.0.0.0/8"; 17]})), "at most 16 cidrs in an entry of a filter, not 17");
    refused(&entry(json!({"ports": vec![json!({"port": 1}); 17]})), "at most 16 ports");
    refused(&json!({"filter": {"exclude": vec![json!({"protocol": "TCP"}); 17]}}), "16 entries in filter.exclude");
    for bad in [json!({}), json!({"bytes": 64, "headersOnly": true}), json!({"headersOnly": false})] {
        refused(&json!({"truncate": bad}), "exactly one of truncate.bytes and truncate.headersOnly");
    }
    refused(&json!({"truncate": {"bytes": 13}}), "truncate.bytes must be between 14 and 65535, not 13");
    refused(&json!({"sample": {"oneInFlows": 0}}), "sample.oneInFlows must be between 1 and 1000000, not 0");
    refused(&json!({"limit": {"bitsPerSecond": -1}}), "is not a number, 0 or more");
    refused(&json!({"limit": {"packetsPerSecond": 2_000_000_000}}), "limit.packetsPerSecond must be between 0");
    refused(&json!({"deduplicate": {"podCIDRs": ["10.244.0.0/16"]}}), "unknown field");
    let many: Vec<String> = (0..5).map(|number| format!("10.{}.0.0/24", number * 2)).collect();
    let ports: Vec<Value> = (1..14).map(|port| json!({"port": port * 10})).collect();
    let full = json!({"ports": ports, "cidrs": many});
    refused(
        &json!({"filter": {"include": [full]}}),
        "the filter has 65 combinations of ports and cidrs, and 64 are allowed",
    );
    refused(&json!({"limit": {"bitsPerSecond": 1_000_000_000_000_i64}}), "between 0 and 100000000000");
}

#[test]
fn a_tap_for_collectors_only_mirrors_what_they_need() {
    let options = |destinations: Value, fields: Value| {
        let mut tap = tap("t", destinations);
        tap.spec.mirror.options = serde_json::from_value(fields).expect("valid");
        let snapshot = World::with(tap).snapshot();
        let validated = validate(&snapshot);
        json!(validated.taps[0].spec.as_ref().expect("valid").options.options)
    };
    let needed = json!({"truncate": {"headersOnly": true, "exemptBytes": 4096}, "deduplicate": {"handshakes": "Both"}});
    assert_eq!(options(json!([{"collector": {}}]), json!({})), needed);
    let chosen = json!({"truncate": {"bytes": 200}, "deduplicate": {}});
    assert_eq!(options(json!([{"collector": {}}]), chosen.clone()), chosen, "what the spec says counts");
    let several = json!([{"name": "a", "collector": {}}, {"name": "b", "node": {"name": "n2"}}]);
    assert_eq!(options(several, json!({})), json!({}), "the other destination gets whole frames");
}
