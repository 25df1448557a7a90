//! Changes of an active tap leave no gap, and duplicate nothing.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use podtap_tests::{
    capture::Capture,
    cluster::{namespace_of_node, udp_socket},
    wait::until,
};

use crate::{
    options::{message, tap},
    packet::numbers,
    scene::{Scene, address, capture},
};

const PORT: u16 = 7000;
const OTHER_PORT: u16 = 7001;

/// Ends the load when dropped, also if the test fails meanwhile.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends numbered datagrams from the client to two ports of the web server while `meanwhile` runs, which can read their number so far.
/// Returns their number.
fn under_load(scene: &Scene, meanwhile: impl FnOnce(&AtomicU32)) -> u32 {
    let (web, client) = (scene.sandbox.network(&scene.web), scene.sandbox.network(&scene.client));
    let _sinks = [PORT, OTHER_PORT].map(|port| udp_socket(&web, port).expect("the port is free"));
    let socket = udp_socket(&client, 0).expect("a socket can be made");
    let (stop, sent, to) = (AtomicBool::new(false), AtomicU32::new(0), address(&scene.web));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let number = sent.load(Ordering::Relaxed);
                for port in [PORT, OTHER_PORT] {
                    socket.send_to(&number.to_be_bytes(), (to.as_str(), port)).expect("it can be sent");
                }
                sent.store(number + 1, Ordering::Relaxed);
                // The rate of the load.
                thread::sleep(Duration::from_micros(500));
            }
        });
        let _ending = Ending(&stop);
        meanwhile(&sent);
    });
    sent.into_inner()
}

/// Waits until more datagrams have been sent.
fn a_while(sent: &AtomicU32) {
    let before = sent.load(Ordering::Relaxed);
    until("datagrams are sent", Duration::from_secs(10), || {
        let now = sent.load(Ordering::Relaxed);
        if now > before + 200 { Ok(()) } else { Err(now) }
    });
}

/// Waits until every number from the first that arrived up to the last that was sent has arrived exactly once; returns the first.
#[track_caller]
fn each_once(receiver: &Capture, port: u16, sent: u32) -> u32 {
    // The last one sent need not be the last one to arrive: each core has its own queue.
    until("each datagram arrives once", Duration::from_secs(10), || {
        let seen = numbers(&receiver.so_far(), port);
        let first = *seen.keys().next().ok_or("none has arrived")?;
        let wrong: Vec<_> =
            (first..sent).map(|n| (n, seen.get(&n).copied().unwrap_or(0))).filter(|(_, times)| *times != 1).collect();
        let some = &wrong[..wrong.len().min(10)];
        if wrong.is_empty() { Ok(first) } else { Err(format!("{} not exactly once: {some:?}", wrong.len())) }
    })
}

#[test]
fn changes_leave_no_gap_and_duplicate_nothing() {
    let scene = Scene::new("change");
    let n2 = namespace_of_node(scene.sandbox.lab(), "n2");
    let include = format!("filter: {{include: [{{protocol: UDP, ports: [{{port: {PORT}}}]}}]}}");
    let variants = [
        String::new(),
        include.clone(),
        format!("filter: {{include: [{{ports: [{{port: 6990, endPort: {PORT}}}]}}], exclude: [{{protocol: ICMP}}]}}"),
        format!("filter: {{expression: udp dst port {PORT}}}"),
        "truncate: {bytes: 60}\n  oversize: Truncate".to_owned(),
        "limit: {packetsPerSecond: 1000000}\n  deduplicate: {}".to_owned(),
        include,
    ];
    let change = |interfaces: &str, variant: &str| {
        scene.sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
             targets: {{podNames: [web]}}\n  destinations: {interfaces}\n  {variant}\n"
        ));
        scene.sandbox.ready("web");
    };
    let one = "[{node: {name: n2, interfaceName: trt-change}}]";
    // Reversed: the destination that stays keeps its device and its VNI wherever it is in the list.
    let both =
        "[{name: more, node: {name: n2, interfaceName: trt-more}}, {node: {name: n2, interfaceName: trt-change}}]";
    change(one, &variants[0]);
    let receiver = capture(&n2, "trt-change");
    let mut more = None;
    let sent = under_load(&scene, |sent| {
        for variant in &variants {
            change(one, variant);
            a_while(sent);
        }
        change(both, &variants[1]);
        more = Some(capture(&n2, "trt-more"));
        a_while(sent);
        change(both, &variants[3]);
        a_while(sent);
        change(one, &variants[3]);
        a_while(sent);
    });
    assert_eq!(each_once(&receiver, PORT, sent), 0, "the first datagram arrives, too");
    // The other destination received everything from its first to its last datagram.
    let seen = numbers(&more.expect("it was there").so_far(), PORT);
    let (first, last) = (*seen.keys().next().expect("some"), *seen.keys().next_back().expect("some"));
    assert!(
        seen.len() > 400 && u32::try_from(seen.len()).expect("few") == last - first + 1,
        "{first} to {last}: {}",
        seen.len()
    );
    assert!(seen.values().all(|times| *times == 1));
    println!("{sent} datagrams, {} of them at the other destination", seen.len());
}

#[test]
fn a_wrong_expression_changes_nothing() {
    let scene = Scene::new("wrong");
    let apply = |expression: &str| {
        scene.sandbox.apply(&tap("web", "web", "trt-wrong", &format!("filter: {{expression: {expression:?}}}")));
    };
    // In a new tap: nothing is mirrored.
    apply(&format!("udp prot {PORT}"));
    let status = scene.sandbox.condition("web", "Ready", "False", "InvalidSpec").status.expect("a status");
    assert_eq!(status.tapped_pods, 0);
    let words = message(&scene.sandbox, "web", "Ready");
    assert!(
        words.contains(r#"libpcap reports: can't parse filter expression: syntax error at "prot", after "udp""#),
        "{words}"
    );

    apply(&format!("udp port {PORT}"));
    scene.sandbox.ready("web");
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "trt-wrong");
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        // In an active tap: the previous expression stays in effect.
        apply("udp port 70000");
        let status = scene.sandbox.condition("web", "Ready", "False", "InvalidSpec").status.expect("a status");
        assert_eq!(status.tapped_pods, 1);
        let words = message(&scene.sandbox, "web", "Ready");
        // The message of libpcap, as tcpdump prints it.
        assert!(words.contains("illegal port number 70000 > 65535"), "{words}");
        a_while(sent);
        assert!(numbers(&receiver.so_far(), OTHER_PORT).is_empty(), "only what the previous expression selects");
        apply(&format!("udp port {PORT} or udp port {OTHER_PORT}"));
        scene.sandbox.ready("web");
        a_while(sent);
    });
    assert_eq!(each_once(&receiver, PORT, sent), 0, "the first datagram arrives, too");
    assert!(each_once(&receiver, OTHER_PORT, sent) > 200, "the corrected expression selects more");
}
