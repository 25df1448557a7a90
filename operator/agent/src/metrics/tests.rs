use podtap_model::{Count, DesiredUpdate, DirectionCounters, NodeStatus, ReceiverCounters, SenderCounters};
use podtap_runtime::clock::ServerClock;
use serde_json::json;
use tokio::{net::TcpListener, task::yield_now};

use super::*;

fn update() -> DesiredUpdate {
    let options = json!({"filter": {}, "sample": {}, "limit": {"bytesPerFlow": 1}, "deduplicate": {}, "truncate": {}});
    let tap = |number: u32| json!({"namespace": "shop", "name": format!("tap-{number}"), "uid": format!("t{number}"), "options": options});
    let sender = |number: u32| {
        let pod = json!({"namespace": "shop", "name": "web-0", "uid": "p"});
        json!({"tap": format!("t{number}"), "pod": pod})
    };
    let spec = json!({"taps": [tap(1), tap(2)], "senders": [sender(1), sender(2)]});
    DesiredUpdate { uid: Some("n".into()), generation: 1, now: None, spec }
}

fn count(frames: u64) -> Count {
    Count { frames, bytes: frames * 100 }
}

fn with_programs(tap: &str) -> SenderCounters {
    let direction = |first: u64| DirectionCounters {
        mirrored: count(first),
        filtered: count(first + 1),
        sampled_out: count(first + 2),
        rate_limited: count(first + 3),
        deduplicated: count(u64::MAX / 100),
        expired: count(first + 4),
        cut_off: count(first + 5),
        truncated: count(first + 6),
        oversized: count(first + 7),
        failed: 2,
    };
    SenderCounters {
        tap_uid: tap.into(),
        pod_uid: "p".into(),
        interface: "eth0".into(),
        ingress: Some(direction(10)),
        egress: Some(direction(20)),
        forged: count(7),
    }
}

fn metrics(senders: Vec<SenderCounters>) -> String {
    http::text(&registry(&Counters { request: 1, senders, ..Counters::default() }, &update().spec))
        .expect("it can be encoded")
}

/// The value of a series of tap `number`.
fn value(text: &str, name: &str, number: u32, labels: &str) -> Option<u64> {
    let start = format!(
        "podtap_{name}_total{{tap_namespace=\"shop\",tap_name=\"tap-{number}\",pod_namespace=\"shop\",\
         pod_name=\"web-0\",interface=\"eth0\"{labels}}} "
    );
    text.lines().find_map(|line| line.strip_prefix(&start)).map(|value| value.parse().expect("a number"))
}

#[test]
fn every_counter_has_the_names_of_tap_and_pod() {
    let text = metrics(vec![with_programs("t1"), with_programs("t2")]);
    for number in [1, 2] {
        let of = |direction: &str, outcome: &str| {
            value(&text, "frames", number, &format!(",direction=\"{direction}\",outcome=\"{outcome}\""))
        };
        let all = ["mirrored", "filtered", "sampled_out", "rate_limited", "expired", "cut_off"];
        for (direction, first) in [("ingress", 10), ("egress", 20)] {
            let counts = all.map(|outcome| of(direction, outcome));
            assert_eq!(counts, [0, 1, 2, 3, 4, 5].map(|number| Some(first + number)), "{text}");
        }
        assert_eq!(of("egress", "deduplicated"), Some(u64::MAX / 100), "all 64 bits");
        let bytes = value(&text, "frame_bytes", number, ",direction=\"egress\",outcome=\"filtered\"");
        assert_eq!(bytes, Some(2100), "{text}");
        for (direction, first) in [("ingress", 10), ("egress", 20)] {
            let labels = format!(",direction=\"{direction}\"");
            let of_direction = ["truncated_frames", "truncated_bytes", "oversized_frames", "mirror_failures"];
            let values = of_direction.map(|name| value(&text, name, number, &labels));
            assert_eq!(values, [first + 6, (first + 6) * 100, first + 7, 2].map(Some), "{text}");
        }
        assert_eq!(value(&text, "forged_frames", number, ""), Some(7), "{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn what_a_tap_cannot_count_has_no_series() {
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    let idle = SenderCounters {
        ingress: Some(DirectionCounters::default()),
        egress: Some(DirectionCounters::default()),
        ..with_programs("t1")
    };
    assert_eq!(series(&metrics(vec![idle.clone()])), 37, "with every option");

    let mut without_options = update();
    without_options.spec["taps"][0]["options"] = json!(null);
    let text = |sender: SenderCounters| {
        let counters = Counters { request: 1, senders: vec![sender], ..Counters::default() };
        http::text(&registry(&counters, &without_options.spec)).expect("it can be encoded")
    };
    assert_eq!(series(&text(idle)), 13, "mirrored, expired, failed, oversized and forged frames");
    assert_eq!(series(&text(with_programs("t1"))), 37, "what was counted before the tap was changed is not lost");
}

#[test]
fn families_have_their_unit() {
    let text = metrics(vec![with_programs("t1")]);
    for family in ["podtap_frame_bytes", "podtap_truncated_bytes"] {
        assert!(text.contains(&format!("# UNIT {family} bytes\n")), "{text}");
    }
    for line in text.lines().filter(|line| line.starts_with("# HELP")) {
        assert!(line.starts_with("# HELP podtap_") && line.ends_with('.'), "{line}");
    }
}

#[test]
fn a_direction_that_is_not_mirrored_has_no_series() {
    let text = metrics(vec![SenderCounters { egress: None, ..with_programs("t1") }]);
    assert!(text.contains("direction=\"ingress\"") && !text.contains("direction=\"egress\""), "{text}");
}

#[test]
fn a_sender_that_is_being_removed_has_no_series() {
    let text = metrics(vec![with_programs("t3"), with_programs("t1")]);
    assert!(text.contains("tap-1") && !text.contains("t3"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn old_counters_are_not_served_without_an_answer() {
    let (client, mut channels) = HelperClient::without_connection(ServerClock::default(), Health::new(Duration::MAX));
    let source = Source(client.into());
    let error = source.text().await.expect_err("no NodeTap is known").to_string();
    assert!(error.contains("API server"), "{error}");
    source.0.apply(update());

    let scrape = tokio::spawn({
        let source = source.clone();
        async move { source.text().await }
    });
    channels.requests.changed().await.expect("the client exists");
    let request = *channels.requests.borrow_and_update();
    channels.counters.send_replace(Some(Arc::new(Counters {
        request,
        senders: vec![with_programs("t1")],
        ..Counters::default()
    })));
    assert!(scrape.await.expect("it ends").expect("an answer").contains("tap-1"));
    let error = source.text().await.expect_err("the tap-helper does not answer").to_string();
    assert!(error.contains("tap-helper"), "{error}");
}

/// The names in an entry that only the tap-helper of another version can decode are names, too.
#[test]
fn names_are_read_from_entries_that_cannot_be_decoded() {
    let mut newer = update();
    newer.spec["taps"][0]["colour"] = json!("red");
    newer.spec["senders"][0]["pod"]["colour"] = json!("red");
    newer.spec["senders"][1] = json!("?");
    let counters =
        Counters { request: 1, senders: vec![with_programs("t1"), with_programs("t2")], ..Counters::default() };
    let text = http::text(&registry(&counters, &newer.spec)).expect("it can be encoded");
    assert!(text.contains("tap-1") && !text.contains("tap-2"), "{text}");
}

#[test]
fn restarts_of_the_tap_helper_are_those_of_its_report() {
    let status = NodeStatus { helper_restarts: 3, ..NodeStatus::default() };
    for (report, expected) in [(None, 0), (Some(Report { uid: None, status }), 3)] {
        let mut registry = Registry::with_prefix("podtap");
        register_restarts(&mut registry, report.as_ref());
        let text = http::text(&registry).expect("it can be encoded");
        assert!(text.contains(&format!("podtap_tap_helper_restarts_total {expected}\n")), "{text}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_retried() {
    let other = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = other.local_addr().expect("it is bound");
    let source = Source(HelperClient::without_connection(ServerClock::default(), Health::new(Duration::MAX)).0.into());
    let serving = tokio::spawn(serve(Some(address), Health::new(Duration::MAX), source));
    yield_now().await;
    drop(other);
    let connected = async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), connected).await.expect("it is served eventually");
    assert!(!serving.is_finished());
    serving.abort();
}

#[test]
fn rejected_packets_are_counted_per_node() {
    let counters = Counters { request: 1, senders: vec![], rejected: Some(count(7)), ..Counters::default() };
    let text = http::text(&registry(&counters, &update().spec)).expect("it can be encoded");
    let has = |line: &str| text.lines().any(|found| found == line);
    assert!(
        has("podtap_receiver_rejected_packets_total 7") && has("podtap_receiver_rejected_bytes_total 700"),
        "{text}"
    );
    assert!(!metrics(vec![]).contains("rejected"), "a node without receivers");
}

#[test]
fn receivers_have_the_name_of_their_tap() {
    let receiver = |tap: &str| ReceiverCounters { tap_uid: tap.to_owned(), vni: 5000, frames: 90, lost_frames: 10 };
    let counters = Counters { receivers: vec![receiver("t1"), receiver("gone")], ..Counters::default() };
    let spec = json!({ "receivers": [{ "tap": { "namespace": "shop", "name": "web", "uid": "t1" }, "vni": 5000 }] });
    let text = http::text(&registry(&counters, &spec)).expect("it can be encoded");
    let series: Vec<&str> = text.lines().filter(|line| line.contains("vni=")).collect();
    let labels = r#"{tap_namespace="shop",tap_name="web",vni="5000"}"#;
    let expected =
        [format!("podtap_receiver_frames_total{labels} 90"), format!("podtap_receiver_lost_frames_total{labels} 10")];
    assert_eq!(series, expected);
}
