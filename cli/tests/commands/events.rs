//! The events that `explain` tells.

use super::*;

#[test]
fn the_newest_events_of_a_tap() {
    let event = |reason: &str, minute: u8| {
        json!({"metadata": {}, "involvedObject": {}, "type": "Warning", "reason": reason, "message": "m",
            "eventTime": format!("2026-01-01T00:{minute:02}:00.000000Z")})
    };
    let server = Server::new(move |request| match request.target.split('?').next().unwrap_or_default() {
        path if path.ends_with("/podtaps/web-0") => Answer::Object(200, tap("True", "AsExpected", &json!({}))),
        "/api/v1/namespaces/shop/events" => list(&[event("First", 1), event("Last", 2)]),
        _ => error(403, "", "you may not"),
    });
    let text = stdout(&server.run(&["explain", "web-0", "--events", "1"]));
    assert!(text.contains("events\n") && text.contains("Last ") && !text.contains("First "), "{text}");
    let document: Value =
        serde_json::from_slice(&server.run(&["explain", "web-0", "-o", "json"]).stdout).expect("JSON");
    assert_eq!((&document["events"][0]["reason"], &document["events"][1]["reason"]), (&json!("Last"), &json!("First")));
    let asked = |server: &Server| server.requests().into_iter().find(|request| request.target.contains("/events?"));
    let target = asked(&server).expect("events are asked for").target;
    assert!(
        target.contains("involvedObject.kind%3DPodTap%2CinvolvedObject.name%3Dweb-0%2CinvolvedObject.uid%3Dt"),
        "{target}"
    );

    let server = Server::new(|request| match request.target.split('?').next().unwrap_or_default() {
        path if path.ends_with("/podtaps/web-0") => Answer::Object(200, tap("True", "AsExpected", &json!({}))),
        _ => error(403, "", "you may not"),
    });
    assert!(stdout(&server.run(&["explain", "web-0"])).contains("events: you may not list them"));
    let before = server.requests().len();
    let output = server.run(&["explain", "web-0", "--events", "0"]);
    assert!(code(&output) == 0 && !stdout(&output).contains("events"), "{}", stdout(&output));
    assert!(server.requests()[before..].iter().all(|request| !request.target.contains("/events?")));
}
