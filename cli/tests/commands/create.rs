//! `create` against an API server that records its requests.

use super::*;

#[test]
fn a_tap_is_applied_and_reported_by_node() {
    let server = with_tap(tap("True", "AsExpected", &json!({})));
    let output = server.run(&CREATE);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (0, "podtap.podtap.dev/web-0 created\nn1: web-0 -> node/n2:mirror\n"),
        "{}",
        stderr(&output)
    );
    let patch = server.requests().into_iter().find(|request| request.method == "PATCH").expect("a write");
    assert_eq!(patch.headers["content-type"], "application/apply-patch+yaml");
    assert!(
        patch.target.contains("fieldManager=kubectl-podtap") && patch.target.contains("fieldValidation=Strict"),
        "{patch:?}"
    );
    assert_eq!(patch.body["metadata"]["annotations"], json!({"podtap.dev/requested-by": "alice"}));
    // With the defaults, which a tap that exists may not have.
    assert_eq!(
        patch.body["spec"],
        json!({"targets": {"podNames": ["web-0"], "maxPods": 32}, "direction": "Both",
            "destinations": [{"name": "main", "node": {"name": "n2", "interfaceName": "mirror"}}]})
    );
    // With -o, standard output has the object and nothing else.
    let output = server.run(&[&CREATE[..], &["-o", "json"]].concat());
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(document["metadata"]["name"] == "web-0" && stderr(&output).contains("n1: web-0"), "{document}");
}

#[test]
fn a_dry_run_of_the_client_asks_nothing() {
    let server = Server::new(|_| error(500, "", "nothing should be asked"));
    let output = server.run(&[&CREATE[..], &["--for", "5m", "--dry-run=client", "-o", "yaml"]].concat());
    let expected = "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata:\n  name: web-0\nspec:\n  destinations:\n  - node:\n      \
        interfaceName: mirror\n      name: n2\n  duration: 300s\n  targets:\n    podNames:\n    - web-0\n";
    assert_eq!((code(&output), stdout(&output).as_str()), (0, expected), "{}", stderr(&output));
    assert!(server.requests().is_empty());
}

#[test]
fn an_object_is_tapped_by_its_own_selector() {
    let selector = json!({"matchLabels": {"app": "web", "pod-template": "x"}});
    let answered = selector.clone();
    let server = Server::new(move |request| {
        assert_eq!(request.target, "/apis/apps/v1/namespaces/shop/deployments/web");
        let spec = json!({"selector": answered, "template": {}});
        Answer::Object(200, json!({"metadata": {"name": "web"}, "spec": spec}))
    });
    let output = server.run(&["create", "deploy/web", "--to", "collector", "--dry-run=client", "-o", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(document["spec"], json!({"targets": {"podSelector": selector}, "destinations": [{"collector": {}}]}));

    let server = Server::new(|_| Answer::Object(200, json!({"metadata": {"name": "web"}, "spec": {"selector": {}}})));
    let output = server.run(&["create", "svc/web", "--to", "collector", "--dry-run=client"]);
    assert!(code(&output) == 4 && stderr(&output).contains("has no selector"), "{}", stderr(&output));
}

#[test]
fn pods_that_are_refused_make_it_partly_done() {
    let server = with_tap(tap(
        "True",
        "AsExpected",
        &json!({"skipped": [{"reason": "HostNetwork", "count": 1, "pods": ["web-1"]}]}),
    ));
    let output = server.run(&CREATE);
    assert!(
        code(&output) == 3 && stdout(&output).contains("not tapped: 1 pod (web-1), HostNetwork. See https://"),
        "{output:?}"
    );
}

#[test]
fn what_is_refused_or_missing_says_why() {
    let server = with_tap(tap("False", "PolicyNotFound", &json!({})));
    let output = server.run(&CREATE);
    assert!(
        code(&output) == 4 && stderr(&output).contains("Ready (PolicyNotFound): why. See https://"),
        "{}",
        stderr(&output)
    );
    let server = Server::new(|_| error(404, "typo", "podtaps.podtap.dev \"typo\" not found"));
    let output = server.run(&["explain", "typo"]);
    assert!(code(&output) == 4 && stderr(&output).contains("\"typo\" not found"), "{}", stderr(&output));
    let server = Server::new(|_| error(422, "web-0", "spec.duration: Invalid value"));
    let output = server.run(&["suspend", "web-0"]);
    assert!(code(&output) == 4 && stderr(&output).contains("Invalid value"), "{}", stderr(&output));
}

#[test]
fn a_missing_right_is_named() {
    let message =
        "podtaps.podtap.dev is forbidden: User \"alice\" cannot list resource \"podtaps\" in API group \"podtap.dev\"";
    let server = Server::new(move |_| error(403, "", message));
    for words in [&["list"][..], &["delete", "web"], &["explain", "pod/web-0"], &CREATE] {
        let output = server.run(words);
        assert_eq!((code(&output), stdout(&output).as_str()), (5, ""), "{words:?}");
        assert!(
            stderr(&output).contains("cannot list resource \"podtaps\"") && stderr(&output).contains("who-may-tap"),
            "{words:?}"
        );
    }
}

#[test]
fn a_tap_that_is_not_ready_in_time_says_what_it_waits_for() {
    let server = with_tap(tap("False", "NoProbeFromNode", &json!({})));
    let output = server.run(&[&CREATE[..], &["--wait", "1s"]].concat());
    let text = stderr(&output);
    assert_eq!(code(&output), 124, "{text}");
    assert!(text.starts_with("waiting for Ready (NoProbeFromNode): why [0 s]\n"), "{text}");
    assert!(
        text.contains("PodTap shop/web-0 is not Ready after 1 s, and stays") && text.contains("#noprobefromnode"),
        "{text}"
    );
    assert_eq!(code(&server.run(&[&CREATE[..], &["--wait", "0"]].concat())), 0);
    // No pod is no matter of time.
    let server = with_tap(tap("False", "NoPodsMatch", &json!({})));
    assert_eq!(code(&server.run(&[&CREATE[..], &["--wait", "1s"]].concat())), 4);
}

#[test]
fn an_interrupted_watch_ends() {
    let server = Server::new(|request| {
        if request.is_watch() { Answer::Silence } else { Answer::Object(200, table(&[&["web", "True", ""]])) }
    });
    let mut child =
        server.command(&["list", "-w"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.requests().iter().any(Request::is_watch) {
        assert!(Instant::now() < deadline, "it watches");
        assert!(child.try_wait().expect("a child").is_none(), "it runs");
        thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((code(&output), stderr(&output).as_str()), (130, "interrupted\n"));
    assert!(stdout(&output).contains("web"));
}

#[test]
fn a_tap_that_exists_gets_what_is_requested_or_it_is_named() {
    let of_others = json!({"node": {"name": "n1"}, "name": "ids"});
    let exists = |changes: &Value| {
        let mut stored = tap("True", "AsExpected", &json!({}));
        stored["metadata"]["annotations"] = json!({"podtap.dev/requested-by": "bob"});
        for (field, value) in changes.as_object().into_iter().flatten() {
            stored["spec"][field] = value.clone();
        }
        let (before, sent) = (stored.clone(), of_others.clone());
        Server::new(move |request| {
            match (request.method.as_str(), request.target.split('?').next().unwrap_or_default()) {
                _ if request.is_watch() => Answer::Silence,
                ("PATCH", _) => {
                    // Items of lists do not conflict.
                    let mut stored = before.clone();
                    stored["spec"] = request.body["spec"].clone();
                    stored["spec"]["destinations"].as_array_mut().expect("a list").push(sent.clone());
                    Answer::Object(200, stored)
                }
                ("POST", _) => {
                    Answer::Object(201, json!({"metadata": {}, "status": {"userInfo": {"username": "alice"}}}))
                }
                ("GET", path) if path.ends_with("/podtaps/web-0") => Answer::Object(200, before.clone()),
                _ => error(403, "", "you may not"),
            }
        })
    };
    let server = exists(&json!({"direction": "Ingress"}));
    let output = server.run(&[&CREATE[..], &["-y"]].concat());
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(stderr(&output).contains("keeps values of another field manager in destinations:"), "{}", stderr(&output));
    let patch = server.requests().into_iter().find(|request| request.method == "PATCH").expect("a patch");
    assert_eq!((&patch.body["spec"]["direction"], &patch.body["metadata"]["uid"]), (&json!("Both"), &json!("t")));
    assert_eq!(patch.body["metadata"]["annotations"]["podtap.dev/requested-by"], "alice");
    assert!(patch.body["spec"].get("suspend").is_none(), "it would conflict with suspend: {}", patch.body);
    // Whose name was made from another target.
    let server = exists(&json!({"targets": {"podSelector": {"matchLabels": {"app": "web"}}}}));
    let output = server.run(&[&CREATE[..], &["-y"]].concat());
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("give the new tap a NAME"), "{}", stderr(&output));
    assert!(server.requests().iter().all(|request| request.method != "PATCH"));
}
