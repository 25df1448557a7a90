//! The program against an API server that records its requests: flags, exit codes, and what is printed where.

mod capture;
mod cleanup;
mod completion;
mod create;
mod doctor;
mod events;
mod kokotap;
mod list;
mod map;
mod plan;
mod progress;
mod server;
mod support;
mod suspend;
mod top;

use std::{
    fs,
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
