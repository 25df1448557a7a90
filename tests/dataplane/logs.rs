//! What the tap-helper logs for people.

use std::time::Duration;

use podtap_model::Direction;
use podtap_tests::{net::Helper, wait::until};

use crate::scene::{Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

#[test]
fn a_step_is_one_line_with_names() {
    let mut scene = Scene::new();
    let endpoints = [local_endpoint(VNI)];
    let request =
        desired(vec![sender(TAP, &scene.web, Direction::Both, &endpoints)], vec![receiver(TAP, VNI, "mirror0")]);
    scene.agent.establish(&request);
    scene.agent.establish(&desired(vec![], vec![]));
    let log = scene.helper.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(" INFO ")).collect();
    for line in &lines {
        // RFC 3339, in UTC.
        let time = line.split_whitespace().next().unwrap_or_default();
        assert!(time.len() > 19 && time.as_bytes()[10] == b'T' && time.ends_with('Z'), "{line}");
        assert!(line.len() < 250 && !line.contains('{') && !line.contains("namespace="), "{line}");
    }
    let pod = scene.web.model();
    let named = |step: &str, of: &str| lines.iter().any(|line| line.contains(step) && line.contains(of));
    let of_pod = format!("of=\"pod {}/{} under PodTap ", pod.namespace, pod.name);
    assert!(named("step=prepare the eBPF programs", &of_pod), "{log}");
    assert!(named("step=mirror the ingress of interface ", &of_pod), "{log}");
    assert!(named("step=create the interface ", "of=\"receiver mirror0 of PodTap "), "{log}");
}

/// It is all that the tap-helper writes: without space for it, the tap-helper works, and comes back after it was killed.
#[test]
fn a_log_that_cannot_be_written_is_no_obstacle() {
    let mut scene = Scene::new();
    scene.helper.kill();
    scene.helper = Helper::with_a_full_log(&scene.node);
    scene.agent = scene.helper.agent();
    let captures = scene.tap_to_remote(Direction::Both);
    scene.traffic();
    scene.helper.kill_child();
    scene.agent = until("the helper serves again", Duration::from_secs(10), || scene.helper.try_agent());
    scene.web.network().run("tc filter del dev eth0 egress");
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    scene.traffic();
    captures.same(&scene, |_| true);
}
