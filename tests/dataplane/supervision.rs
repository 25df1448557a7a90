//! The container's first process keeps the tap-helper running.

use std::{fs, path::Path, thread, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
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

/// A field of `/proc/PID/status`.
fn status(pid: i32, field: &str) -> Result<String, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| error.to_string())?;
    let value = |line: &str| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned());
    status.lines().find_map(value).ok_or(status)
}

/// A child that dies before it can handle the signal, as in its first milliseconds, is not started again.
#[test]
fn a_request_to_end_is_not_lost_with_the_child() {
    let mut scene = Scene::new();
    let child = scene.helper.child().expect("the helper has a child");
    kill(Pid::from_raw(child), Signal::SIGSTOP).expect("it is running");
    // Before, it would take the next signal first, whose number is lower.
    until("the child is stopped", Duration::from_secs(10), || match status(child, "State")? {
        state if state.starts_with('T') => Ok(()),
        state => Err(state),
    });
    let killed = thread::spawn(move || {
        until("the signal is passed on", Duration::from_secs(10), || {
            let pending = status(child, "ShdPnd")?;
            let signals = u64::from_str_radix(&pending, 16).unwrap_or_default();
            if signals & (1 << (Signal::SIGTERM as u32 - 1)) == 0 { Err(pending) } else { Ok(()) }
        });
        kill(Pid::from_raw(child), Signal::SIGKILL).expect("it is stopped");
    });
    scene.helper.terminate();
    killed.join().expect("the child was killed");
    assert!(!scene.helper.log().contains("is restarted"), "{}", scene.helper.log());
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
