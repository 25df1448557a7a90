use std::{
    future::ready,
    sync::{Arc, Mutex},
};

use http::StatusCode;
use podtap_runtime::fake_client;

use super::*;

fn report(uid: Option<&str>, generation: i64) -> Report {
    Report { uid: uid.map(str::to_owned), status: status(generation) }
}

fn status(generation: i64) -> NodeStatus {
    let features = [("ebpf".to_owned(), false)].into();
    NodeStatus { observed_generation: Some(generation), features, ..NodeStatus::default() }
}

fn last(uid: &str, resource_version: &str, status: Option<NodeStatus>) -> LastStatus {
    LastStatus { uid: uid.into(), resource_version: resource_version.into(), status }
}

/// UID of the object and status that is due.
fn due(
    report: Option<&Report>,
    last_status: Option<&LastStatus>,
    written: Option<&LastStatus>,
) -> Option<(String, NodeStatus)> {
    super::due(report, last_status, written).map(|due| (due.uid, due.status))
}

#[test]
fn nothing_is_due_before_report_and_object_are_known() {
    assert_eq!(due(None, Some(&last("a", "1", None)), None), None);
    assert_eq!(due(Some(&report(Some("a"), 1)), None, None), None);
}

#[test]
fn a_status_that_differs_is_due() {
    let report = report(Some("a"), 2);
    assert_eq!(due(Some(&report), Some(&last("a", "5", None)), None), Some(("a".into(), status(2))));
    assert_eq!(due(Some(&report), Some(&last("a", "5", Some(status(1)))), None), Some(("a".into(), status(2))));
}

#[test]
fn a_status_that_is_already_written_is_not_due() {
    let report = report(Some("a"), 2);
    assert_eq!(due(Some(&report), Some(&last("a", "5", Some(status(2)))), None), None);
    let written = last("a", "7", Some(status(2)));
    assert_eq!(due(Some(&report), Some(&last("a", "5", Some(status(1)))), Some(&written)), None, "the watch lags");
}

#[test]
fn a_status_that_someone_else_wrote_is_corrected() {
    let written = last("a", "7", Some(status(2)));
    let theirs = last("a", "10", Some(status(9)));
    assert_eq!(due(Some(&report(Some("a"), 2)), Some(&theirs), Some(&written)), Some(("a".into(), status(2))));
}

#[test]
fn resource_versions_are_compared_as_numbers() {
    let written = last("a", "10", Some(status(2)));
    assert_eq!(newest(&last("a", "9", None), Some(&written)), &written);
}

#[test]
fn a_report_about_another_object_is_not_due() {
    assert_eq!(due(Some(&report(Some("a"), 2)), Some(&last("b", "5", None)), None), None);
    assert_eq!(due(Some(&report(None, 0)), Some(&last("b", "5", None)), None), None);
    let written = last("a", "7", Some(status(2)));
    let due = due(Some(&report(Some("b"), 2)), Some(&last("b", "5", None)), Some(&written));
    assert_eq!(due, Some(("b".into(), status(2))));
}

#[test]
fn the_patch_is_the_status_unchanged() {
    let due = super::due(Some(&report(Some("a"), 2)), Some(&last("a", "5", None)), None).expect("it is due");
    assert_eq!(due.patch, json!({"metadata": {"uid": "a"}, "status": status(2)}));
}

/// A merge patch alone would keep them, and the status would differ forever.
#[test]
fn features_of_another_version_are_removed() {
    let mut old = status(2);
    old.features.insert("fit".to_owned(), true);
    let due = super::due(Some(&report(Some("a"), 2)), Some(&last("a", "5", Some(old))), None).expect("it is due");
    assert_eq!(due.patch["status"]["features"], json!({"ebpf": false, "fit": null}));
    let mut bare = report(Some("a"), 2);
    bare.status.features.clear();
    let due = super::due(Some(&bare), Some(&last("a", "5", Some(status(2)))), None).expect("it is due");
    assert_eq!(due.patch["status"].get("features"), Some(&Value::Null));
}

/// Likewise, what is empty is not in the patch by itself.
#[test]
fn what_is_empty_now_is_removed() {
    let mut old = status(2);
    (old.helper_restarts, old.source_addresses) = (1, vec!["192.0.2.1".parse().expect("an address")]);
    let due = super::due(Some(&report(Some("a"), 2)), Some(&last("a", "5", Some(old))), None).expect("it is due");
    let mut expected = json!(status(2));
    (expected["helperRestarts"], expected["sourceAddresses"]) = (Value::Null, Value::Null);
    assert_eq!(due.patch["status"], expected);
}

#[test]
fn a_burst_passes_and_a_flood_does_not() {
    let start = Instant::now();
    let mut pace = Pace::new(start);
    for _ in 0..BURST {
        assert_eq!(pace.next(start), start);
    }
    assert_eq!(pace.next(start), start + Duration::from_secs(1));
    assert_eq!(pace.next(start), start + Duration::from_secs(2));
    // An idle minute refills the bucket.
    let later = start + Duration::from_secs(60);
    assert_eq!(pace.next(later), later);
}

/// The publisher of the node n1, and the bodies of its requests.
struct Fixture {
    last_status: watch::Sender<Option<LastStatus>>,
    reports: watch::Sender<Option<Report>>,
    reachable: watch::Sender<Vec<IpAddr>>,
    requests: Arc<Mutex<Vec<Value>>>,
}

fn fixture() -> Fixture {
    let requests: Arc<Mutex<Vec<Value>>> = Arc::default();
    let sent = Arc::clone(&requests);
    let client = fake_client::client(move |method, path, body| {
        assert_eq!((method.as_str(), path.as_str()), ("PATCH", "/apis/podtap.dev/v1alpha1/nodetaps/n1/status"));
        sent.lock().expect("no panic before").push(body);
        ready((StatusCode::OK, json!({"metadata": {"name": "n1", "uid": "a", "resourceVersion": "9"}})))
    });
    let (last_status, last_statuses) = watch::channel(None);
    let (reports, received) = watch::channel(None);
    let (reachable, addresses) = watch::channel(Vec::new());
    tokio::spawn(async move { run(Api::all(client), "n1", last_statuses, received, addresses).await });
    Fixture { last_status, reports, reachable, requests }
}

impl Fixture {
    /// What is written within a minute. The time passes only when nothing is left to do.
    async fn written(&self) -> Vec<Value> {
        sleep(Duration::from_secs(60)).await;
        std::mem::take(&mut *self.requests.lock().expect("no panic before"))
    }
}

/// An agent that starts before its tap-helper, or is restarted with it, knows nothing of the node: the status of their predecessors stays,
/// whatever else changes.
#[tokio::test(start_paused = true)]
async fn without_a_report_nothing_is_written() {
    let fixture = fixture();
    let old = NodeStatus { active_senders: 3, helper_restarts: 1, ..status(1) };
    let address: IpAddr = "192.0.2.1".parse().expect("an address");
    let none: [Value; 0] = [];
    assert_eq!(fixture.written().await, none);
    for (version, known) in [("5", Some(old.clone())), ("6", None), ("7", Some(old.clone()))] {
        fixture.last_status.send_replace(Some(last("a", version, known)));
        assert_eq!(fixture.written().await, none, "{version}");
    }
    fixture.reachable.send_replace(vec![address]);
    assert_eq!(fixture.written().await, none);

    // The first report replaces the whole status, with what the agent has found out meanwhile.
    fixture.reports.send_replace(Some(report(Some("a"), 2)));
    let new = NodeStatus { reachable_addresses: vec![address], ..status(2) };
    let mut expected = json!(new);
    expected["helperRestarts"] = Value::Null;
    let [patch] = &fixture.written().await[..] else { panic!("one request") };
    assert_eq!(*patch, json!({"metadata": {"uid": "a"}, "status": expected}));
}
