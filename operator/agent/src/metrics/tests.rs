use serde_json::json;
use tap_wire::{DirectionCounters, SenderCounters};
use tokio::{net::TcpListener, task::yield_now};

use super::*;
use crate::{counters, order::RawNodeTap};
use podtap_runtime::http::Page as _;

fn order() -> Order {
    let sender = |number: u32| {
        json!({
            "tap": {"namespace": "shop", "name": format!("tap-{number}"), "uid": format!("t{number}")},
            "pod": {"namespace": "shop", "name": "web-0", "uid": "p"},
            "direction": "Both", "destinations": [{"address": "192.0.2.1", "port": 4789, "vni": 7}],
        })
    };
    let object = json!({"metadata": {"name": "n1", "generation": 1}, "spec": {"senders": [sender(1), sender(2)]}});
    Order::new(&serde_json::from_value::<RawNodeTap>(object).expect("a NodeTap"))
}

fn count(frames: u64) -> Count {
    Count { frames, bytes: frames * 100 }
}

fn with_programs(tap: &str) -> SenderCounters {
    let direction = |first: u64| DirectionCounters {
        mirrored: count(first),
        filtered: Some(count(first + 1)),
        sampled_out: Some(count(first + 2)),
        over_limit: Some(count(first + 3)),
        deduplicated: Some(count(u64::MAX / 100)),
        failed: 2,
    };
    SenderCounters {
        tap: tap.into(),
        pod: "p".into(),
        interface: "eth0".into(),
        ebpf: true,
        ingress: Some(direction(10)),
        egress: Some(direction(20)),
        truncated: Some(count(5)),
        oversized: Some(count(6)),
    }
}

fn shown(senders: Vec<SenderCounters>) -> String {
    http::text(&registry(&Counters { request: 1, senders }, &order())).expect("it can be written")
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
    let text = shown(vec![with_programs("t1"), with_programs("t2")]);
    for number in [1, 2] {
        let of = |direction: &str, outcome: &str| {
            value(&text, "frames", number, &format!(",direction=\"{direction}\",outcome=\"{outcome}\""))
        };
        let all = ["mirrored", "filtered", "sampledOut", "overLimit"];
        assert_eq!(all.map(|outcome| of("ingress", outcome)), [Some(10), Some(11), Some(12), Some(13)], "{text}");
        assert_eq!(all.map(|outcome| of("egress", outcome)), [Some(20), Some(21), Some(22), Some(23)], "{text}");
        assert_eq!(of("egress", "deduplicated"), Some(u64::MAX / 100), "all 64 bits");
        let bytes = value(&text, "bytes", number, ",direction=\"egress\",outcome=\"filtered\"");
        assert_eq!(bytes, Some(2100), "{text}");
        assert_eq!(value(&text, "failed_copies", number, ",direction=\"ingress\""), Some(2), "{text}");
        let copies = ["truncated_copies", "truncated_bytes", "oversized_frames"];
        assert_eq!(copies.map(|name| value(&text, name, number, "")), [Some(5), Some(500), Some(6)], "{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn what_is_not_counted_is_not_shown() {
    let ingress = DirectionCounters { mirrored: count(3), ..DirectionCounters::default() };
    let bare = SenderCounters {
        ebpf: false,
        ingress: Some(ingress),
        egress: None,
        truncated: None,
        oversized: None,
        ..with_programs("t1")
    };
    let text = shown(vec![bare]);
    let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(series.len(), 3, "{text}");
    assert_eq!(value(&text, "frames", 1, ",direction=\"ingress\",outcome=\"mirrored\""), Some(3), "{text}");
    assert_eq!(value(&text, "failed_copies", 1, ",direction=\"ingress\""), Some(0), "{text}");
}

#[test]
fn a_sender_that_is_being_removed_is_left_out() {
    let text = shown(vec![with_programs("t3"), with_programs("t1")]);
    assert!(text.contains("tap-1") && !text.contains("t3"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn nothing_old_is_shown_when_there_is_no_answer() {
    let (desk, queue) = counters::desk();
    let orders = watch::Sender::new(None);
    let page = Page { desk, orders: orders.subscribe() };
    let sentence = page.text().await.expect_err("nothing is known");
    assert!(sentence.contains("API server"), "{sentence}");
    orders.send_replace(Some(Arc::new(order())));

    let (asked, mut requests) = watch::channel(0);
    let answers = watch::Sender::new(None);
    tokio::spawn(counters::run(queue, asked, answers.subscribe()));
    let scrape = tokio::spawn({
        let page = page.clone();
        async move { page.text().await }
    });
    requests.changed().await.expect("it runs");
    let request = *requests.borrow_and_update();
    answers.send_replace(Some(Arc::new(Counters { request, senders: vec![with_programs("t1")] })));
    assert!(scrape.await.expect("it ends").expect("an answer").contains("tap-1"));
    let sentence = page.text().await.expect_err("the tap-helper is silent");
    assert!(sentence.contains("tap-helper"), "{sentence}");
}

#[tokio::test]
async fn a_taken_port_is_waited_for() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    let page = Page { desk: counters::desk().0, orders: watch::Sender::new(None).subscribe() };
    let serving = tokio::spawn(serve(Some(address), Health::new(Duration::MAX), page));
    yield_now().await;
    drop(taken);
    let connected = async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), connected).await.expect("it is served then");
    assert!(!serving.is_finished());
    serving.abort();
}
