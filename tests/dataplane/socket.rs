//! The helper's socket: who may connect, and which messages it accepts.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, time::Duration};

use podtap_model::{Direction, Request, Response};
use podtap_tests::{
    net::{AGENT_UID, Agent, Helper},
    wait::until,
};

use crate::scene::{Scene, TAP, VNI, desired, remote_endpoint, sender};

#[test]
fn only_the_agent_may_connect() {
    let mut scene = Scene::new();
    let mode = std::fs::metadata(scene.helper.socket()).expect("the socket exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    // Neither owner nor group: the mode of the file forbids it.
    assert!(Agent::connect(scene.helper.socket(), 1000).is_err());
    // Root may open the file, but the helper closes the connection.
    let mut root = Agent::connect(scene.helper.socket(), 0).expect("root may open the file");
    let request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    let line = serde_json::to_string(&Request::Apply(request.update())).expect("JSON");
    // Whether this fails depends on timing.
    let _ = root.send_bytes(format!("{line}\n").as_bytes());
    assert!(root.receive().is_err(), "the connection is closed without a response");
    // Nor does the user of another program, whatever the mode of the file.
    let directory = scene.helper.socket().parent().expect("a socket is in a directory");
    for path in [directory, scene.helper.socket()] {
        std::fs::set_permissions(path, Permissions::from_mode(0o777)).expect("root may change it");
    }
    let mut other = Agent::connect(scene.helper.socket(), 1000).expect("everyone may open the file now");
    let _ = other.send_bytes(format!("{line}\n").as_bytes());
    assert!(other.receive().is_err(), "the connection is closed without a response");
    until("the refused peer is logged", Duration::from_secs(5), || {
        let log = scene.helper.log();
        if log.contains("peer refused") { Ok(()) } else { Err(log) }
    });
    assert!(scene.web.network().vxlan_devices().is_empty());
    // The previous connection still works.
    scene.agent.establish(&request);
}

/// The kubelet restarts a helper that does not answer.
#[test]
fn a_helper_that_hangs_does_not_answer_a_probe() {
    let mut scene = Scene::new();
    let request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    scene.agent.establish(&request);
    let socket = scene.helper.socket().display().to_string();
    let probe = || {
        let (status, _, log) = Helper::once(&scene.node, &["probe", "--socket", &socket], "");
        (status.success(), log)
    };
    for _ in 0..3 {
        assert_eq!(probe(), (true, String::new()));
    }
    scene.helper.stop();
    let (alive, log) = probe();
    assert!(!alive && log.contains("has not answered"), "{log}");
    scene.helper.resume();
    assert_eq!(probe(), (true, String::new()));
    assert!(!scene.helper.log().contains("peer refused"), "a probe is no news");
    // The agent's connection is the same one.
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("the sender is removed", |report| report.senders.is_empty());
    scene.helper.kill();
    let (status, _, log) = Helper::once(&scene.node, &["probe", "--socket", &socket], "");
    assert!(!status.success() && log.contains("cannot connect"), "{log}");
}

/// An agent that restarts replaces its previous connection, and gets a report at once.
#[test]
fn the_newest_agent_is_served() {
    let mut scene = Scene::new();
    let request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    scene.agent.establish(&request);
    let mut next = Agent::connect(scene.helper.socket(), AGENT_UID).expect("the helper listens");
    let Ok(Response::Report(report)) = next.receive() else { panic!("a report comes first") };
    assert_eq!((report.status.observed_generation, report.status.senders.len()), (Some(1), 1));
    assert!(scene.agent.receive().is_err(), "the old connection is closed");
    next.request(&desired(vec![], vec![]));
    next.until("the sender is removed", |report| report.senders.is_empty());
}

#[test]
fn messages_that_cannot_be_decoded_change_nothing() {
    let mut scene = Scene::new();
    let request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    scene.agent.establish(&request);
    for line in [
        "\u{0}",
        "[]",
        "{}",
        r#"{"apply": {"generation": 2, "spec": {}, "command": "rm"}}"#,
        r#"{"apply": {"generation": 2}}"#,
        r#"{"apply": {"generation": 2, "spec": null}}"#,
        r#"{"apply": {"generation": 2, "spec": {"senders": "none"}}}"#,
        r#"{"purge": {}}"#,
    ] {
        scene.agent.send_bytes(format!("{line}\n").as_bytes()).expect("the message is sent");
        assert!(matches!(scene.agent.receive(), Ok(Response::Rejected(_))), "{line}");
    }
    assert_eq!(scene.web.network().vxlan_devices().len(), 1);
    // An endless message is rejected; one in several parts is not.
    let line = serde_json::to_string(&Request::Apply(desired(vec![], vec![]).update())).expect("JSON");
    let (head, tail) = line.split_at(20);
    scene.agent.send_bytes(head.as_bytes()).expect("the message is sent");
    scene.agent.send_bytes(format!("{tail}\n").as_bytes()).expect("the message is sent");
    scene.agent.until("the sender is removed", |report| report.senders.is_empty());
    let mut endless = scene.helper.agent();
    let chunk = vec![b' '; 1 << 20];
    let refused = (0..6).any(|_| endless.send_bytes(&chunk).is_err());
    let answers = [endless.receive(), endless.receive()];
    assert!(refused || answers.iter().any(|answer| matches!(answer, Ok(Response::Rejected(_)) | Err(_))));
    scene.agent = scene.helper.agent();
    scene.agent.establish(&request);
}
