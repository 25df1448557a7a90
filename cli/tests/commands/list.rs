//! `list` against an API server that records its requests.

use super::*;

#[test]
fn a_list_is_the_table_of_the_api_server() {
    let server = Server::new(|_| Answer::Object(200, table(&[&["web", "True", "fine"], &["db", "False", "why"]])));
    let output = server.run(&["list"]);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (0, "NAME   READY\nweb    True\ndb     False\n"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        stdout(&server.run(&["ls", "-o", "wide"])),
        "NAME   READY   MESSAGE\nweb    True    fine\ndb     False   why\n"
    );
    assert!(stdout(&server.run(&["list", "-A"])).starts_with("NAMESPACE   NAME   READY\nshop        web    True\n"));
    let requests = server.requests();
    assert!(requests[0].headers["accept"].contains("as=Table"), "{requests:?}");
    assert_eq!(requests[0].target, format!("{TAPS}?"));
    assert_eq!(requests[2].target, "/apis/podtap.dev/v1alpha1/podtaps?");
}

#[test]
fn an_empty_list_is_no_data() {
    let server = Server::new(|_| Answer::Object(200, table(&[])));
    let output = server.run(&["list", "-l", "app=web"]);
    assert_eq!(
        (code(&output), stdout(&output).as_str(), stderr(&output).as_str()),
        (0, "", "no PodTap in the namespace shop\n")
    );
    assert_eq!(stderr(&server.run(&["list", "-q"])), "");
    assert_eq!(server.requests()[0].target, format!("{TAPS}?&labelSelector=app%3Dweb"));
}
