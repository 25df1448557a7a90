//! Changes of an active tap leave no gap, and duplicate nothing.

use std::{collections::BTreeMap, time::Duration};

use podtap_tests::{cluster::namespace_of_node, wait::until};

use crate::{
    numbered::{OTHER_PORT, PORT, a_while, each_once, under_load},
    options::{message, tap},
    packet::numbers,
    scene::{Scene, capture},
};

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
        "limit: {bytesPerFlow: 1Gi}\n  deduplicate: {handshakes: Both}".to_owned(),
        "limit: {bytesPerFlow: 512Mi}".to_owned(),
        "truncate: {headersOnly: true, exemptBytes: 1048576}".to_owned(),
        "truncate: {bytes: 60, exemptBytes: 100000}".to_owned(),
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

/// Each datagram arrives at the old destination or at the new one, and at neither twice.
#[test]
fn a_destination_is_replaced_without_a_gap() {
    let scene = Scene::new("move");
    let lab = scene.sandbox.lab();
    let to = |node: &str, interface: &str| {
        scene.sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  targets: {{podNames: [web]}}\n  \
             destinations: [{{node: {{name: {node}, interfaceName: {interface}}}}}]\n"
        ));
        scene.sandbox.ready("web");
    };
    to("n2", "trt-move0");
    let mut captures = vec![capture(&namespace_of_node(lab, "n2"), "trt-move0")];
    let sent = under_load(&scene, |sent| {
        for (node, interface) in [("n1", "trt-move1"), ("n2", "trt-move2")] {
            a_while(sent);
            // From its first frame: the interface exists before anything is sent to it.
            let network = namespace_of_node(lab, node);
            captures.push(std::thread::scope(|scope| {
                let capturing = scope.spawn(|| capture(&network, interface));
                to(node, interface);
                capturing.join().expect("the interface appears")
            }));
            a_while(sent);
        }
    });
    let overlap = until("each datagram arrives", Duration::from_secs(10), || {
        let seen = captures.iter().map(|capture| numbers(&capture.so_far(), PORT));
        let all: BTreeMap<u32, Vec<usize>> = seen.flatten().fold(BTreeMap::new(), |mut all, (number, times)| {
            all.entry(number).or_default().push(times);
            all
        });
        let missing: Vec<u32> = (0..sent).filter(|number| !all.contains_key(number)).collect();
        let repeated: Vec<u32> =
            all.iter().filter(|(_, times)| times.iter().any(|t| *t > 1)).map(|(n, _)| *n).collect();
        let overlap = all.values().filter(|times| times.len() > 1).count();
        if (missing.len(), repeated.len()) == (0, 0) {
            Ok(overlap)
        } else {
            Err(format!("missing: {missing:?}, repeated at one destination: {repeated:?}"))
        }
    });
    println!("{sent} datagrams, {overlap} of them at two destinations");
    // While one destination is added and the other is removed: two requests to the kernel.
    assert!(overlap < 100, "{overlap}");
}
