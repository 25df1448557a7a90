use podtap_model::Count;
use serde_json::json;

use super::{
    metrics::{Counters, Received, Receiver, Sent, TapKey, Target},
    nodes::Reading,
    *,
};

/// A tap with two destinations, of which one is outside of the cluster.
pub fn tap(name: &str) -> Tap {
    let tap = json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"targets": {"podSelector": {}}, "destinations": [{"node": {"name": "n2"}}]},
        "status": {"matchedPods": 2, "tappedPods": 1, "destination": "node/n2:mirror, 192.0.2.1", "destinations": [
            {"name": "ids", "node": "n2", "interfaceName": "mirror", "vni": 5001, "ready": true},
            {"name": "out", "address": "192.0.2.1", "vni": 5001 + 1, "ready": true},
        ]},
    });
    Tap::Namespaced(serde_json::from_value(tap).expect("a tap"))
}

fn key(name: &str) -> TapKey {
    TapKey { namespace: "shop".to_owned(), name: name.to_owned() }
}

/// What a node has counted after `rounds` seconds of 1000 bytes in 10 frames in, twice that out, and of 90 frames that arrived and 10
/// that did not.
fn counters(rounds: u64) -> Counters {
    let target = |tap: &str| Target {
        tap: key(tap),
        namespace: "shop".to_owned(),
        pod: "web-0".to_owned(),
        interface: "eth0".to_owned(),
    };
    let count = |times| Count { frames: 10 * rounds * times, bytes: 1000 * rounds * times };
    let sent = Sent { ingress: count(1), egress: count(2), failed: rounds, truncated: 2 * rounds, limited: 3 * rounds };
    let received = Received { frames: 90 * rounds, lost: 10 * rounds };
    Counters {
        sent: [(target("web-0"), sent), (target("other"), sent)].into(),
        received: [
            (Receiver { tap: key("web-0"), vni: 5001 }, received),
            (Receiver { tap: key("other"), vni: 5001 }, received),
        ]
        .into(),
    }
}

/// A history of readings: of these counters, this long ago.
fn read(now: Instant, readings: &[(u64, Counters)]) -> History {
    let mut history = History::default();
    for (ago, counters) in readings {
        history.add(Reading { at: now - Duration::from_secs(*ago), counters: counters.clone() });
    }
    history
}

/// Readings of two seconds, the last of which is this one.
pub fn history(now: Instant) -> History {
    read(now, &[(2, counters(1)), (0, counters(3))])
}

#[test]
fn taps_have_rates_totals_and_losses() {
    let history = history(Instant::now());
    let view = View::of_taps(&[tap("web-0"), tap("idle")], true, &[("n1", &history), ("n2", &history)]);
    let rows: Vec<Vec<String>> =
        view.text().lines().map(|line| line.split("   ").map(|cell| cell.trim().to_owned()).collect()).collect();
    let heading = ["NAME", "PODS", "IN", "OUT", "FRAMES", "LOST", "LOSS", "FAILED", "TRUNCATED", "LIMITED", "TO"];
    assert_eq!(rows[0].iter().filter(|cell| !cell.is_empty()).collect::<Vec<_>>(), heading);
    let cells: Vec<_> = rows[1].iter().filter(|cell| !cell.is_empty()).map(String::as_str).collect();
    let expected = ["shop/web-0", "1/2", "16k", "32k", "180", "60", "10.0%", "6", "12", "18"];
    assert_eq!((&cells[..10], cells[10]), (&expected[..], "node/n2:mirror, 192.0.2.1"));
    let documents = view.documents();
    let document = json!({
        "kind": "PodTap", "namespace": "shop", "name": "web-0", "tappedPods": 1, "matchedPods": 2,
        "ingressBitsPerSecond": 16_000, "egressBitsPerSecond": 32_000, "framesPerSecond": 60, "frames": 180, "bytes": 18_000,
        "failed": 6, "truncated": 12, "limited": 18, "received": 540, "lost": 60, "lostPerMillion": 100_000,
        "destination": "node/n2:mirror, 192.0.2.1",
    });
    assert_eq!(documents[0], document);
    assert_eq!(
        (&documents[1]["frames"], documents[1].get("lost"), documents[1].get("framesPerSecond")),
        (&json!(0), None, None)
    );
}

#[test]
fn a_tap_has_its_targets_and_its_destinations() {
    let history = history(Instant::now());
    let view = View::of_tap(&tap("web-0"), &[("n1", &history)]);
    assert_eq!(
        view.text(),
        "POD     INTERFACE   NODE   IN     OUT   FRAMES   FAILED   TRUNCATED   LIMITED\n\
         web-0   eth0        n1     8.0k   16k   90       3        6           9\n\
         \n\
         DESTINATION   TO               RECEIVED   LOST   LOSS\n\
         ids           node/n2:mirror   270        30     10.0%\n\
         out           192.0.2.1\n",
        "nothing tells what arrives outside of the cluster"
    );
}

#[test]
fn the_first_reading_has_totals_and_no_rates() {
    let history = read(Instant::now(), &[(0, counters(1))]);
    let view = View::of_taps(&[tap("web-0")], false, &[("n1", &history)]);
    let document = &view.documents()[0];
    assert_eq!((&document["frames"], document.get("framesPerSecond")), (&json!(30), None));
    assert_eq!(document["lostPerMillion"], 100_000);
}

/// As when an upgrade changes the layout of the maps.
#[test]
fn counters_that_start_again_count_from_zero() {
    let history = read(Instant::now(), &[(20, counters(100)), (1, counters(100)), (0, counters(1))]);
    let document = &View::of_taps(&[tap("web-0")], false, &[("n1", &history)]).documents()[0];
    assert_eq!((&document["framesPerSecond"], &document["lostPerMillion"]), (&json!(30), &json!(100_000)));
}

#[test]
fn losses_are_those_of_ten_seconds() {
    let with_losses = |rounds: u64, lost: u64| {
        let mut counters = counters(rounds);
        counters.received.values_mut().for_each(|received| received.lost = lost);
        counters
    };
    let lost = |readings: &[(u64, Counters)]| {
        let view = View::of_taps(&[tap("web-0")], false, &[("n1", &read(Instant::now(), readings))]);
        view.documents()[0]["lostPerMillion"].as_u64().expect("frames were sent")
    };
    let readings = [
        (16, with_losses(10, 900)),
        (12, with_losses(10, 900)),
        (10, with_losses(10, 900)),
        (8, with_losses(10, 950)),
        (0, with_losses(20, 1000)),
    ];
    assert_eq!(lost(&readings), 100_000, "100 of 1000 since the last reading that is as old");
    assert_eq!(lost(&readings[3..]), 357_142, "before, all that were lost: 1000 of 2800");
}

#[test]
fn rows_are_sorted_by_rate_or_loss_and_then_by_name() {
    let now = Instant::now();
    let mut history = history(now);
    let latest = &mut history.latest.as_mut().expect("a reading").counters;
    for (target, sent) in &mut latest.sent {
        if target.tap == key("other") {
            sent.egress.bytes *= 2;
        }
    }
    for (receiver, received) in &mut latest.received {
        if receiver.tap == key("web-0") {
            received.lost += 1;
        }
    }
    let mut view = View::of_taps(&["idle-b", "idle-a", "web-0", "other"].map(tap), false, &[("n1", &history)]);
    for (order, expected) in
        [(Order::Rate, ["other", "web-0", "idle-a", "idle-b"]), (Order::Loss, ["web-0", "other", "idle-a", "idle-b"])]
    {
        view.sort(order);
        let names: Vec<_> = view.documents().iter().map(|document| document["name"].clone()).collect();
        assert_eq!(names, expected, "{order:?}");
    }
}
