use std::{
    io::{Read as _, Write as _},
    process::{Child, ChildStdin},
    sync::mpsc::{self, Receiver},
};

use super::*;

const HELPERS: &str = "/api/v1/namespaces/podtap-system/pods";

fn helper(node: &str, annotations: &Value, ready: &str) -> Value {
    json!({
        "metadata": {"name": format!("helper-{node}"), "annotations": annotations},
        "spec": {"nodeName": node, "containers": []},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    })
}

/// A cluster with a tap and these helper pods, whose ports may not be forwarded.
fn cluster(helpers: Vec<Value>) -> Server {
    Server::new(move |request| match request.target.split('?').next() {
        Some(TAPS) => list(&[tap("True", "AsExpected", &json!({}))]),
        Some(HELPERS) => list(&helpers),
        _ => error(403, "", ""),
    })
}

#[test]
fn a_missing_right_to_read_counters_is_named() {
    let server = cluster(vec![helper("n1", &json!({"podtap.dev/metrics-port": "14791"}), "True")]);
    for words in [&["top", "--once"][..], &["top"], &["top", "-o", "json"]] {
        let output = server.run(words);
        assert_eq!((code(&output), stdout(&output).as_str()), (5, ""), "{}", stderr(&output));
        assert!(stderr(&output).contains("get and create on pods/portforward"), "{}", stderr(&output));
    }
    let forwarded = server.requests().into_iter().find(|request| request.target.contains("portforward"));
    let target = forwarded.expect("a port is asked for").target;
    assert!(target.starts_with(&format!("{HELPERS}/helper-n1/portforward?")) && target.contains("14791"), "{target}");

    let server = Server::new(|request| match request.target.split('?').next() {
        Some(TAPS) => list(&[]),
        _ => error(403, "", "pods is forbidden: alice cannot list resource pods"),
    });
    let output = server.run(&["top", "--podtap-namespace", "other"]);
    assert!(code(&output) == 5 && stderr(&output).contains("cannot list resource pods"), "{}", stderr(&output));
    assert!(server.requests()[1].target.starts_with("/api/v1/namespaces/other/pods?"));
}

#[test]
fn nodes_without_counters_are_named() {
    let server = cluster(vec![helper("n1", &json!({}), "True"), helper("n2", &json!({}), "False")]);
    let output = server.run(&["top", "--once"]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let row = stdout(&output).lines().nth(1).map(|row| row.split_whitespace().collect::<Vec<_>>().join(" "));
    assert_eq!(row.as_deref(), Some("web-0 1/1 0 0 0 0 node/n2:mirror"), "{}", stdout(&output));
    for (node, why) in [("n1", "is of a version that serves no counters"), ("n2", "is not Ready")] {
        let warning = format!("warning: node {node} is missing: the pod helper-{node} {why}\n");
        assert!(stderr(&output).contains(&warning), "{}", stderr(&output));
    }
    let line = stdout(&server.run(&["top", "--once", "-o", "json"]));
    let document: Value = serde_json::from_str(&line).expect("a line of JSON");
    assert_eq!((&document["name"], &document["frames"], document.get("lost")), (&json!("web-0"), &json!(0), None));
}

#[test]
fn without_taps_there_is_no_table() {
    let server = Server::new(|_| list(&[]));
    let output = server.run(&["top"]);
    assert_eq!((code(&output), stdout(&output).as_str(), stderr(&output).as_str()), (0, "", "no taps found\n"));
    let output = server.run(&["top", "web", "-A"]);
    assert_eq!(code(&output), 2, "{}", stderr(&output));
}

#[test]
fn taps_that_cannot_be_read_are_warnings() {
    let server = Server::new(|request| match request.target.split('?').next() {
        Some("/apis/podtap.dev/v1alpha1/podtaps") => list(&[named("web-0"), unreadable()]),
        Some(HELPERS) => list(&[]),
        _ => error(403, "", "you may not"),
    });
    let output = server.run(&["top", "-A"]);
    let messages = stderr(&output);
    assert!(code(&output) == 3 && stdout(&output).contains("web-0"), "{messages}");
    assert!(messages.contains("warning: ClusterPodTaps are missing: you may not list them\n"), "{messages}");
    assert!(messages.contains("warning: strange cannot be read ("), "{messages}");
}

/// A tap of another version.
fn unreadable() -> Value {
    let mut tap = named("strange");
    tap["spec"] = json!({"targets": 1});
    tap
}

/// Runs it in a terminal of its own, and returns that, its keys and what it shows.
fn in_terminal(server: &Server, flags: &str) -> (Child, ChildStdin, Receiver<String>) {
    let script =
        format!("stty rows 24 cols 120; echo pid $$; exec {} top {flags}", env!("CARGO_BIN_EXE_kubectl-podtap"));
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &script, "/dev/null"])
        .env("KUBECONFIG", server.kubeconfig())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script(1) runs");
    let keys = terminal.stdin.take().expect("a pipe");
    let mut output = terminal.stdout.take().expect("a pipe");
    let (sender, screen) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            let _ = sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    });
    (terminal, keys, screen)
}

/// What a terminal shows until it has these words.
fn shown_until(screen: &Receiver<String>, words: &str) -> String {
    let mut shown = String::new();
    while !shown.contains(words) {
        shown += &screen.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("{words}: {shown:?}"));
    }
    shown
}

#[test]
fn nothing_is_printed_over_the_screen() {
    let server = Server::new(|request| match request.target.split('?').next() {
        Some(TAPS) => list(&[named("web-0"), unreadable()]),
        Some(HELPERS) => list(&[]),
        _ => error(403, "", ""),
    });
    let (mut terminal, mut keys, screen) = in_terminal(&server, "");
    let shown = shown_until(&screen, "sorted by rate");
    let (before, within) = shown.split_once("\u{1b}[?1049h").expect("a screen");
    assert!(!before.contains("strange") && within.contains("strange"), "{shown:?}");
    assert!(!within.contains("warning"), "{shown:?}");
    keys.write_all(b"q").expect("the terminal reads");
    assert_eq!(terminal.wait().expect("it ends").code(), Some(0));

    let (mut terminal, _keys, screen) = in_terminal(&server, "--verbose");
    assert_eq!(terminal.wait().expect("it ends").code(), Some(3));
    let shown: String = screen.iter().collect();
    assert!(shown.contains("web-0") && !shown.contains("\u{1b}[?1049h"), "{shown:?}");
}

/// However it ends, the terminal shows again what it did, with a cursor.
#[test]
fn the_terminal_is_restored() {
    let server = cluster(vec![helper("n1", &json!({}), "True")]);
    for (end, exit) in [("q", 0), ("\u{1b}", 0), ("\u{3}", 0), ("TERM", 130), ("HUP", 130), ("INT", 130)] {
        let (mut terminal, mut keys, screen) = in_terminal(&server, "");
        let mut shown = shown_until(&screen, "sorted by rate");
        assert!(shown.contains("\u{1b}[?1049h") && shown.contains("web-0"), "{shown:?}");
        if end.len() > 1 {
            let pid = shown.split_once("pid ").and_then(|(_, rest)| rest.split_whitespace().next()).expect("a PID");
            assert!(Command::new("kill").args(["-s", end, pid]).status().expect("kill runs").success());
        } else {
            keys.write_all(end.as_bytes()).expect("the terminal reads");
        }
        assert_eq!(terminal.wait().expect("it ends").code(), Some(exit), "{end:?}: {shown:?}");
        shown.extend(screen.iter());
        let (left, cursor) = ("\u{1b}[?1049l", "\u{1b}[?25h");
        assert!(shown.contains(left) && shown.contains(cursor), "{end:?}: {shown:?}");
    }
}
