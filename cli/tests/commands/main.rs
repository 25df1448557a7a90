//! The program against an API server that records its requests: flags, exit codes, and what is printed where.

mod capture;
mod cleanup;
mod doctor;
mod events;
mod plan;
mod progress;
mod server;
mod support;
mod top;

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use server::{Answer, Request, Server};

const TAPS: &str = "/apis/podtap.dev/v1alpha1/namespaces/shop/podtaps";

fn code(output: &Output) -> i32 {
    output.status.code().expect("it exits")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn error(code: u16, name: &str, message: &str) -> Answer {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        _ => "Other",
    };
    let details = json!({"name": name, "group": "podtap.dev", "kind": "podtaps"});
    let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, "details": details});
    Answer::Object(code, status)
}

fn table(rows: &[&[&str]]) -> Value {
    let column = |name: &str, priority: i32| json!({"name": name, "type": "string", "priority": priority});
    let rows: Vec<_> = rows
        .iter()
        .map(|cells| json!({"cells": cells, "object": {"metadata": {"name": cells[0], "namespace": "shop"}}}))
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "7"},
        "columnDefinitions": [column("Name", 0), column("Ready", 0), column("Message", 1)], "rows": rows,
    })
}

/// A tap that the controller has seen, with the condition Ready.
fn tap(status: &str, reason: &str, more: &Value) -> Value {
    let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": "why", "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let mut tap = json!({
        "apiVersion": "podtap.dev/v1alpha1", "kind": "PodTap",
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "t", "generation": 1, "resourceVersion": "1"},
        "spec": {"targets": {"podNames": ["web-0"]}, "destinations": [{"node": {"name": "n2"}}]},
        "status": {"conditions": [condition], "destination": "node/n2:mirror", "matchedPods": 1, "tappedPods": 1},
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        tap["status"][field] = value.clone();
    }
    tap
}

fn named(name: &str) -> Value {
    let mut tap = tap("True", "AsExpected", &json!({}));
    tap["metadata"]["name"] = json!(name);
    tap
}

fn list(items: &[Value]) -> Answer {
    Answer::Object(200, json!({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}))
}

/// A cluster in which `create pod/web-0` makes this tap; the user may list pods, and nothing of the cluster.
fn with_tap(tap: Value) -> Server {
    let pod = json!({"metadata": {"name": "web-0", "namespace": "shop", "uid": "p"}, "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": "Running"}});
    Server::new(move |request| match (request.method.as_str(), request.target.split('?').next().unwrap_or_default()) {
        _ if request.is_watch() => Answer::Silence,
        ("GET", "/apis/podtap.dev/v1alpha1/namespaces/shop/podtaps/web-0") => {
            error(404, "web-0", "podtaps \"web-0\" not found")
        }
        ("PATCH", _) => {
            let mut stored = tap.clone();
            stored["spec"] = request.body["spec"].clone();
            Answer::Object(201, stored)
        }
        ("POST", _) => Answer::Object(201, json!({"metadata": {}, "status": {"userInfo": {"username": "alice"}}})),
        ("GET", TAPS) => list(std::slice::from_ref(&tap)),
        ("GET", "/api/v1/namespaces/shop/pods") => list(std::slice::from_ref(&pod)),
        _ => error(403, "", "you may not"),
    })
}

const CREATE: [&str; 4] = ["create", "web-0", "--to", "node/n2:mirror"];

#[test]
fn a_list_is_the_table_of_the_api_server() {
    let server = Server::new(|_| Answer::Object(200, table(&[&["web", "True", "fine"], &["db", "False", "why"]])));
    let output = server.run(&["list"]);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (0, "NAME   READY\nweb    True\ndb     False\n"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        stdout(&server.run(&["ls", "-o", "wide"])),
        "NAME   READY   MESSAGE\nweb    True    fine\ndb     False   why\n"
    );
    assert!(stdout(&server.run(&["list", "-A"])).starts_with("NAMESPACE   NAME   READY\nshop        web    True\n"));
    let requests = server.requests();
    assert!(requests[0].headers["accept"].contains("as=Table"), "{requests:?}");
    assert_eq!(requests[0].target, format!("{TAPS}?"));
    assert_eq!(requests[2].target, "/apis/podtap.dev/v1alpha1/podtaps?");
}

#[test]
fn an_empty_list_is_no_data() {
    let server = Server::new(|_| Answer::Object(200, table(&[])));
    let output = server.run(&["list", "-l", "app=web"]);
    assert_eq!(
        (code(&output), stdout(&output).as_str(), stderr(&output).as_str()),
        (0, "", "no PodTap in the namespace shop\n")
    );
    assert_eq!(stderr(&server.run(&["list", "-q"])), "");
    assert_eq!(server.requests()[0].target, format!("{TAPS}?&labelSelector=app%3Dweb"));
}

#[test]
fn every_flag_of_kubectl_counts() {
    let server = Server::new(|_| Answer::Object(200, table(&[&["web", "True", ""]])));
    let last = |words: &[&str]| -> Request {
        let output = server.run(words);
        assert_eq!(code(&output), 0, "{words:?}: {}", stderr(&output));
        server.requests().pop().expect("a request")
    };
    let plain = last(&["list"]);
    assert_eq!(plain.headers["authorization"], "Bearer token-of-main");
    assert_eq!(plain.headers.get("impersonate-user"), None);
    assert!(last(&["list", "-n", "db"]).target.contains("/namespaces/db/"));
    assert!(last(&["-n", "db", "list"]).target.contains("/namespaces/db/"));
    assert_eq!(last(&["list", "--user", "other"]).headers["authorization"], "Bearer token-of-other");
    assert_eq!(
        last(&["list", "--context", "other", "--cluster", "main"]).headers["authorization"],
        "Bearer token-of-other"
    );
    let impersonated = last(&["list", "--as", "alice", "--as-group", "team"]);
    assert_eq!(
        (&*impersonated.headers["impersonate-user"], &*impersonated.headers["impersonate-group"]),
        ("alice", "team")
    );
    let kubeconfig = server.kubeconfig();
    let output = server
        .command(&["list", "--kubeconfig", kubeconfig.to_str().expect("a path")])
        .env("KUBECONFIG", "/nowhere")
        .output();
    assert_eq!(code(&output.expect("the program runs")), 0);
}

#[test]
fn verbose_output_has_the_requests_and_no_credentials() {
    let server = Server::new(|_| Answer::Object(200, table(&[&["web", "True", ""]])));
    let output = server.run(&["list", "-v"]);
    let messages = stderr(&output);
    assert!(messages.contains("GET") && messages.contains(TAPS), "{messages}");
    assert!(!messages.contains("token-of-main"), "{messages}");
    assert_eq!(stdout(&output), "NAME   READY\nweb    True\n");
}

#[test]
fn an_api_server_that_is_silent_or_absent_is_an_error() {
    let server = Server::new(|_| Answer::Silence);
    let start = Instant::now();
    let output = server.run(&["list", "--request-timeout", "1s"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (1, ""), "{}", stderr(&output));
    assert!(start.elapsed() < Duration::from_secs(20));
    let output = server.run(&["list", "--context", "other"]);
    assert!(code(&output) == 1 && stderr(&output).contains("onnection refused"), "{}", stderr(&output));
    let output = server.run(&["list", "--context", "typo"]);
    assert!(code(&output) == 1 && stderr(&output).contains("typo"), "{}", stderr(&output));
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    let server = Server::new(|_| error(500, "", "nothing should be asked"));
    for words in [
        &["create", "web"][..],
        &["create", "--to", "node/n2"],
        &["create", "cronjob/x", "--to", "node/n2"],
        &["create", "web", "--to", "n2"],
        &["list", "-w", "-o", "json"],
        &["delete"],
        &["suspend", "web", "--all"],
        &["explain", "deploy/web"],
        &["kokotap", "--pod", "a", "--vxlan-id", "5000"],
        &["kokotap", "--pod", "a", "--vxlan-id", "5000", "--dest-node", "n2", "--dest-ip", "192.0.2.1"],
        &["list", "--as-group", "team"],
    ] {
        let output = server.run(words);
        assert_eq!((code(&output), stdout(&output).as_str()), (2, ""), "{words:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: "), "{words:?}: {}", stderr(&output));
    }
    assert!(server.requests().is_empty());
}

#[test]
fn without_a_terminal_questions_need_a_flag() {
    for more in [&["--max-pods", "33"][..], &["--to", "192.0.2.10"], &["-n", "db"]] {
        let server = Server::new(|_| error(404, "web-0", "not found"));
        let output = server.run(&[&CREATE, more].concat());
        assert!(code(&output) == 2 && stderr(&output).contains("confirm with -y"), "{more:?}: {}", stderr(&output));
        assert!(server.requests().iter().all(|request| request.method != "PATCH"), "{more:?}");
    }
    let server = Server::new(|_| list(&[tap("True", "AsExpected", &json!({}))]));
    let output = server.run(&["delete", "--all"]);
    assert!(
        code(&output) == 2 && stderr(&output).contains("this deletes 1 tap: PodTap shop/web-0"),
        "{}",
        stderr(&output)
    );
}

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

#[test]
fn text_of_the_cluster_cannot_move_the_cursor() {
    let mut forged = tap("True", "AsExpected", &json!({}));
    forged["metadata"]["annotations"] = json!({"podtap.dev/requested-by": "x\n\u{1b}[8mPodTap shop/web"});
    let server = Server::new(move |request| match request.target.split('?').next().unwrap_or_default() {
        path if path.ends_with("/podtaps/web-0") => Answer::Object(200, forged.clone()),
        _ => error(403, "", "you may not"),
    });
    let output = server.run(&["explain", "web-0", "--color", "always"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("by x \u{fffd}[8mPodTap shop/web"), "{}", stdout(&output));
    assert!(!stdout(&output).contains("\u{1b}[8m"), "{}", stdout(&output));
}

#[test]
fn a_kubeconfig_with_a_mistake_is_not_the_cluster_of_the_pod() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken-kubeconfig");
    fs::write(&path, "clusters: {").expect("it can be written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-podtap"));
    command.env("KUBECONFIG", &path).args(["version"]);
    let output = command.stdin(Stdio::null()).output().expect("the program runs");
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("no cluster: "), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("kubectl podtap   "), "its own version: {}", stdout(&output));
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

#[test]
fn kokotap_prints_a_tap_and_warns_of_what_means_nothing() {
    let server = Server::new(|_| error(500, "", "nothing should be asked"));
    let flags =
        ["kokotap", "--pod=centos", "--mirrortype=ingress", "--dest-node=kube-master", "--vxlan-id=100", "--image=x"];
    let output = server.run(&flags);
    let expected = "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata:\n  name: kokotap-centos\n  namespace: default\nspec:\n  \
        destinations:\n  - node:\n      interfaceName: mirror\n      name: kube-master\n  direction: Ingress\n  targets:\n    \
        interface: eth0\n    podNames:\n    - centos\n";
    assert_eq!((code(&output), stdout(&output).as_str()), (0, expected));
    let warnings = stderr(&output);
    assert_eq!(warnings.lines().filter(|line| line.starts_with("warning: ")).count(), 2, "{warnings}");
    assert!(
        warnings.contains("--vxlan-id=100 is left out") && warnings.contains("--image has no meaning"),
        "{warnings}"
    );
    let output = server.run(&["kokotap", "--pod=centos", "--dest-ip=10.1.1.1", "--vxlan-id=100", "-n", "db"]);
    assert!(stdout(&output).contains("vni: 100") && stdout(&output).contains("namespace: db"), "{}", stdout(&output));
    let output = server.run(&["kokotap", "--pod=centos", "--dest-node=n2", "--vxlan-id=5000"]);
    assert!(stdout(&output).contains("vni: 5000") && stderr(&output).is_empty(), "{}", stderr(&output));
    assert!(server.requests().is_empty());
}

#[test]
fn kubectl_is_answered_with_live_names() {
    let server = Server::new(|request| {
        assert_eq!(request.target.split('?').next(), Some("/api/v1/namespaces/db/pods"));
        list(&[json!({"metadata": {"name": "web-0"}}), json!({"metadata": {"name": "web-1"}})])
    });
    // As krew installs a plugin: a link in a folder of PATH.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bin");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    let plugin = folder.join("kubectl-podtap");
    symlink(env!("CARGO_BIN_EXE_kubectl-podtap"), &plugin).expect("a link");
    let install = |path: &Path| {
        let output = Command::new(&plugin).args(["completion", "kubectl", "--install"]).env("PATH", path).output();
        let output = output.expect("it runs");
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stderr(&output)
    };
    assert!(install(Path::new("/nowhere")).contains("PATH lacks"));
    assert_eq!(install(&folder), "");
    let link = folder.join("kubectl_complete-podtap");
    let ask = |words: &[&str]| {
        let output = Command::new(&link).env("KUBECONFIG", server.kubeconfig()).args(words).output().expect("it runs");
        stdout(&output)
    };
    assert_eq!(ask(&["explain", "-n", "db", "pod/web"]), "pod/web-0\t\npod/web-1\t\n:4\n");
    assert_eq!(
        ask(&["ver"]),
        "version\tShow the versions of this program, of the kinds and of what runs in the cluster\n:4\n"
    );
    let output = server.run(&["completion", "bash"]);
    assert!(code(&output) == 0 && stdout(&output).contains("complete "), "{}", stdout(&output));
}

#[test]
fn colors_only_where_they_are_wanted() {
    let server = Server::new(|_| error(403, "", "no"));
    assert!(!stderr(&server.run(&["list"])).contains('\u{1b}'));
    assert!(stderr(&server.run(&["list", "--color", "always"])).contains('\u{1b}'));
    let output = server.command(&["list", "--color", "never"]).env("CLICOLOR_FORCE", "1").output().expect("it runs");
    assert!(!stderr(&output).contains('\u{1b}'));
    let forced = |no_color: Option<&str>| {
        let mut command = server.command(&["list"]);
        command.env("CLICOLOR_FORCE", "1").envs(no_color.map(|value| ("NO_COLOR", value)));
        stderr(&command.output().expect("it runs")).contains('\u{1b}')
    };
    assert_eq!((forced(None), forced(Some("1"))), (true, false), "NO_COLOR counts more");
}

const COLLECTORS: &str = "/api/v1/namespaces/podtap-system/pods";

fn collector(name: &str, ready: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})
}

#[test]
fn the_collector_that_is_asked_is_the_only_one_or_named() {
    for (pods, more, exit, message) in [
        (vec![], &[][..], 4, "install it (collector.enabled)"),
        (vec![collector("c-0", "False")], &[], 4, "no pod of the collector is ready"),
        (vec![collector("c-1", "True"), collector("c-0", "True")], &[], 2, "--collector-pod c-0|c-1"),
        (vec![collector("c-0", "True"), collector("c-1", "False")], &[], 5, "get and create on pods/portforward"),
        (vec![], &["--collector-pod", "c-0"], 5, "port of the pod c-0"),
    ] {
        let server = Server::new(move |request| match request.target.split('?').next() {
            Some(COLLECTORS) => list(&pods),
            _ => error(403, "", ""),
        });
        for verb in ["map", "flows"] {
            let output = server.run(&[&[verb], more].concat());
            assert_eq!((code(&output), stdout(&output).as_str()), (exit, ""), "{}", stderr(&output));
            assert!(stderr(&output).contains(message), "{message}: {}", stderr(&output));
        }
    }
    let server = Server::new(|_| error(403, "", "pods is forbidden: alice cannot list resource pods"));
    let output = server.run(&["map", "--podtap-namespace", "other"]);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(server.requests()[0].target.starts_with("/api/v1/namespaces/other/pods?"));
}
