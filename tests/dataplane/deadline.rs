//! Mirrors stop by themselves when the API server no longer confirms them, and when their tap expires; not a moment sooner.

use std::time::{Duration, Instant};

use podtap_model::{DesiredUpdate, Direction, Reason, Renewal, State, UnixTime};
use podtap_tests::{
    capture::{Capture, Frame},
    net::{Desired, Helper, NODE_TAP, now, traffic},
    wait::until,
};
use serde_json::Value;

use crate::scene::{Captures, Scene, TAP, VNI, desired, receiver, remote_endpoint, sender};

/// Generous, since a busy machine makes everything late.
const PATIENCE: Duration = Duration::from_secs(20);

/// One tap, whose mirror runs for so many seconds after each confirmation.
fn request(scene: &Scene, orphan_timeout: u32) -> Desired {
    let sender = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    Desired { orphan_timeout_seconds: Some(orphan_timeout), ..desired(vec![sender], vec![]) }
}

/// Establishes a receiver, and the senders.
fn establish(scene: &mut Scene, request: &Desired) -> Captures {
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene.agent.establish(request);
    Captures::start(&scene.web, scene.remote.network(), "mirror0")
}

fn renewal() -> Renewal {
    Renewal { uid: NODE_TAP.to_owned(), now: now() }
}

/// An update as an agent sends it again when the helper was restarted and the API server cannot be reached.
fn sent_again(request: &Desired) -> DesiredUpdate {
    DesiredUpdate { now: None, ..request.update() }
}

fn later(time: UnixTime, seconds: i64) -> UnixTime {
    UnixTime::from_seconds(i64::try_from(time.seconds()).expect("the year is not that late") + seconds)
}

/// Frames that left the pod and were handed to the sender device, as the kernel's filter counts them.
fn mirrored(scene: &Scene) -> u64 {
    let mirrors = scene.web.network().mirrors("eth0");
    mirrors.iter().filter(|mirror| mirror.hook == "egress").map(|mirror| mirror.packets).sum()
}

/// Whether pings to the pod are mirrored. All of them are answered.
fn is_mirrored(scene: &Scene) -> bool {
    let before = mirrored(scene);
    traffic::ping(&scene.client, scene.web.addresses[0], 56, 2);
    mirrored(scene) > before
}

/// Payload of the pings that must not be mirrored: no other frame is as long.
const MARKER: usize = 1001;

/// Checks that the mirror has stopped, and that the pod's traffic is not affected.
#[track_caller]
fn assert_stopped(scene: &Scene) {
    let before = mirrored(scene);
    scene.traffic();
    traffic::ping(&scene.client, scene.web.addresses[0], MARKER, 3);
    assert_eq!(mirrored(scene), before, "nothing is mirrored");
}

/// Checks that the mirror runs, and that what [`assert_stopped`] sent before never arrived.
#[track_caller]
fn assert_runs(scene: &Scene, receiver: &Capture) {
    let with = |size: usize| move |frame: &Frame| frame.bytes.len() == 42 + size;
    let before = receiver.count(with(MARKER + 1));
    traffic::ping(&scene.client, scene.web.addresses[0], MARKER + 1, 3);
    until("the mirror runs", PATIENCE, || {
        let found = receiver.count(with(MARKER + 1)) - before;
        if found == 6 { Ok(()) } else { Err(format!("{found} frames")) }
    });
    assert_eq!(receiver.count(with(MARKER)), 0, "a frame was mirrored while the mirror had stopped");
}

#[track_caller]
fn until_stopped(scene: &Scene) {
    until("the mirror stops", PATIENCE, || if is_mirrored(scene) { Err("it runs") } else { Ok(()) });
}

#[track_caller]
fn until_reason(scene: &mut Scene, state: State, reason: Reason) -> String {
    let status = scene.agent.until(reason.as_str(), |status| {
        status.senders.iter().any(|sender| (sender.state, sender.reason) == (state, reason))
    });
    status.senders.into_iter().find(|sender| sender.reason == reason).map(|sender| sender.message).unwrap_or_default()
}

fn seconds_left(scene: &Scene) -> u64 {
    let (status, output, error) = Helper::once(&scene.node, &["inspect"], "");
    assert!(status.success(), "{error}");
    let found: Value = serde_json::from_str(&output).expect("inspect prints JSON");
    assert_eq!(found[0]["drift"], Value::Array(vec![]));
    found[0]["devices"][0]["secondsLeft"].as_u64().unwrap_or_else(|| panic!("no deadline: {found:#}"))
}

/// Everything that could renew the mirror is gone. The pod does not notice when it stops.
#[test]
fn a_mirror_without_a_helper_stops_at_its_deadline() {
    let mut scene = Scene::new();
    let request = request(&scene, 3);
    let captures = establish(&mut scene, &request);
    assert_runs(&scene, &captures.receiver);
    scene.helper.kill();
    until_stopped(&scene);
    assert_stopped(&scene);
    assert_eq!(scene.web.network().mirrors("eth0").len(), 2, "nothing was removed");

    // Neither a new helper nor its agent have the API server's word.
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.apply(sent_again(&request));
    let message = until_reason(&mut scene, State::Pending, Reason::NotRenewed);
    assert!(message.contains("has not confirmed it for 3 seconds"), "{message}");
    assert_eq!(seconds_left(&scene), 0);
    assert_stopped(&scene);
    let expired = scene.agent.counters(1).senders[0].ingress.expect("the direction is mirrored").expired;
    assert!(expired.frames > 0 && expired.bytes > 0, "{expired:?}");

    // The API server is back.
    scene.agent.renew(renewal());
    until_reason(&mut scene, State::Active, Reason::AsExpected);
    assert_runs(&scene, &captures.receiver);
    assert_eq!(scene.helper.log().matches("LoadPrograms").count(), 1, "the same programs");
}

/// Longer than the timeout in all, but never for more than half of it without a renewal.
#[test]
fn helpers_that_are_restarted_within_half_the_timeout_lose_no_frame() {
    let mut scene = Scene::new();
    let timeout = Duration::from_secs(10);
    let request = request(&scene, 10);
    let captures = establish(&mut scene, &request);
    let start = Instant::now();
    while start.elapsed() < timeout + timeout / 5 {
        let renewed = Instant::now();
        scene.helper.kill();
        traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[100; 20]);
        scene.helper = Helper::start(&scene.node);
        scene.agent = scene.helper.agent();
        traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
        // The first update that the API server confirms renews; one that is sent again does not.
        scene.agent.apply(sent_again(&request));
        scene.agent.establish(&request);
        assert!(renewed.elapsed() < timeout / 2, "this machine is too slow for this test");
    }
    assert_eq!(scene.helper.log().matches("LoadPrograms").count(), 1, "the same programs");
    captures.same(&scene, |_| true);
}

#[test]
fn renewals_keep_a_mirror_running_and_change_nothing_else() {
    let mut scene = Scene::new();
    let request = request(&scene, 4);
    let captures = establish(&mut scene, &request);
    let (programs, log) = (scene.web.network().programs("eth0"), scene.helper.log());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        scene.agent.renew(renewal());
        traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[100; 20]);
        traffic::ping(&scene.client, scene.web.addresses[0], 56, 3);
    }
    assert!(!scene.agent.has_message(), "a renewal changes no status");
    assert_eq!((scene.web.network().programs("eth0"), scene.helper.log()), (programs, log));
    let receiver = Capture::start(scene.remote.network().path(), "mirror0");
    scene.agent.renew(renewal());
    captures.same(&scene, |_| true);

    // A helper that lives, with an agent that lives, renews nothing by itself; and another NodeTap is not this one.
    scene.agent.renew(Renewal { uid: "another".to_owned(), now: now() });
    until_reason(&mut scene, State::Pending, Reason::NotRenewed);
    assert_stopped(&scene);
    scene.agent.renew(renewal());
    until_reason(&mut scene, State::Active, Reason::AsExpected);
    assert_runs(&scene, &receiver);
}

/// The helper removes a tap that has expired, without a controller. A renewal does not revive it.
#[test]
fn an_expired_tap_is_removed() {
    let mut scene = Scene::new();
    let clean = scene.web.network().snapshot();
    let mut request = request(&scene, 600);
    let expiration = later(now(), 5);
    request.senders[0].tap.expiration_time = Some(expiration);
    request.senders.push(sender("tap-b", &scene.web, Direction::Ingress, &[remote_endpoint(VNI + 1)]));
    let captures = establish(&mut scene, &request);
    assert_eq!(scene.web.network().mirrors("eth0").len(), 3);
    assert_runs(&scene, &captures.receiver);
    let message = until_reason(&mut scene, State::Refused, Reason::Expired);
    assert_eq!(message, format!("The tap expired at {expiration}."));
    assert!(now() >= expiration, "not sooner");
    assert_eq!(scene.web.network().mirrors("eth0").len(), 1, "the other tap stays");
    scene.agent.renew(renewal());
    assert_stopped(&scene);

    // The next helper establishes nothing.
    scene.helper.kill();
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.request(&request);
    until_reason(&mut scene, State::Refused, Reason::Expired);
    assert_eq!(scene.web.network().mirrors("eth0").len(), 1);
    // With another expiration time, it is a tap again.
    request.senders[0].tap.expiration_time = Some(later(now(), 600));
    request.generation += 1;
    scene.agent.establish(&request);
    assert_runs(&scene, &captures.receiver);
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("everything is removed", |status| status.senders.is_empty());
    assert_eq!(clean.differences(&scene.web.network().snapshot()), [""; 0]);
}

#[test]
fn a_tap_expires_without_a_helper() {
    let mut scene = Scene::new();
    let mut request = request(&scene, 600);
    request.senders[0].tap.expiration_time = Some(later(now(), 4));
    let captures = establish(&mut scene, &request);
    assert_runs(&scene, &captures.receiver);
    scene.helper.kill();
    until_stopped(&scene);
    assert_stopped(&scene);
}

/// The clock of the API server is an hour behind or ahead of the node's, which changes nothing.
#[test]
fn only_the_clock_of_the_api_server_counts() {
    let mut scene = Scene::new();
    let mut request = request(&scene, 600);
    let captures = establish(&mut scene, &request);
    for offset in [-3600, 3600] {
        let api_clock = || later(now(), offset);
        let mut apply = |scene: &mut Scene, left| {
            request.generation += 1;
            request.senders[0].tap.expiration_time = Some(later(api_clock(), left));
            scene.agent.apply(DesiredUpdate { now: Some(api_clock()), ..request.update() });
        };
        apply(&mut scene, 500);
        until_reason(&mut scene, State::Active, Reason::AsExpected);
        let shown = seconds_left(&scene);
        assert!((300..=500).contains(&shown), "{shown} seconds left, with an offset of {offset}");
        assert_runs(&scene, &captures.receiver);
        scene.agent.renew(Renewal { now: api_clock(), ..renewal() });
        assert_runs(&scene, &captures.receiver);
        apply(&mut scene, 3);
        until_reason(&mut scene, State::Refused, Reason::Expired);
        assert_eq!(scene.web.network().mirrors("eth0").len(), 0);
    }
}
