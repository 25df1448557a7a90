//! `suspend`, `resume` and `delete` against an API server that records its requests.

use super::*;

#[test]
fn all_taps_of_the_cluster_are_suspended_by_one_command() {
    let all = |may_read_cluster_taps: bool| {
        Server::new(move |request| {
            let suspended = tap("False", "Suspended", &json!({"tappedPods": 0}));
            let cluster_tap = json!({
                "metadata": {"name": "all", "uid": "c"},
                "spec": {"targets": {"namespaceSelector": {}}, "destinations": [{"collector": {}}]},
            });
            match (request.method.as_str(), request.target.split('?').next().unwrap_or_default()) {
                ("GET", "/apis/podtap.dev/v1alpha1/podtaps") => list(&[suspended]),
                ("GET", "/apis/podtap.dev/v1alpha1/clusterpodtaps") if may_read_cluster_taps => list(&[cluster_tap]),
                ("PATCH", path) if path.contains("/clusterpodtaps/") => Answer::Object(200, cluster_tap),
                ("PATCH", _) => Answer::Object(200, suspended),
                _ => error(403, "", "you may not"),
            }
        })
    };
    let words = ["suspend", "--all", "-A", "-y", "--wait", "0"];
    let server = all(true);
    let output = server.run(&words);
    let both = "podtap.podtap.dev/web-0 suspended\nclusterpodtap.podtap.dev/all suspended\n";
    assert_eq!((code(&output), stdout(&output).as_str(), stderr(&output).as_str()), (0, both, ""));
    let patches: Vec<_> = server.requests().into_iter().filter(|request| request.method == "PATCH").collect();
    assert_eq!(patches.len(), 2);
    for (patch, uid) in patches.iter().zip(["t", "c"]) {
        assert_eq!(
            patch.body,
            json!({"metadata": {"uid": uid}, "spec": {"suspend": true}}),
            "not another one of its name"
        );
    }
    // What fails for one is done for the others.
    let server = Server::new(|request| match (request.method.as_str(), request.target.contains("/clusterpodtaps")) {
        ("GET", true) => list(&[]),
        ("GET", false) => list(&[tap("True", "AsExpected", &json!({})), named("other")]),
        ("PATCH", _) if request.target.contains("/web-0") => error(403, "web-0", "you may not patch web-0"),
        _ => Answer::Object(200, named("other")),
    });
    let output = server.run(&words);
    assert_eq!((code(&output), stdout(&output).as_str()), (5, "podtap.podtap.dev/other suspended\n"));
    assert!(stderr(&output).contains("you may not patch web-0"), "{}", stderr(&output));
    let output = all(false).run(&words);
    assert_eq!((code(&output), stdout(&output).as_str()), (3, "podtap.podtap.dev/web-0 suspended\n"));
    assert!(stderr(&output).contains("ClusterPodTap do not change"), "{}", stderr(&output));
}

#[test]
fn a_tap_that_has_expired_is_suspended_at_once() {
    let server = Server::new(|request| match request.method.as_str() {
        _ if request.is_watch() => Answer::Silence,
        "GET" if request.target.contains("fieldSelector") => {
            list(&[tap("False", "Expired", &json!({"tappedPods": 0}))])
        }
        "GET" if request.target.ends_with("/typo") => error(404, "typo", "podtaps \"typo\" not found"),
        _ => Answer::Object(200, tap("False", "Expired", &json!({"tappedPods": 0}))),
    });
    let output = server.run(&["suspend", "typo", "web-0", "--wait", "20s"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (4, "podtap.podtap.dev/web-0 suspended\n"));
    assert!(stderr(&output).contains("\"typo\" not found"), "{}", stderr(&output));
}

#[test]
fn a_deletion_says_on_how_many_nodes() {
    let sender = json!({"tap": "t", "pod": {"namespace": "shop", "name": "web-0", "uid": "p"}});
    let node = |name: &str, has_sender: bool| json!({"metadata": {"name": name}, "spec": {"senders": if has_sender { json!([sender]) } else { json!([]) }}});
    let with = [node("n1", true), node("n2", false)];
    let deleted = std::sync::atomic::AtomicBool::new(false);
    let server = Server::new(move |request| {
        let is_deleted = deleted.load(std::sync::atomic::Ordering::Relaxed);
        match (request.method.as_str(), request.target.split('?').next().unwrap_or_default()) {
            _ if request.is_watch() => Answer::Silence,
            ("DELETE", _) => {
                deleted.store(true, std::sync::atomic::Ordering::Relaxed);
                Answer::Object(200, tap("True", "AsExpected", &json!({})))
            }
            ("GET", "/apis/podtap.dev/v1alpha1/nodetaps") => list(if is_deleted { &[] } else { &with }),
            ("GET", TAPS) => list(&[]),
            ("GET", path) if path.ends_with("/web-0") => Answer::Object(200, tap("True", "AsExpected", &json!({}))),
            _ => error(403, "", "you may not"),
        }
    });
    let output = server.run(&["delete", "web-0"]);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (0, "podtap.podtap.dev/web-0 deleted, removed on 1 node\n"),
        "{}",
        stderr(&output)
    );
    let delete = server.requests().into_iter().find(|request| request.method == "DELETE").expect("a deletion");
    assert_eq!(delete.body["preconditions"]["uid"], "t", "not another one of the same name");
}
