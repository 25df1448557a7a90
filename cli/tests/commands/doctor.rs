//! `doctor`: what it reads, and how it ends.

use serde_json::{Value, json};

use crate::{
    code, error, list,
    server::{Answer, Request, Server},
    stderr, stdout,
};

/// The API server of a cluster without PodTap, whose administrator asks; `answer` is about more.
fn cluster(answer: impl Fn(&Request, &str) -> Option<Answer> + Send + Sync + 'static) -> Server {
    Server::new(move |request| {
        let path = request.target.split('?').next().unwrap_or_default();
        if let Some(answer) = answer(request, path) {
            return answer;
        }
        match (request.method.as_str(), path) {
            (_, "/version") => Answer::Object(200, version("1", "35")),
            (_, "/apis") => Answer::Object(200, json!({"groups": []})),
            ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews") => {
                Answer::Object(201, json!({"metadata": {}, "spec": {}, "status": {"allowed": true}}))
            }
            ("GET", path) if path.ends_with("/nodes") || path.ends_with("/pods") => list(&[]),
            // Of a kind that is not served.
            (_, path) if path.contains("projectcalico") => Answer::Object(404, json!("404 page not found")),
            (_, path) => error(404, path.rsplit('/').next().unwrap_or_default(), "not found"),
        }
    })
}

fn version(major: &str, minor: &str) -> Value {
    json!({"major": major, "minor": minor, "gitVersion": "", "gitCommit": "", "gitTreeState": "", "buildDate": "",
           "goVersion": "", "compiler": "", "platform": ""})
}

/// Requests that would change something.
fn writes(server: &Server) -> Vec<Request> {
    let is_read = |request: &Request| {
        request.method == "GET" || request.target.contains("accessreviews") || request.target.contains("dryRun=All")
    };
    server.requests().into_iter().filter(|request| !is_read(request)).collect()
}

#[test]
fn an_absent_installation_is_an_error() {
    let server = cluster(|_, _| None);
    let output = server.run(&["doctor", "-o", "short"]);
    let text = stdout(&output);
    assert_eq!(code(&output), 3, "{text}{}", stderr(&output));
    assert!(text.contains("× the cluster does not serve the kinds of podtap.dev: install PodTap\n"), "{text}");
    assert!(text.ends_with("2 errors, 0 warnings\n") && !text.contains('√'), "{text}");
    assert!(writes(&server).is_empty(), "{:?}", writes(&server));
}

#[test]
fn what_may_not_be_read_is_told_apart_from_errors() {
    let server = cluster(|_, path| match path {
        "/version" | "/apis" => None,
        path if path.starts_with("/apis/authorization") => {
            Some(Answer::Object(201, json!({"metadata": {}, "spec": {}, "status": {"allowed": false}})))
        }
        _ => Some(error(403, "", "alice may not")),
    });
    let output = server.run(&["check", "-o", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = document["findings"].as_array().expect("a list");
    let hints: Vec<_> = findings.iter().flat_map(|finding| finding["hints"].as_array().into_iter().flatten()).collect();
    assert!(hints.contains(&&json!("delete podtaps.podtap.dev: needed by delete")), "{hints:?}");
    let of = |level: &str| {
        let found = findings.iter().filter(|finding| finding["level"] == level);
        found.map(|finding| finding["message"].to_string()).collect()
    };
    let unread: Vec<String> = of("notPermitted");
    assert!(unread.contains(&"\"you may not read the controller: alice may not\"".to_owned()), "{unread:?}");
    // That the kinds are absent is an error that the user may see.
    assert_eq!(code(&output), 3, "{document}");
}

#[test]
fn a_rehearsal_names_what_would_be_refused() {
    let server = cluster(|request, path| match (request.method.as_str(), path) {
        (_, "/version") => Some(Answer::Object(200, version("1", "31"))),
        (_, "/api/v1/namespaces/tools") => Some(Answer::Object(200, json!({"metadata": {"name": "tools"}}))),
        ("POST", "/api/v1/namespaces/tools/pods") => {
            let message = "pods \"podtap-helper-x\" is forbidden: violates PodSecurity \"restricted:latest\"";
            Some(error(403, "podtap-helper-x", message))
        }
        ("POST", _) if request.body["spec"]["resourceAttributes"]["resource"] == "clusterroles" => {
            Some(Answer::Object(201, json!({"metadata": {}, "spec": {}, "status": {"allowed": false}})))
        }
        _ => None,
    });
    let output = server.run(&["doctor", "--pre", "--podtap-namespace", "tools"]);
    let text = stdout(&output);
    assert_eq!(code(&output), 3, "{text}{}", stderr(&output));
    for words in [
        "× the API server is of Kubernetes 1.31: PodTap needs 1.32",
        "× you may not create clusterroles.rbac.authorization.k8s.io: the chart has such objects",
        "× Pod Security of the namespace tools enforces a default, which rejects helper pods",
        "- whether the nodes can pull the image cannot be tested beforehand",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let pod = server
        .requests()
        .into_iter()
        .find(|request| request.method == "POST" && request.target.contains("/pods?"))
        .expect("a dry run");
    assert!(pod.target.contains("dryRun=All"), "{pod:?}");
    assert!(writes(&server).is_empty(), "{:?}", writes(&server));
}

#[test]
fn it_waits_until_there_are_no_errors() {
    let asked = std::sync::atomic::AtomicU32::new(0);
    let server = cluster(move |_, path| {
        let is_repaired = path == "/version" && asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0;
        (path == "/version").then(|| Answer::Object(200, version("1", if is_repaired { "35" } else { "31" })))
    });
    let output = server.run(&["doctor", "--pre", "--wait", "60s"]);
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    assert!(stderr(&output).starts_with("waiting for the end of an error: the API server is of Kubernetes 1.31"));
    let output = server.run(&["doctor", "--pre", "--node", "n1"]);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
}

#[test]
fn pods_are_started_only_after_a_question() {
    let node = |name: &str, address: &str| {
        let addresses = json!([{"type": "InternalIP", "address": address}]);
        json!({"metadata": {"name": name}, "status": {"addresses": addresses}})
    };
    let nodes = [node("n1", "10.0.0.1"), node("n2", "10.0.0.2")];
    let server = cluster(move |_, path| (path == "/api/v1/nodes").then(|| list(&nodes)));
    let output = server.run(&["doctor", "--network"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (2, ""), "{}", stderr(&output));
    let errors = stderr(&output);
    let words = "this starts a pod on each of 2 nodes (n1, n2)";
    assert!(errors.contains(words) && errors.contains("confirm with -y"), "{errors}");
    assert!(writes(&server).is_empty(), "{:?}", writes(&server));
    // There is no controller here, whose image the pods would have: one finding among the others.
    let output = server.run(&["doctor", "--network", "-y"]);
    let text = stdout(&output);
    assert!(
        code(&output) == 3 && text.contains("cannot be tried: ") && text.contains("image of the controller"),
        "{text}"
    );
    assert!(text.contains("install PodTap"), "{text}");
    assert!(writes(&server).is_empty(), "{:?}", writes(&server));
}
