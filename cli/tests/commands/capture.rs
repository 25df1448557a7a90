//! `capture` against an API server that records its requests: what it needs, and what it removes.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const JOBS: &str = "/apis/batch/v1/namespaces/shop/jobs";
const CAPTURE: [&str; 5] = ["capture", "web-0", "-w", "/dev/null", "-y"];

/// A cluster with PodTap, unless `is_installed` is false, in which `refused` is answered with 403: a path, or a resource that is asked for.
fn cluster(is_installed: bool, refused: Option<&'static str>) -> Server {
    let is_deleted = AtomicBool::new(false);
    Server::new(move |request| {
        let path = request.target.split('?').next().unwrap_or_default();
        match (request.method.as_str(), path) {
            ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews") => {
                let attributes = &request.body["spec"]["resourceAttributes"];
                let allowed = refused.is_none_or(|refused| attributes["subresource"] != refused);
                Answer::Object(201, json!({"metadata": {}, "spec": {}, "status": {"allowed": allowed}}))
            }
            ("POST", path) if refused == Some(path) => error(403, "", "alice cannot create this: the verb is missing"),
            ("GET", "/api/v1/namespaces/podtap-system/configmaps/podtap-capture") if is_installed => {
                let data = json!({"image": "podtap:1", "imagePullPolicy": "Never", "etherType": "34997"});
                Answer::Object(200, json!({"metadata": {"name": "podtap-capture"}, "data": data}))
            }
            ("GET", "/api/v1/namespaces/shop/pods") if request.is_watch() => Answer::Silence,
            ("GET", "/api/v1/namespaces/shop/pods") if is_deleted.load(Ordering::Relaxed) => list(&[]),
            ("GET", "/api/v1/namespaces/shop/pods") => {
                let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u"});
                let pod = |name: &str, owners: Value| json!({"metadata": {"name": name, "namespace": "shop", "uid": name, "ownerReferences": owners}});
                // Not every pod with the label is the job's.
                list(&[pod("foreign", json!([])), pod("own", json!([owner]))])
            }
            ("POST", JOBS) => {
                let mut job = request.body.clone();
                job["metadata"]["uid"] = json!("u");
                job["metadata"]["namespace"] = json!("shop");
                Answer::Object(201, job)
            }
            ("POST", TAPS) => {
                let mut tap = request.body.clone();
                tap["metadata"]["uid"] = json!("t");
                tap["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
                Answer::Object(201, tap)
            }
            ("POST", _) => Answer::Object(201, json!({"metadata": {}, "status": {"userInfo": {"username": "alice"}}})),
            ("DELETE", path) => {
                is_deleted.fetch_or(path.starts_with(JOBS), Ordering::Relaxed);
                Answer::Object(200, json!({"kind": "Status", "status": "Success"}))
            }
            _ => error(404, "x", "not found"),
        }
    })
}

fn writes(server: &Server) -> Vec<String> {
    let is_write = |request: &Request| request.method != "GET" && !request.target.contains("selfsubject");
    let path = |request: Request| {
        let path = request.target.split('?').next().unwrap_or_default().to_owned();
        format!("{} {path}", request.method)
    };
    server.requests().into_iter().filter(is_write).map(path).collect()
}

#[test]
fn without_the_configuration_of_the_chart_nothing_is_created() {
    let server = cluster(false, None);
    let output = server.run(&CAPTURE);
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("--podtap-namespace"), "{}", stderr(&output));
    assert_eq!(writes(&server), [""; 0]);
}

#[test]
fn a_missing_right_is_named_and_nothing_is_left() {
    let server = cluster(true, Some("packetsocket"));
    let output = server.run(&CAPTURE);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    let message = "in the namespace shop, you lack the rights to create pods/packetsocket: ask";
    assert!(stderr(&output).contains(message), "{}", stderr(&output));
    assert_eq!(writes(&server), [""; 0]);

    let server = cluster(true, Some(JOBS));
    let output = server.run(&CAPTURE);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(stderr(&output).contains("the verb is missing"), "{}", stderr(&output));
    assert_eq!(writes(&server), [format!("POST {JOBS}")]);

    let server = cluster(true, Some(TAPS));
    let output = server.run(&CAPTURE);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    let writes = writes(&server);
    assert_eq!(writes[..2], [format!("POST {JOBS}"), format!("POST {TAPS}")]);
    let deletes = format!("DELETE {JOBS}/podtap-capture-");
    assert!(writes.iter().any(|write| write.starts_with(&deletes)), "{writes:?}");
}

#[test]
fn the_tap_belongs_to_the_job_and_goes_to_its_pod() {
    let server = cluster(true, None);
    let output = server.run(&[&CAPTURE[..], &["--port", "443", "--for", "1m", "--wait", "1s"]].concat());
    assert_eq!(code(&output), 124, "{}", stderr(&output));
    let is_tap = |request: &Request| request.method == "POST" && request.target.starts_with(TAPS);
    let tap = server.requests().into_iter().find(is_tap).expect("it creates a tap").body;
    assert_eq!(tap["metadata"]["ownerReferences"][0]["uid"], "u");
    let destination = &tap["spec"]["destinations"][0]["pod"];
    assert_eq!(destination["packetSocket"], true);
    assert_eq!(destination["name"], "own");
    assert_eq!(tap["spec"]["limit"]["bitsPerSecond"], 200_000_000);
    assert_eq!(tap["spec"]["filter"]["include"][0]["ports"][0]["port"], 443);
    assert_eq!(tap["spec"]["duration"], "121s");
    let removed = format!("DELETE {TAPS}/{}", tap["metadata"]["name"].as_str().expect("a name"));
    assert!(writes(&server).contains(&removed), "{removed}");
}

#[test]
fn a_capture_that_is_kept_has_a_volume_and_is_told_how_to_continue() {
    let server = cluster(true, None);
    let words = ["--keep", "1h", "--max-bytes", "64Mi", "--wait", "1s"];
    let output = server.run(&[&CAPTURE[..], &words].concat());
    // Its pod does not run: no client was connected to it, and nothing is left.
    assert_eq!(code(&output), 124, "{}", stderr(&output));
    let posted = |path: &str| {
        let is_it = |request: &Request| request.method == "POST" && request.target.starts_with(path);
        server.requests().into_iter().find(is_it).expect("it is created").body
    };
    let (job, tap) = (posted(JOBS), posted(TAPS));
    assert_eq!(job["spec"]["activeDeadlineSeconds"], 3600 + 1 + 60);
    let pod = &job["spec"]["template"]["spec"];
    let command = pod["containers"][0]["command"].to_string();
    for word in ["--for=3600", "--keep=/frames", "--keep-bytes=67108864"] {
        assert!(command.contains(word), "{word}: {command}");
    }
    assert_eq!(pod["volumes"][0]["emptyDir"]["sizeLimit"], (72 << 20).to_string());
    assert_eq!([&job, &tap].map(|object| object["metadata"]["labels"]["podtap.dev/kept"].clone()), ["3600", "3600"]);
    let name = tap["metadata"]["name"].as_str().expect("a name");
    let how =
        format!("continue: kubectl podtap capture -n shop --resume {name}; end: kubectl podtap delete -n shop {name}");
    assert!(stderr(&output).contains(&how), "{}", stderr(&output));
    assert!(writes(&server).contains(&format!("DELETE {JOBS}/{name}")));
    for (words, message) in [
        (&["--keep", "1h", "--format", "pcap"][..], "--keep and --resume take pcapng"),
        (&["--keep", "1h", "--max-bytes", "1Mi"], "at least 4Mi"),
        (&["--keep", "1h", "--for", "1h"], "cannot be used with"),
        (&["--resume", "x"], "cannot be used with"),
    ] {
        let output = server.run(&[&CAPTURE[..], words].concat());
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
}

/// A cluster with a tap, with these labels, of a capture whose pod waits for its image.
fn kept(labels: Value) -> Server {
    kept_as(named("kept"), labels)
}

fn kept_as(mut tap: Value, labels: Value) -> Server {
    let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "kept", "uid": "u"});
    tap["metadata"]["name"] = json!("kept");
    tap["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    tap["metadata"]["labels"] = labels;
    tap["metadata"]["ownerReferences"] = json!([owner]);
    let metadata = json!({"name": "own", "namespace": "shop", "uid": "p", "ownerReferences": [owner]});
    Server::new(move |request| match request.target.split('?').next().unwrap_or_default() {
        _ if request.method == "DELETE" => Answer::Object(200, json!({"kind": "Status", "status": "Success"})),
        _ if request.is_watch() => Answer::Silence,
        path if path == format!("{TAPS}/kept") => Answer::Object(200, tap.clone()),
        TAPS => list(&[tap.clone()]),
        "/api/v1/namespaces/shop/pods" => list(&[json!({"metadata": metadata})]),
        path if path.starts_with(TAPS) => error(404, "x", "not found"),
        // Nodes and the like.
        _ => error(403, "", "you may not"),
    })
}

#[test]
fn a_capture_is_continued_and_stays() {
    let labels = json!({"podtap.dev/kept": "3600"});
    let server = kept(labels.clone());
    let words = ["capture", "--resume", "kept", "-w", "/dev/null", "--wait", "1s"];
    let output = server.run(&words);
    assert_eq!(code(&output), 124, "{}", stderr(&output));
    assert!(stderr(&output).contains("kept captures until 2026-01-01T01:00:00Z"), "{}", stderr(&output));
    assert_eq!(writes(&server), [""; 0]);

    let server = kept(json!({}));
    let output = server.run(&words);
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("was begun with --keep"), "{}", stderr(&output));
    let server = kept(labels);
    let output = server.run(&["capture", "--resume", "gone", "-w", "/dev/null"]);
    assert!(stderr(&output).contains("not found"), "{}", stderr(&output));

    // It is deleted with its Job.
    let output = server.run(&["delete", "kept", "--wait", "0"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(writes(&server), [format!("DELETE {TAPS}/kept"), format!("DELETE {JOBS}/kept")]);
    let explained = server.run(&["explain", "kept"]);
    assert!(stdout(&explained).contains("--resume kept"), "{}{}", stdout(&explained), stderr(&explained));
}

#[test]
fn a_capture_that_is_kept_outlives_a_refusal_of_its_tap() {
    for (reason, message) in [("NotAllowedByPolicy", "is refused"), ("Suspended", "is suspended")] {
        let server = kept_as(tap("False", reason, &json!({})), json!({"podtap.dev/kept": "3600"}));
        // It waits for the pod for longer than a stream may take to end.
        let output = server.run(&["capture", "--resume", "kept", "-w", "/dev/null", "--wait", "5s"]);
        assert_eq!(code(&output), 124, "{}", stderr(&output));
        assert_eq!(stderr(&output).matches(message).count(), 1, "{}", stderr(&output));
        assert_eq!(writes(&server), [""; 0]);
    }
}

#[test]
fn a_capture_is_continued_in_another_file() {
    let server = kept(json!({"podtap.dev/kept": "3600"}));
    let path = std::env::temp_dir().join(format!("podtap-continued-{}.pcapng", std::process::id()));
    let file = path.to_str().expect("it is text");
    for (before, expected) in [("", 124), ("frames", 4)] {
        fs::write(&path, before).expect("it can be written");
        let output = server.run(&["capture", "--resume", "kept", "-w", file, "--wait", "1s"]);
        assert_eq!(code(&output), expected, "{}", stderr(&output));
        assert_eq!(stderr(&output).contains("name another file"), expected == 4, "{}", stderr(&output));
        assert_eq!(fs::read_to_string(&path).expect("it exists"), before);
    }
    fs::remove_file(path).expect("it exists");
}

#[test]
fn without_wireshark_nothing_is_created() {
    let server = cluster(true, None);
    let output = server
        .command(&["capture", "web-0", "-y"])
        .env("PATH", "")
        .env_remove("PODTAP_WIRESHARK")
        .output()
        .expect("it runs");
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("-w FILE"), "{}", stderr(&output));
    assert_eq!(writes(&server), [""; 0]);
}
