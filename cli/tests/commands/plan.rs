//! `plan` against an API server that records its requests.

use std::io::Write as _;

use super::*;

const PLAN: [&str; 6] = ["plan", "deploy/web", "--to", "node/n2:mirror", "--vni", "5000"];

/// A cluster with a Deployment of two pods, one of them on the network of its node; `denied` are the verbs that the user lacks, and
/// `refusal` is what the API server answers to a tap.
fn cluster(denied: &'static [&'static str], refusal: Option<&'static str>) -> Server {
    let pod = |name: &str, host_network: bool| {
        json!({"metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "hostNetwork": host_network, "containers": []}, "status": {"phase": "Running"}})
    };
    let pods = [pod("web-0", false), pod("web-1", true)];
    let node = |name: &str| {
        json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}],
            "conditions": [{"type": "Ready", "status": "True"}]}})
    };
    // What a node reports of the tap of web-0.
    let node_tap = json!({"metadata": {"name": "n1"}, "spec": {},
        "status": {"senders": [{"tapUid": "t", "podUid": "web-0", "state": "Active", "reason": "AsExpected"}]}});
    Server::new(move |request| {
        let path = request.target.split('?').next().unwrap_or_default();
        match (request.method.as_str(), path) {
            ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews") => {
                let verb = request.body["spec"]["resourceAttributes"]["verb"].as_str().unwrap_or_default();
                let allowed = !denied.contains(&verb);
                Answer::Object(201, json!({"metadata": {}, "spec": {}, "status": {"allowed": allowed}}))
            }
            ("PATCH", _) if !request.target.contains("dryRun=All") => error(500, "", "this would write"),
            ("PATCH", _) if refusal.is_some() => error(422, "web", refusal.unwrap_or_default()),
            ("PATCH", _) => {
                let mut stored = request.body.clone();
                stored["metadata"]["uid"] = json!("t");
                Answer::Object(201, stored)
            }
            ("GET", "/apis/apps/v1/namespaces/shop/deployments/web") => {
                let selector = json!({"matchLabels": {"app": "web"}});
                Answer::Object(
                    200,
                    json!({"metadata": {"name": "web"}, "spec": {"selector": selector, "template": {}}}),
                )
            }
            ("GET", "/apis/podtap.dev/v1alpha1/namespaces/shop/podtaps/web-0") => {
                Answer::Object(200, tap("True", "AsExpected", &json!({})))
            }
            ("GET", "/api/v1/namespaces/shop/pods") => list(&pods),
            ("GET", "/apis/podtap.dev/v1alpha1/nodetaps") => list(std::slice::from_ref(&node_tap)),
            ("GET", "/api/v1/namespaces") => list(&[]),
            ("GET", "/api/v1/nodes") => list(&[node("n1"), node("n2")]),
            ("GET", "/api/v1/nodes/n2") => Answer::Object(200, node("n2")),
            ("GET", path) if path.ends_with("taps") => list(&[]),
            ("GET", _) => error(404, "web", "not found"),
            _ => error(500, "", "this would write"),
        }
    })
}

/// That nothing was written, which the API server would have done with any other request.
#[track_caller]
fn assert_nothing_written(server: &Server) {
    let writes = |request: &Request| match request.method.as_str() {
        "GET" => false,
        "POST" => !request.target.contains("/selfsubjectaccessreviews"),
        _ => !request.target.contains("dryRun=All"),
    };
    let written: Vec<_> = server.requests().into_iter().filter(writes).collect();
    assert!(written.is_empty(), "{written:?}");
}

#[test]
fn a_plan_reads_and_writes_nothing() {
    let server = cluster(&[], None);
    let output = server.run(&PLAN);
    let text = stdout(&output);
    assert_eq!((code(&output), stderr(&output).as_str()), (3, ""), "{text}");
    assert!(
        text.starts_with("PodTap shop/web would mirror 1 of 2 pods of shop (app=web), both directions, to node n2"),
        "{text}"
    );
    assert!(text.contains("n1     web-0   -        -     +50       ok\n"), "{text}");
    assert!(text.contains("refused: HostNetwork\n") && text.contains("#hostnetwork (web-1)\n"), "{text}");
    assert!(text.contains("Creates 1 sender device, 1 receiver device, VNI 5000, helper pods on n2.\n"), "{text}");
    assert!(text.ends_with("Nothing was changed.\n"), "{text}");
    assert_nothing_written(&server);
    let asked: Vec<_> = server
        .requests()
        .iter()
        .filter(|request| request.method == "POST")
        .map(|request| request.body["spec"]["resourceAttributes"].clone())
        .collect();
    let right = |verb: &str, group: &str, resource: &str| json!({"verb": verb, "group": group, "resource": resource, "namespace": "shop"});
    for right in
        [right("create", "podtap.dev", "podtaps"), right("patch", "podtap.dev", "podtaps"), right("tap", "", "pods")]
    {
        assert!(asked.contains(&right), "{right}: {asked:?}");
    }
    let output = server.run(&[&PLAN[..], &["-o", "json"]].concat());
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&document["pods"][1]["state"], &document["creates"]["vni"]), (&json!("refused"), &json!(5000)));
    let output = server.run(&[&PLAN[..], &["-o", "short"]].concat());
    assert!(stdout(&output).ends_with("PodTap shop/web: 1 ok, 0 pending, 1 refused, 0 denials, 0 warnings\n"));
}

#[test]
fn a_right_that_is_missing_is_named_and_the_object_is_not_tried() {
    let server = cluster(&["tap"], None);
    let output = server.run(&PLAN);
    let text = stdout(&output);
    assert_eq!(code(&output), 5, "{text}");
    assert!(text.contains("denied by RBAC: you may not tap pods in the namespace shop\n"), "{text}");
    assert!(text.contains("web-0"), "the rest is told: {text}");
    assert!(server.requests().iter().all(|request| request.method != "PATCH"));
}

#[test]
fn what_the_api_server_refuses_is_told() {
    let server = cluster(&[], Some("spec.targets.maxPods: Invalid value"));
    let output = server.run(&PLAN);
    assert_eq!(code(&output), 4, "{}", stdout(&output));
    assert!(stdout(&output).contains("denied by the API server: spec.targets.maxPods: Invalid value\n"));
    assert_nothing_written(&server);
}

#[test]
fn a_tap_that_exists_is_only_read() {
    let server = cluster(&["create", "patch", "tap"], None);
    let output = server.run(&["plan", "web-0"]);
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    assert!(stdout(&output).starts_with("PodTap shop/web-0 mirrors 1 of 1 pod of shop (web-0)"), "{}", stdout(&output));
    assert!(server.requests().iter().all(|request| request.method == "GET"));
}

#[test]
fn a_tap_that_exists_is_compared() {
    let server = cluster(&[], None);
    let to = |interface: &str| stdout(&server.run(&["plan", "web-0", "--to", &format!("node/n2{interface}")]));
    let same = to("");
    assert!(same.starts_with("PodTap shop/web-0 mirrors ") && !same.contains("warning:"), "{same}");
    let other = to(":mirror");
    assert!(other.starts_with("PodTap shop/web-0 would mirror "), "{other}");
    assert!(other.contains("warning: PodTap shop/web-0 exists, and would be changed to this\n"), "{other}");
    assert_nothing_written(&server);
}

#[test]
fn a_tap_of_a_file_is_tried_as_it_is_written() {
    let server = cluster(&[], None);
    let run = |words: &[&str], text: &str| {
        let mut command = server.command(&[&["plan", "-f", "-"], words].concat());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
        child.wait_with_output().expect("it ends")
    };
    let file = "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  \
        targets: {podSelector: {matchLabels: {app: web}}}\n  destinations: [{node: {name: n2}}]\n  unknown: 1\n";
    let output = run(&["--strict"], file);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let patch = server.requests().into_iter().find(|request| request.method == "PATCH").expect("a dry run");
    assert!(patch.target.contains("dryRun=All") && patch.target.contains("fieldValidation=Strict"), "{}", patch.target);
    assert_eq!((&patch.body["spec"]["unknown"], &patch.body["metadata"]["namespace"]), (&json!(1), &json!("shop")));
    assert_nothing_written(&server);
    let elsewhere = file.replace("name: web}", "name: web, namespace: db}");
    let output = run(&["-n", "shop"], &elsewhere);
    assert!(code(&output) == 2 && stderr(&output).contains("leave out -n"), "{}", stderr(&output));
}

/// At a terminal, its user may give up.
#[test]
fn reading_standard_input_is_interrupted() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-podtap"));
    let mut child =
        command.args(["plan", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let pid = child.id().to_string();
    let catches_interrupts = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
        // The bit of a signal is its number less one (proc_pid_status(5)).
        u64::from_str_radix(caught.trim(), 16).expect("hexadecimal") & (1 << 1) != 0
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !catches_interrupts() {
        assert!(Instant::now() < deadline, "it catches SIGINT");
        thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill runs").success());
    // Open until here.
    let input = child.stdin.take();
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((code(&output), stderr(&output).as_str()), (130, "interrupted\n"));
    drop(input);
}
