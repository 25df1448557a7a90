//! The container's first process keeps the tap-helper running.

use std::{path::Path, time::Duration};

use podtap_model::Direction;
use podtap_tests::{net::traffic, wait::until};

use crate::scene::{Scene, TAP, VNI, desired, remote_endpoint, sender};

/// As often as in the review, when the kubelet's pauses between restarts had grown to minutes.
const KILLS: u32 = 31;

#[test]
fn a_killed_helper_serves_again_within_a_deadline_each_time() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    let tap = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    for restarts in 1..=KILLS {
        scene.helper.kill_child();
        traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[100; 4]);
        scene.agent = until("the helper serves again", Duration::from_secs(10), || scene.helper.try_agent());
        let status = scene.agent.establish(&tap);
        assert_eq!(status.helper_restarts, restarts);
    }
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
    assert_eq!(scene.helper.log().matches("CreateDevice").count(), 1, "the mirror was adopted each time");
    captures.same(&scene, |_| true);
    assert!(scene.helper.log().contains("signal=9"), "{}", scene.helper.log());
    // As before, for the kubelet.
    scene.helper.terminate();
}

#[test]
fn a_helper_ends_with_its_first_process() {
    let mut scene = Scene::new();
    let child = scene.helper.child().expect("the helper has a child");
    scene.helper.kill();
    let path = format!("/proc/{child}/exe");
    // A process that was not waited for has no program.
    let runs = || if Path::new(&path).read_link().is_ok() { Err("it is running") } else { Ok(()) };
    until("the child ends", Duration::from_secs(10), runs);
}

/// What the tap-helper cannot do is for the kubelet to report.
#[test]
fn a_helper_that_ends_by_itself_ends_the_first_process() {
    let node = podtap_tests::net::Node::new();
    let arguments = ["serve", "--socket", "/proc/none/tap-helper.sock", "--agent-uid", "1"];
    let (status, _, error) = podtap_tests::net::Helper::once(&node, &arguments, "");
    assert_eq!(status.code(), Some(1), "{error}");
    assert!(error.contains("cannot listen"), "{error}");
}
