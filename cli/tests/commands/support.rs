//! `support` against an API server that records its requests.

use std::{collections::BTreeMap, fs::Permissions, os::unix::fs::PermissionsExt as _};

use super::*;

/// A cluster in which nothing may be executed; `answer` is about more.
fn cluster(answer: impl Fn(&Request, &str) -> Option<Answer> + Send + Sync + 'static) -> Server {
    let pod = json!({
        "metadata": {"name": "podtap-helper-worker-1-x7x7x", "namespace": "podtap-system",
            "labels": {"app.kubernetes.io/name": "podtap", "app.kubernetes.io/component": "helper"}, "managedFields": [{"manager": "x"}]},
        "spec": {"nodeName": "worker-1", "containers": []},
        "status": {"containerStatuses": [{"name": "agent", "ready": true, "restartCount": 1, "image": "", "imageID": ""}]},
    });
    let usual = move |path: &str| match path {
        "/version" => Answer::Object(
            200,
            json!({"major": "1", "minor": "35", "gitVersion": "v1.35.4", "gitCommit": "", "gitTreeState": "", "buildDate": "",
                "goVersion": "", "compiler": "", "platform": ""}),
        ),
        "/apis/podtap.dev/v1alpha1/podtaps" => list(&[named("web")]),
        "/api/v1/namespaces" => list(&[json!({"metadata": {"name": "shop"}})]),
        "/api/v1/nodes" => list(&[json!({"metadata": {"name": "worker-1"}})]),
        "/api/v1/namespaces/podtap-system/pods" => list(std::slice::from_ref(&pod)),
        path if path.ends_with("/log") => Answer::Object(200, json!("worker-1 (192.0.2.1): shop/web")),
        "/apis/authentication.k8s.io/v1/selfsubjectreviews" => {
            Answer::Object(201, json!({"metadata": {}, "status": {"userInfo": {"username": "alice@example.com"}}}))
        }
        // The namespace of the context, if those of all may not be listed.
        "/api/v1/namespaces/shop/events" => {
            list(&[json!({"metadata": {"name": "web.1", "namespace": "shop"}, "involvedObject": {}})])
        }
        _ => error(403, "", "User \"alice@example.com\" may not"),
    };
    Server::new(move |request| {
        let path = request.target.split('?').next().unwrap_or_default();
        answer(request, path).unwrap_or_else(|| usual(path))
    })
}

/// The parts of the archive, by path.
fn parts(path: &Path) -> BTreeMap<String, String> {
    let list = Command::new("tar").arg("-tzf").arg(path).output().expect("tar runs");
    assert!(list.status.success(), "{}", stderr(&list));
    let content = |name: &str| {
        let output = Command::new("tar").arg("-xOzf").arg(path).arg(name).output().expect("tar runs");
        stdout(&output)
    };
    stdout(&list).lines().map(|name| (name.to_owned(), content(name))).collect()
}

fn collect(server: &Server, name: &str, more: &[&str]) -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = path.to_str().expect("a path");
    // Of an earlier run, and readable for all.
    fs::write(&path, "").expect("it can be written");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("it is mine");
    let output = server.run(&[&["support", "-f", file], more].concat());
    assert_eq!((code(&output), stdout(&output)), (3, format!("{file} written\n")), "{}", stderr(&output));
    let permissions = fs::metadata(&path).expect("a file").permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);
    parts(&path)
}

#[test]
fn an_archive_has_what_may_be_read_and_tells_what_not() {
    let server = cluster(|request, _| {
        request.target.contains("previous=true").then(|| Answer::Object(200, json!("x".repeat(4 << 20))))
    });
    let parts = collect(&server, "support.tgz", &[]);
    let part = |name: &str| parts.get(&format!("podtap-support/{name}")).unwrap_or_else(|| panic!("{name}: {parts:?}"));
    let tap: Value = serde_json::from_str(part("podtaps/shop/web.json")).expect("JSON");
    assert_eq!((&tap["kind"], &tap["spec"]["targets"]["podNames"][0]), (&json!("PodTap"), &json!("web-0")));
    assert!(part("events-of-taps/shop/web.1.json").contains("\"Event\""));
    assert!(part("server.json").contains("v1.35.4"));
    assert!(!part("pods/podtap-system/podtap-helper-worker-1-x7x7x.json").contains("managedFields"));
    let log = "logs/podtap-helper-worker-1-x7x7x/agent";
    assert_eq!(part(&format!("{log}.log")), "\"worker-1 (192.0.2.1): shop/web\"");
    let index = part("index.txt");
    let is_cut = "agent.previous.log: MISSING: only the first 4194304 bytes of its last 20000 lines\n";
    assert!(index.contains(is_cut) && part(&format!("{log}.previous.log")).len() > 4 << 20, "{index}");
    for missing in [
        "nodetaps: MISSING: User \"alice@example.com\" may not",
        "inspect/worker-1.json: MISSING: ",
        "versions.json: MISSING: ",
    ] {
        assert!(index.contains(missing), "{missing}: {index}");
    }
    assert!(index.contains("pods/exec") && index.contains("podtaps/shop/web.json: "), "{index}");
    let requests = server.requests();
    assert!(requests.iter().all(|request| !request.target.contains("/secrets")), "{requests:?}");
    let exec = requests.iter().find(|request| request.target.contains("/exec?")).expect("it tries");
    assert!(exec.target.contains("command=%2Ftap-helper&command=inspect"), "{}", exec.target);
    assert!(requests.iter().all(|request| request.method == "GET"), "nothing is written: {requests:?}");
}

#[test]
fn names_and_addresses_are_replaced_everywhere() {
    // The images of the helper pods may be read, and an event that names another one.
    let server = cluster(|request, path| {
        let pod = |image: &str| json!({"metadata": {"name": "podtap-x", "namespace": "podtap-system"}, "spec": {"containers": [{"name": "x", "image": image}]}});
        match path {
            "/apis" => Some(Answer::Object(200, json!({"groups": []}))),
            "/api/v1/pods" if request.target.contains("component%3Dhelper") => {
                Some(list(&[pod("registry:5000/podtap:1")]))
            }
            "/apis/apps/v1/deployments" => Some(list(&[])),
            "/api/v1/namespaces/podtap-system/pods" => Some(list(&[pod("mirror.corp/podtap:1")])),
            "/api/v1/namespaces/podtap-system/events" => {
                Some(list(&[json!({"metadata": {"name": "x", "namespace": "podtap-system"},
                "involvedObject": {}, "message": "Failed to pull mirror.corp/podtap:1 and registry:5000/podtap:1"})]))
            }
            _ => None,
        }
    });
    let parts = collect(&server, "registries.tgz", &["--redact"]);
    let all = format!("{parts:#?}");
    assert!(all.contains("Failed to pull registry-2/podtap:1 and registry-1:5000/podtap:1"), "{all}");
    assert!(!all.contains("registry:5000") && !all.contains("mirror.corp"), "{all}");

    let parts = collect(&cluster(|_, _| None), "redacted.tgz", &["--redact"]);
    let all = format!("{parts:#?}");
    for secret in ["worker-1", "192.0.2.1", "shop", "web-0", "web.json", "alice"] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
    let log = parts.values().find(|text| text.starts_with("\"node-")).expect("a log");
    assert_eq!(log, "\"node-1 (ipv4-1): namespace-1/tap-1\"", "{all}");
    assert!(parts.contains_key("podtap-support/podtaps/namespace-1/tap-1.json"), "{all}");
    assert!(all.contains("names of pods: MISSING: "), "{all}");
}

#[test]
fn without_an_answer_there_is_no_archive() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("none.tgz");
    let _ = fs::remove_file(&path);
    let server = Server::new(|_| error(500, "", "broken"));
    let output = server.run(&["support", "-f", path.to_str().expect("a path")]);
    assert_eq!((code(&output), path.exists()), (1, false), "{}", stderr(&output));
    let output = cluster(|_, _| None).run(&["support", "-f", "/nowhere/x.tgz"]);
    assert!(code(&output) == 1 && stderr(&output).contains("cannot write /nowhere/x.tgz"), "{}", stderr(&output));
}
