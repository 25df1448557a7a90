//! Progress for other programs, and at a terminal.

use super::*;

#[test]
fn every_message_is_an_object() {
    let server = with_tap(tap("False", "NoProbeFromNode", &json!({})));
    let output = server.run(&[&CREATE[..], &["--wait", "1s", "--progress", "json"]].concat());
    assert_eq!((code(&output), stdout(&output).as_str()), (124, "podtap.podtap.dev/web-0 created\n"));
    let messages: Vec<Value> = stderr(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let types: Vec<_> = messages.iter().map(|message| message["type"].as_str().expect("a type")).collect();
    assert_eq!(types, ["progress", "error"], "{messages:?}");
    assert_eq!(messages[0]["message"], "waiting for Ready (NoProbeFromNode): why [0 s]");
    assert!(messages[1]["seconds"].as_u64().expect("a number") >= 1, "{messages:?}");
    // Another program cannot answer a question, even at a terminal.
    let output = server.run(&[&CREATE[..], &["--max-pods", "33", "--progress", "json"]].concat());
    assert_eq!(code(&output), 2);
    let message: Value = serde_json::from_str(&stderr(&output)).expect("JSON");
    assert!(
        message["type"] == "error" && message["message"].as_str().expect("text").contains("confirm with -y"),
        "{message}"
    );
    assert_eq!(
        stderr(&server.run(&[&CREATE[..], &["--wait", "1s", "--progress", "json", "-q"]].concat())).lines().count(),
        1
    );
}

/// What the program writes at a terminal, which util-linux's script makes.
fn at_a_terminal(server: &Server, words: &str) -> String {
    let program = env!("CARGO_BIN_EXE_kubectl-podtap");
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{program} {words}"), "/dev/null"]);
    command.env("KUBECONFIG", server.kubeconfig()).env("TERM", "xterm").stdin(Stdio::null());
    stdout(&command.output().expect("script runs"))
}

#[test]
fn a_step_is_shown_at_a_terminal_until_it_is_over() {
    let server = with_tap(tap("False", "NoProbeFromNode", &json!({})));
    let words = [&CREATE[..], &["--wait", "1s"]].concat().join(" ");
    let text = at_a_terminal(&server, &words);
    let (step, after) = text.rsplit_once("waiting for Ready (NoProbeFromNode)").expect("a step");
    assert!(step.matches("waiting for").count() > 2, "it spins: {text:?}");
    // It is erased before the error.
    let (between, _) = after.split_once("error:").expect("an error");
    assert!(between.contains("\u{1b}[2K") && !between.contains('\n'), "{text:?}");
    let text = at_a_terminal(&server, &format!("{words} --progress lines"));
    assert_eq!(text.matches("waiting for").count(), 1, "{text:?}");
    assert!(!text.contains("\u{1b}[2K"), "{text:?}");
}
