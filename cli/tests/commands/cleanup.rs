//! `cleanup` against an API server that records its requests.

use std::sync::Mutex;

use super::*;

fn owned(name: &str, job: &str, uid: &str) -> Value {
    let mut tap = named(name);
    tap["metadata"]["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}]);
    tap["metadata"]["uid"] = json!(format!("uid-of-{name}"));
    tap
}

fn job(name: &str, condition: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-of-{name}"), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"ready": 1, "conditions": [{"type": condition, "status": "True"}]}})
}

/// Taps of captures that run, have ended and are gone, one that has expired, one that runs; what was deleted is gone.
fn cluster() -> Server {
    let mut expired = named("expired");
    expired["status"]["conditions"][0]["reason"] = json!("Expired");
    expired["metadata"]["uid"] = json!("uid-of-expired");
    let taps = [
        named("runs"),
        expired,
        owned("of-running", "running", "uid-of-running"),
        owned("of-ended", "ended", "uid-of-ended"),
        owned("of-gone", "gone", "uid-of-gone"),
    ];
    let deleted = Mutex::new(Vec::new());
    Server::new(move |request| {
        let path = request.target.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut deleted = deleted.lock().expect("no panic before");
        match (request.method.as_str(), path) {
            _ if request.is_watch() => Answer::Silence,
            ("DELETE", _) => {
                deleted.push(name);
                Answer::Object(200, json!({"kind": "Status", "status": "Success"}))
            }
            ("GET", TAPS) => {
                let of_name = |tap: &&Value| {
                    let name = tap["metadata"]["name"].as_str().expect("a name");
                    let is_asked = !request.target.contains("fieldSelector") || request.target.contains(name);
                    is_asked && !deleted.iter().any(|deleted| deleted == name)
                };
                list(&taps.iter().filter(of_name).cloned().collect::<Vec<_>>())
            }
            ("GET", "/apis/batch/v1/namespaces/shop/jobs") => {
                let jobs = [job("running", "Suspended"), job("ended", "Complete")];
                let is_left = |job: &&Value| !deleted.iter().any(|deleted| job["metadata"]["name"] == json!(deleted));
                list(&jobs.iter().filter(is_left).cloned().collect::<Vec<_>>())
            }
            ("GET", "/apis/batch/v1/namespaces/shop/jobs/gone") => error(404, "gone", "not found"),
            ("GET", "/apis/podtap.dev/v1alpha1/nodetaps") => list(&[]),
            _ => error(403, "", "you may not"),
        }
    })
}

#[test]
fn only_what_is_not_needed_is_deleted() {
    let server = cluster();
    let output = server.run(&["cleanup", "--dry-run"]);
    let expected = "PodTap shop/expired: it has expired\n\
        PodTap shop/of-ended: the client of its capture is gone\n\
        PodTap shop/of-gone: the client of its capture is gone\n\
        Job shop/ended: its client is gone\n";
    assert_eq!((code(&output), stdout(&output).as_str()), (0, expected), "{}", stderr(&output));
    let output = server.run(&["cleanup"]);
    assert!(code(&output) == 2 && stderr(&output).contains("confirm with -y"), "{}", stderr(&output));
    assert!(server.requests().iter().all(|request| request.method == "GET"));
    let output = server.run(&["cleanup", "-y"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let deletions: Vec<_> = server.requests().into_iter().filter(|request| request.method == "DELETE").collect();
    let named = |request: &Request| {
        let uid = request.body["preconditions"]["uid"].as_str().expect("not another one of the same name").to_owned();
        uid.trim_start_matches("uid-of-").to_owned()
    };
    assert_eq!(deletions.iter().map(named).collect::<Vec<_>>(), ["expired", "of-ended", "of-gone", "ended"]);
    let versions = deletions.iter().map(|request| &request.body["preconditions"]["resourceVersion"]);
    let expected = [&json!("1"), &Value::Null, &Value::Null, &Value::Null];
    assert_eq!(versions.collect::<Vec<_>>(), expected, "an expired tap may have been changed meanwhile");
    assert_eq!(deletions[3].body["propagationPolicy"], "Background", "its pods go with it");
    assert!(stdout(&output).contains("job.batch/ended deleted\n"), "{}", stdout(&output));
    let output = server.run(&["cleanup", "-y"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, ""), "{}", stderr(&output));
}

#[test]
fn what_may_not_be_read_and_what_nodes_have_left_is_told() {
    let server = Server::new(|request| match request.target.split('?').next().unwrap_or_default() {
        TAPS => list(&[]),
        "/apis/podtap.dev/v1alpha1/nodetaps" => {
            let status = json!({"leftovers": ["the device ptap1 cannot be removed"]});
            list(&[json!({"metadata": {"name": "n1"}, "spec": {}, "status": status})])
        }
        _ => error(403, "", "you may not"),
    });
    let output = server.run(&["cleanup", "-y"]);
    let messages = stderr(&output);
    assert_eq!((code(&output), stdout(&output).as_str()), (3, ""), "{messages}");
    assert!(messages.contains("you may not list Jobs"), "{messages}");
    assert!(messages.contains("node n1: the device ptap1") && messages.contains("tap-helper purge"), "{messages}");
}
