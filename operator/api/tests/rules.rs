//! The rules of the schema, evaluated without a cluster: what is refused, and with which words.

use std::collections::BTreeMap;

use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use podtap_api::definitions;
use serde_json::{Value, json};

thread_local! {
    /// The schemas by kind, with their rules compiled: that takes most of the time.
    static SCHEMAS: BTreeMap<String, CompiledSchema> = definitions()
        .into_iter()
        .map(|(_, definition)| {
            let schema = definition.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
            let schema = serde_json::to_value(schema.expect("the kind has a schema")).expect("a schema is JSON");
            (definition.spec.names.kind, compile_schema(&schema))
        })
        .collect();
}

/// Messages with which the schema of `kind` refuses `object`; empty if it is taken.
fn refusals(kind: &str, object: &Value) -> Vec<String> {
    let result = SCHEMAS.with(|schemas| Validator::new().validate_compiled(&schemas[kind], object, None));
    match result {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(|e| e.message.clone()).collect(),
    }
}

/// A tap that is taken, with the value at `path` (a JSON pointer to an existing parent) put in.
fn tap_with(path: &str, value: Value) -> Value {
    let mut tap = json!({
        "apiVersion": "podtap.dev/v1alpha1", "kind": "PodTap", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "targets": {"podSelector": {"matchLabels": {"app": "web"}}, "maxPods": 32},
            "direction": "Both", "suspend": false,
            "destinations": [{"node": {"name": "worker-3", "interfaceName": "mirror"}}]
        }
    });
    let (parent, key) = path.rsplit_once('/').expect("a pointer has a slash");
    match tap.pointer_mut(parent).expect("the parent exists") {
        Value::Array(list) => list[key.parse::<usize>().expect("a list has numbers")] = value,
        object => object[key] = value,
    }
    tap
}

#[track_caller]
fn refused(path: &str, value: Value, words: &str) {
    let messages = refusals("PodTap", &tap_with(path, value));
    assert!(messages.iter().any(|m| m.contains(words)), "expected a refusal with “{words}”, got {messages:?}");
}

#[track_caller]
fn taken(path: &str, value: Value) {
    let messages = refusals("PodTap", &tap_with(path, value));
    assert!(messages.is_empty(), "{messages:?}");
}

#[test]
fn targets_are_names_or_a_selector() {
    taken("/spec/targets", json!({"podNames": ["web-0"], "maxPods": 32}));
    taken("/spec/targets", json!({"podSelector": {}, "maxPods": 32}));
    refused("/spec/targets", json!({"maxPods": 32}), "exactly one of targets.podNames and targets.podSelector");
    refused(
        "/spec/targets",
        json!({"podNames": ["web-0"], "podSelector": {}, "maxPods": 32}),
        "exactly one of targets.podNames and targets.podSelector",
    );
    refused("/spec/targets/maxPods", json!(0), "targets.maxPods must be between 1 and 500");
    refused("/spec/targets/maxPods", json!(501), "targets.maxPods must be between 1 and 500");
}

#[test]
fn interface_names_are_those_linux_takes() {
    for good in ["net1", "a-15-char-name0", ""] {
        taken("/spec/targets/interface", json!(good));
        taken("/spec/destinations/0", json!({"node": {"name": "n1", "interfaceName": good}}));
        taken("/spec/destinations/0", json!({"pod": {"name": "ids", "interfaceName": good}}));
    }
    for bad in ["a-16-chars-name0", "a/b", "a b", "a:1", ".", "..", "a\tb", "a\u{7}", "\u{2003}", "üüüüüüüüüü"]
    {
        refused("/spec/targets/interface", json!(bad), "at most 15 characters");
        refused("/spec/destinations/0", json!({"node": {"name": "n1", "interfaceName": bad}}), "at most 15 characters");
        refused("/spec/destinations/0", json!({"pod": {"name": "ids", "interfaceName": bad}}), "at most 15 characters");
    }
    refused("/spec/destinations/0", json!({"node": {"name": "n1", "interfaceName": "lo"}}), "not lo, all or default");
}

#[test]
fn a_destination_is_one_of_four() {
    taken("/spec/destinations/0", json!({"pod": {"podSelector": {"matchLabels": {"app": "ids"}}}}));
    taken("/spec/destinations/0", json!({"external": {"address": "192.0.2.10", "port": 4789}}));
    let words = "exactly one of node, pod, external and collector";
    refused("/spec/destinations/0", json!({}), words);
    assert_eq!(refusals("PodTap", &tap_with("/spec/destinations/0", json!({"name": "main"}))).len(), 1, "{words}");
    refused("/spec/destinations/0", json!({"node": {"name": "n1"}, "pod": {"name": "ids"}}), words);
    refused("/spec/destinations/0", json!({"name": "Main", "node": {"name": "n1"}}), "must consist of lower-case");
    let words = "exactly one of name and podSelector";
    refused("/spec/destinations/0", json!({"pod": {}}), words);
    refused("/spec/destinations/0", json!({"pod": {"name": "ids", "podSelector": {}}}), words);
}

#[test]
fn destinations_differ() {
    let one = |name: &str| json!({"name": name, "node": {"name": "n1"}});
    let other = json!({"name": "b", "node": {"name": "n2"}});
    taken("/spec/destinations", json!([one("a"), other]));
    taken("/spec/destinations", json!([one("a"), {"name": "b", "node": {"name": "n1"}, "frameFormat": "Raw"}]));
    refused("/spec/destinations", json!([one("a"), other, one("c")]), "destinations must differ");
    let external = |name: &str, port: u16| json!({"name": name, "external": {"address": "192.0.2.10", "port": port}});
    taken("/spec/destinations", json!([external("a", 4789), external("b", 4790)]));
    refused("/spec/destinations", json!([external("a", 4789), external("b", 4789)]), "destinations must differ");
    let pod = |name: &str, of: &str| json!({"name": name, "pod": {"name": of}});
    taken("/spec/destinations", json!([pod("a", "ids"), pod("b", "other")]));
    refused("/spec/destinations", json!([pod("a", "ids"), pod("b", "ids")]), "destinations must differ");
}

#[test]
fn an_external_address_is_that_of_a_host() {
    for good in ["192.0.2.10", "2001:db8::10"] {
        taken("/spec/destinations/0", json!({"external": {"address": good, "port": 4789}}));
    }
    for bad in ["ids.example.com", "192.0.2.0/24", "0.0.0.0", "127.0.0.1", "::1", ""] {
        refused("/spec/destinations/0", json!({"external": {"address": bad, "port": 4789}}), "address of one host");
    }
    for bad in [0, 65_536] {
        refused(
            "/spec/destinations/0",
            json!({"external": {"address": "192.0.2.10", "port": bad}}),
            "between 1 and 65535",
        );
    }
}

#[test]
fn a_vni_has_24_bits() {
    for good in [1, 16_777_215] {
        taken("/spec/vxlan", json!({"vni": good}));
    }
    for bad in [0, 16_777_216] {
        refused("/spec/vxlan", json!({"vni": bad}), "between 1 and 16777215");
    }
}

#[test]
fn a_duration_is_positive() {
    for good in ["1s", "90s", "1h30m", "1.5h", "8760h", "3600s"] {
        taken("/spec/duration", json!(good));
    }
    for bad in ["0s", "500ms", "8761h", "-1h", "3600", "1d", "", "h"] {
        refused("/spec/duration", json!(bad), "duration must be between 1s and 8760h");
    }
}

#[test]
fn a_filter_says_something() {
    taken("/spec/filter", json!({"include": [{"protocol": "TCP"}], "exclude": [], "expression": "tcp"}));
    refused("/spec/filter", json!({}), "at least one of filter.include, filter.exclude and filter.expression");
    for good in ["tcp port 443", "ip[0] & 0xf != 5", "  ip6 or\n\tarp ", "x"] {
        taken("/spec/filter", json!({"expression": good}));
    }
    for bad in ["", " \t", "host müller", "a\u{0}b", "a\u{7f}"] {
        refused("/spec/filter", json!({"expression": bad}), "must be a pcap-filter expression in ASCII");
    }
}

#[test]
fn an_entry_of_a_filter_can_match() {
    let (port, network) = (json!([{"port": 443}]), json!(["10.0.0.0/8", "2001:db8::/32"]));
    for list in ["include", "exclude"] {
        let taken = |entry: Value| taken("/spec/filter", json!({list: [entry]}));
        let refused = |entry: Value, words| refused("/spec/filter", json!({list: [entry]}), words);
        taken(json!({"protocol": "SCTP", "ports": port, "cidrs": network}));
        taken(json!({"ports": port}));
        taken(json!({"cidrs": network}));
        taken(json!({"protocol": "ICMP", "cidrs": network}));
        taken(json!({"protocol": "ICMPv6", "cidrs": network}));
        refused(json!({}), "at least one of protocol, ports and cidrs");
        refused(json!({"protocol": "ICMP", "ports": port}), "ICMP and ICMPv6 have no ports");
        refused(json!({"protocol": "ICMPv6", "ports": port}), "ICMP and ICMPv6 have no ports");
        refused(json!({"protocol": "ICMPv6", "cidrs": ["10.0.0.0/8"]}), "use cidrs of the other family");
        refused(json!({"protocol": "ICMP", "cidrs": ["::/0"]}), "use cidrs of the other family");
        for bad in ["10.0.0.0", "10.0.0.0/33", "example.com", ""] {
            refused(json!({"cidrs": ["10.0.0.0/8", bad]}), "must be a network such as");
        }
        for good in [json!({"port": 1}), json!({"port": 5, "endPort": 5}), json!({"port": 1, "endPort": 65_535})] {
            taken(json!({"ports": [good]}));
        }
        for bad in [0, -1, 65_536] {
            refused(json!({"ports": [{"port": bad}]}), "port must be between 1 and 65535");
        }
        for bad in [442, 65_536] {
            refused(json!({"ports": [{"port": 443, "endPort": bad}]}), "endPort must be between port and 65535");
        }
    }
}

#[test]
fn frames_are_truncated_in_one_way() {
    for good in [
        json!({"bytes": 14}),
        json!({"bytes": 65_535}),
        json!({"headersOnly": true}),
        json!({"bytes": 64, "headersOnly": false}),
        json!({"headersOnly": true, "exemptBytes": 4096}),
        json!({"bytes": 64, "exemptBytes": 0}),
        json!({"bytes": 64, "exemptBytes": 1_048_576}),
    ] {
        taken("/spec/truncate", good);
    }
    for bad in [
        json!({}),
        json!({"headersOnly": false}),
        json!({"bytes": 64, "headersOnly": true}),
        json!({"exemptBytes": 4096}),
    ] {
        refused("/spec/truncate", bad, "exactly one of truncate.bytes and truncate.headersOnly");
    }
    for bad in [13, 65_536] {
        refused("/spec/truncate", json!({"bytes": bad}), "truncate.bytes must be between 14");
    }
    for bad in [-1, 1_048_577] {
        let truncate = json!({"headersOnly": true, "exemptBytes": bad});
        refused("/spec/truncate", truncate, "truncate.exemptBytes must be between 0");
    }
}

#[test]
fn samples_and_limits_are_numbers_that_mean_something() {
    for good in [1, 1_000_000] {
        taken("/spec/sample", json!({"oneInFlows": good}));
    }
    for bad in [0, 1_000_001] {
        refused("/spec/sample", json!({"oneInFlows": bad}), "sample.oneInFlows must be between 1");
    }
    taken("/spec/limit", json!({"bitsPerSecond": 100_000_000, "packetsPerSecond": 0}));
    taken("/spec/limit", json!({"packetsPerSecond": 1}));
    taken("/spec/limit", json!({"bitsPerSecond": "100M", "packetsPerSecond": "64Ki", "bytesPerFlow": "1Mi"}));
    taken("/spec/limit", json!({"bytesPerFlow": "1Gi"}));
    for bad in [
        json!({}),
        json!({"bitsPerSecond": 0}),
        json!({"bitsPerSecond": 0, "packetsPerSecond": 0}),
        json!({"bitsPerSecond": "0"}),
        json!({"bitsPerSecond": "0k"}),
        json!({"bitsPerSecond": 0, "bytesPerFlow": "0Mi"}),
    ] {
        refused(
            "/spec/limit",
            bad,
            "set limit.bitsPerSecond, limit.packetsPerSecond or limit.bytesPerFlow to more than 0",
        );
    }
    refused("/spec/limit", json!({"bitsPerSecond": -1}), "limit.bitsPerSecond must be between 0");
    refused("/spec/limit", json!({"packetsPerSecond": 1_000_000_001}), "limit.packetsPerSecond must be between 0");
    for bad in ["101G", "-1k", "much", "1Q", "1e3", "100m", "+1", ""] {
        refused("/spec/limit", json!({"bitsPerSecond": bad}), "limit.bitsPerSecond must be between 0");
    }
    refused("/spec/limit", json!({"packetsPerSecond": "2G"}), "limit.packetsPerSecond must be between 0");
    for bad in [json!("1025Mi"), json!(1_073_741_825), json!(-1), json!("64KiB")] {
        refused("/spec/limit", json!({"bytesPerFlow": bad}), "limit.bytesPerFlow must be between 0");
    }
}

#[test]
fn handshakes_are_mirrored_at_one_end_or_at_both() {
    taken("/spec/deduplicate", json!({}));
    taken("/spec/deduplicate", json!({"handshakes": "Once"}));
    taken("/spec/deduplicate", json!({"handshakes": "Both"}));
}

#[test]
fn the_frame_format_is_about_an_interface() {
    for format in ["Raw", "Wire"] {
        taken("/spec/destinations/0", json!({"node": {"name": "n1"}, "frameFormat": format}));
        taken("/spec/destinations/0", json!({"pod": {"name": "ids"}, "frameFormat": format}));
    }
    let external = |format: &str| json!({"external": {"address": "192.0.2.10", "port": 4789}, "frameFormat": format});
    taken("/spec/destinations/0", external("Wire"));
    refused("/spec/destinations/0", external("Raw"), "leave it out of an external destination");
}

#[test]
fn the_policy_names_networks_and_a_range() {
    let policy = |name: &str, spec: Value| json!({"apiVersion": "podtap.dev/v1alpha1", "kind": "PodTapPolicy", "metadata": {"name": name}, "spec": spec});
    let full = json!({
        "allowedExternalCIDRs": ["192.0.2.0/24", "2001:db8::/32"], "vniRange": {"first": 1, "last": 16_777_215},
        "receiverPort": 14_789, "underlayMTU": 1400, "limits": {"tapsPerPod": 8, "targetsPerTap": 500},
        "orphanTimeout": "1h30m", "suspendAll": true
    });
    assert_eq!(refusals("PodTapPolicy", &policy("default", full.clone())), Vec::<String>::new());
    for (name, path, value, words) in [
        ("other", "/receiverPort", json!(14_789), "only the PodTapPolicy named default"),
        ("default", "/allowedExternalCIDRs", json!(["192.0.2.0/33"]), "must be a network such as"),
        ("default", "/allowedExternalCIDRs", json!(["192.0.2.1"]), "must be a network such as"),
        ("default", "/vniRange", json!({"first": 0, "last": 5}), "1 <= first <= last"),
        ("default", "/vniRange", json!({"first": 6, "last": 5}), "1 <= first <= last"),
        ("default", "/receiverPort", json!(14_788), "not 14788"),
        ("default", "/underlayMTU", json!(575), "underlayMTU must be between 576 and 65535"),
        ("default", "/underlayMTU", json!(65_536), "underlayMTU must be between 576 and 65535"),
        ("default", "/orphanTimeout", json!("59s"), "orphanTimeout must be between 1m and 720h"),
        ("default", "/orphanTimeout", json!("721h"), "orphanTimeout must be between 1m and 720h"),
        ("default", "/orphanTimeout", json!("-1h"), "orphanTimeout must be between 1m and 720h"),
        ("default", "/orphanTimeout", json!("an hour"), "orphanTimeout must be between 1m and 720h"),
        ("default", "/limits", json!({"tapsPerPod": 0, "targetsPerTap": 500}), "limits.tapsPerPod"),
        ("default", "/limits", json!({"tapsPerPod": 8, "targetsPerTap": 0}), "limits.targetsPerTap"),
    ] {
        let mut spec = full.clone();
        spec[&path[1..]] = value;
        let messages = refusals("PodTapPolicy", &policy(name, spec));
        assert!(messages.iter().any(|m| m.contains(words)), "expected “{words}”, got {messages:?}");
    }
}

/// What programs disagree about.
#[rustfmt::skip]
const EDGE_TEXTS: &[&str] = &[
    "", "0", "1", "00", "-1", "+1", "1.5", "0.5", ".5", "1.", "1e3", "0x10", "1_000", "NaN", "inf", " 1", "1 ", "1\n", "1k", "1.0001k",
    "0.00000000000000000001Ti", "00000000000000000099.99999999999999999999G", "99999999999999999999", "1m", "1ms", "1.5h", "1h30m",
    "00000000000000000000000000001s", "0.00000000000000000000000001h1s", "1.0000000000000000000000000001h", "1µs", "8760h",
    "99999999999999999999999999999h", "1h1", "h", ".", "..", "a", "A", "lo", "all", "a b", "a\tb", "a\nb", "a\u{b}b", "a\u{0}",
    "a\u{7f}", "a\u{85}", "a\u{a0}b", "\u{2003}", "\u{feff}", "ü", "üüüüüüüüüüüüüüü", "😀", "fifteen-letters", "sixteen-letters-",
    "a/b", "a:b", "a%d", "\"", "'", "\\", "~", "!", "192.0.2.1", "192.0.2.01", "192.0.2.1/32", "192.0.2.1/0", "192.0.2.1/032",
    "192.0.2.1/+8", "192.0.2.1/33", "192.0.2/24", "2001:db8::1", "2001:DB8::1/128", "2001:db8::1%eth0", "::ffff:192.0.2.1",
    "::ffff:192.0.2.1/120", "64:ff9b::192.0.2.1", "fe80::1", "2001:db8::/129", "0000:0000:0000:0000:0000:ffff:192.0.2.1/128",
    "ids.example.com", "TCP", "tcp", "Both", "Raw", "True",
];

const EDGE_NUMBERS: &[i64] =
    &[-1, 0, 1, 13, 14, 500, 65_535, 65_536, 16_777_215, 16_777_216, 100_000_000_000, i64::MAX];

/// What the schema takes but the controller cannot decode is a tap that cannot be validated.
#[test]
fn what_the_rules_take_can_be_decoded() {
    let mut decoded = 0;
    let mut check = |parent: &str, field: &str, value: &Value| {
        let mut tap = tap_with("/spec/filter", json!({"include": [{"ports": [{"port": 1}]}]}));
        tap["spec"]["truncate"] = json!({"bytes": 64});
        tap.pointer_mut(parent).expect("the parent exists")[field] = value.clone();
        if !refusals("PodTap", &tap).is_empty() {
            return;
        }
        let result = serde_json::from_value::<podtap_api::PodTapSpec>(tap["spec"].clone());
        assert!(result.is_ok(), "{parent}/{field}: the rules take {value}, but {:?}", result.err());
        decoded += 1;
    };
    let external_destination =
        |text: &str, port: i64| json!([{"name": "main", "external": {"address": text, "port": port}}]);
    let pod_destination = |text: &str| json!([{"name": "main", "pod": {"name": "ids", "interfaceName": text}}]);
    for &text in EDGE_TEXTS {
        check("/spec", "duration", &json!(text));
        check("/spec/targets", "interface", &json!(text));
        check("/spec/destinations/0", "name", &json!(text));
        check("/spec/destinations/0/node", "interfaceName", &json!(text));
        check("/spec", "destinations", &pod_destination(text));
        check("/spec", "destinations", &external_destination(text, 4789));
        check("/spec/filter", "expression", &json!(text));
        check("/spec/filter/include/0", "cidrs", &json!([text]));
        check("/spec", "limit", &json!({"bitsPerSecond": text}));
        check("/spec", "limit", &json!({"packetsPerSecond": text, "bitsPerSecond": "1M"}));
        check("/spec", "limit", &json!({"bytesPerFlow": text}));
    }
    for &number in EDGE_NUMBERS {
        check("/spec/targets", "maxPods", &json!(number));
        check("/spec", "vxlan", &json!({"vni": number}));
        check("/spec", "sample", &json!({"oneInFlows": number}));
        check("/spec", "limit", &json!({"bitsPerSecond": number}));
        check("/spec", "limit", &json!({"bytesPerFlow": number}));
        check("/spec", "truncate", &json!({"headersOnly": true, "exemptBytes": number}));
        check("/spec/truncate", "bytes", &json!(number));
        check("/spec/filter/include/0/ports/0", "port", &json!(number));
        check("/spec/filter/include/0/ports/0", "endPort", &json!(number));
        check("/spec", "destinations", &external_destination("192.0.2.1", number));
    }
    assert!(decoded > 100, "the rules take some of them: {decoded}");
}

#[test]
fn a_selector_keeps_what_it_does_not_know() {
    let spec: podtap_api::PodTapSpec = serde_json::from_value(json!({
        "targets": {"podSelector": {"app": "web"}}, "destinations": [{"node": {"name": "n1", "interfaceName": ""}}],
        "filter": {"expression": "tcp"}, "oversize": "Truncate", "duration": "1h",
    }))
    .expect("a spec");
    let selector = spec.targets.pod_selector.expect("a selector");
    assert_eq!(selector.unknown.keys().collect::<Vec<_>>(), ["app"]);
    assert_eq!(spec.mirror.options.expression(), Some("tcp"));
    assert_eq!(
        (
            spec.mirror.destinations[0].name.as_str(),
            &spec.mirror.destinations[0].node.as_ref().expect("a node").interface_name
        ),
        ("main", &None)
    );
    let known: podtap_api::ObjectSelector =
        serde_json::from_value(json!({"matchLabels": {"app": "web"}})).expect("a selector");
    assert!(known.unknown.is_empty() && known.selector.match_labels.is_some());
}

/// Messages with which the schema refuses a `ClusterPodTap` with these targets and destinations.
fn cluster_refusals(targets: &Value, destinations: &Value) -> Vec<String> {
    let spec = json!({"targets": targets, "direction": "Both", "suspend": false, "destinations": destinations});
    let (kind, metadata) = ("ClusterPodTap", json!({"name": "all"}));
    let tap = json!({"apiVersion": "podtap.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec});
    let refusals = refusals(kind, &tap);
    let decoded = serde_json::from_value::<podtap_api::ClusterPodTapSpec>(tap["spec"].clone());
    assert!(!refusals.is_empty() || decoded.is_ok(), "the rules take {tap}, but {:?}", decoded.err());
    refusals
}

#[test]
fn a_cluster_tap_selects_namespaces_and_names_that_of_its_consumer() {
    let all = json!({"namespaceSelector": {}, "maxPods": 1000});
    let pod = json!([{"name": "main", "pod": {"namespace": "monitoring", "name": "ids"}}]);
    for destinations in
        [&pod, &json!([{"name": "main", "collector": {}}]), &json!([{"name": "main", "node": {"name": "n1"}}])]
    {
        assert_eq!(cluster_refusals(&all, destinations), [""; 0]);
    }
    let narrow = json!({
        "namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]},
        "podSelector": {"matchLabels": {"app": "web"}}, "nodeSelector": {"matchLabels": {"zone": "a"}},
        "interface": "net1", "maxPods": 10000,
    });
    assert_eq!(cluster_refusals(&narrow, &pod), [""; 0]);
    let own = json!([{"name": "main", "pod": {"name": "ids"}}]);
    let messages = cluster_refusals(&all, &own);
    assert!(messages.iter().any(|m| m.contains("set pod.namespace in each destination")), "{messages:?}");
    refused("/spec/destinations/0", pod[0].clone(), "leave out pod.namespace of its destinations");
    let messages = cluster_refusals(&json!({"namespaceSelector": {}, "maxPods": 10001}), &pod);
    assert!(messages.iter().any(|m| m.contains("between 1 and 10000")), "{messages:?}");
    // Every namespace is never selected by leaving a field out: the schema requires it.
    let mut definitions = definitions().into_iter();
    let (_, definition) =
        definitions.find(|(_, definition)| definition.spec.names.kind == "ClusterPodTap").expect("it is one");
    let schema = serde_json::to_value(&definition.spec.versions[0].schema).expect("a schema is JSON");
    let targets = &schema["openAPIV3Schema"]["properties"]["spec"]["properties"]["targets"];
    assert_eq!(targets["required"], json!(["namespaceSelector"]));
}
