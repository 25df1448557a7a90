//! `map` against an API server that records its requests.

use super::*;

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
