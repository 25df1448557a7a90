use clap::Parser as _;
use serde_json::json;

use super::{
    report::{Creates, Report},
    rows::{Row, RowState},
    *,
};
use crate::{Cli, Verb};

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn tap(changes: &Value) -> Tap {
    let mut tap = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "t"},
        "spec": {"targets": {"podSelector": {"matchLabels": {"app": "web"}}}, "destinations": [{"pod": {"name": "ids-0", "interfaceName": "tap0"}}]},
    });
    change(&mut tap, changes);
    Tap::Namespaced(Box::new(read(tap)))
}

fn change(object: &mut Value, changes: &Value) {
    for (pointer, value) in changes.as_object().into_iter().flatten() {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        object.pointer_mut(parent).expect("a parent")[name] = value.clone();
    }
}

fn pod(name: &str, node: &str, changes: &Value) -> k8s_openapi::api::core::v1::Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running"},
    });
    change(&mut pod, changes);
    read(pod)
}

/// The destination `ids-0` on n3, and a policy with this spec.
fn known(policy: &Value) -> Known {
    let place = Place {
        name: "main".to_owned(),
        to: "pod shop/ids-0".to_owned(),
        node: Some("n3".to_owned()),
        pod: Some("ids-0".to_owned()),
        interface: Some("tap0".to_owned()),
        addresses: vec!["192.0.2.3".parse().expect("an address")],
        ..Place::default()
    };
    let around = Surroundings {
        nodes: Some(["n1", "n2", "n3"].map(|name| (name.to_owned(), read(json!({})))).into()),
        policy: Some(read(json!({"metadata": {"name": "default"}, "spec": policy}))),
        is_policy_known: true,
        node_taps: Some(vec![read(json!({
            "metadata": {"name": "n1"},
            "spec": {"taps": [{"namespace": "shop", "name": "other", "uid": "o", "direction": "Both", "destinations": []}]},
            "status": {"senders": [{"tapUid": "o", "podUid": "web-a", "interface": "eth0", "state": "Active", "reason": "AsExpected"}]},
        }))]),
        ..Surroundings::default()
    };
    Known { places: vec![place], around, pods: Some(Vec::new()), rivals: Some(Vec::new()), ..Known::default() }
}

fn states(report: &Report) -> Vec<(&str, &str)> {
    let state = |row: &Row| match &row.state {
        RowState::Ok => "ok",
        RowState::Pending(_) => "pending",
        RowState::Unknown(_) => "unknown",
        RowState::Refused(cause) => {
            podtap_model::Reason::ALL.iter().find(|r| r.as_str() == cause.reason).expect("known").as_str()
        }
    };
    report.rows().map(|row| (row.pod.as_str(), state(row))).collect::<Vec<_>>()
}

fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[test]
fn a_plan_for_people() {
    let networks =
        json!([{"name": "cni", "interface": "eth0", "default": true, "mtu": 1500}, {"name": "x", "interface": "net1"}]);
    let annotations = json!({"k8s.v1.cni.cncf.io/network-status": networks.to_string()});
    let pods = vec![
        pod("web-a", "n1", &json!({})),
        pod("web-b", "n2", &json!({"/metadata/annotations": annotations})),
        pod("web-c", "n3", &json!({})),
        pod("web-debug", "n2", &json!({"/spec/hostNetwork": true})),
        pod("ids-0", "n3", &json!({})),
    ];
    let report = Report::of(&tap(&json!({})), Known { pods: Some(pods), ..known(&json!({"underlayMTU": 1400})) });
    let page = |reason: &str| crate::exit::page_of(reason);
    assert_eq!(
        plain(&report.table()),
        format!(
            "PodTap shop/web would mirror 3 of 5 pods of shop (app=web), both directions, to pod shop/ids-0 on n3, interface tap0\n  \
             NODE   POD         DEVICE   MTU    ON WIRE                                 STATE\n  \
             n1     web-a       eth0     -      +50                                     ok\n  \
             n2     web-b       eth0     1500   +50, packets to 1550, clamped to 1400   ok\n  \
             n2     web-debug   -        -      -                                       refused: HostNetwork\n  \
             n3     ids-0       -        -      -                                       refused: DestinationIsTarget\n  \
             n3     web-c       -        -      local                                   ok\n\
             DestinationIsTarget: it is a destination of this tap. See {} (ids-0)\n\
             HostNetwork: it uses the network of its node, which cannot be tapped. See {} (web-debug)\n\
             Creates 3 sender devices, 1 receiver device, 1 VNI from 4096-15999999, helper pods on n2, n3.\n\
             On the wire, a frame is 50 bytes longer (VXLAN over IPv4). Beyond the path MTU, TCP is sent in shorter segments, and other \
             frames are sent in IP fragments.\n\
             Nothing was changed.\n",
            page("DestinationIsTarget"),
            page("HostNetwork"),
        )
    );
    assert_eq!(report.exit(false), Exit::Partly);
    assert!(report.short().ends_with("PodTap shop/web: 3 ok, 0 pending, 2 refused, 0 denials, 0 warnings\n"));
    let document = serde_json::to_value(&report).expect("JSON");
    assert_eq!(document["pods"][1]["wire"]["clampedTo"], 1400);
    assert_eq!((&document["pods"][0]["state"], &document["pods"][2]["reason"]), (&json!("ok"), &json!("HostNetwork")));
    assert_eq!(document["creates"]["helperPods"], json!(["n2", "n3"]));
}

#[test]
fn each_verdict_on_a_pod() {
    let states_of = |changes: &Value, tap: &Tap, policy: &Value| {
        let pods = vec![pod("web-a", "n1", changes)];
        let report = Report::of(tap, Known { pods: Some(pods), ..known(policy) });
        (states(&report).iter().map(|(_, state)| (*state).to_owned()).collect::<Vec<_>>(), report.exit(false))
    };
    let (plain, web) = (json!({}), tap(&json!({})));
    for (changes, tap, policy, expected, exit) in [
        (&plain, &web, json!({}), &["ok"][..], Exit::Done),
        (&json!({"/metadata/labels": {"app": "db"}}), &web, json!({}), &[], Exit::Refused),
        (&json!({"/spec/nodeName": null}), &web, json!({}), &["pending"], Exit::Done),
        (&json!({"/spec/nodeName": "n9"}), &web, json!({}), &["NodeNotFound"], Exit::Refused),
        (&plain, &web, json!({"suspendAll": true}), &["Suspended"], Exit::Refused),
        (&plain, &web, json!({"excludedNamespaces": ["shop"]}), &["NamespaceExcluded"], Exit::Refused),
        (&plain, &web, json!({"limits": {"tapsPerPod": 1}}), &["TooManyTaps"], Exit::Refused),
        (
            &plain,
            &self::tap(&json!({"/spec/targets": {"podNames": ["web-a", "web-z"]}})),
            json!({}),
            &["PodNotFound", "ok"],
            Exit::Partly,
        ),
    ] {
        let expected = expected.iter().map(|state| (*state).to_owned()).collect::<Vec<_>>();
        assert_eq!(states_of(changes, tap, &policy), (expected, exit), "{changes} {policy}");
    }
    // What it would do when it is resumed.
    let suspended = tap(&json!({"/spec/suspend": true}));
    let report = Report::of(&suspended, Known { pods: Some(vec![pod("web-a", "n1", &plain)]), ..known(&json!({})) });
    assert_eq!(
        (states(&report), report.exit(false), report.exit(true)),
        (vec![("web-a", "ok")], Exit::Done, Exit::Partly)
    );
}

#[test]
fn a_tap_that_exists_mirrors_what_the_nodes_report() {
    let report = |changes: &Value, policy: &Value| {
        let mut tap = tap(changes);
        let ready = json!({"type": "Ready", "status": "False", "reason": "NodeNotFound", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        if let Tap::Namespaced(tap) = &mut tap {
            (tap.status, tap.metadata.generation) = (Some(read(json!({"conditions": [ready]}))), Some(1));
        }
        let pods = ["web-a", "web-b"].map(|name| pod(name, "n1", &json!({}))).to_vec();
        Report::of(&tap, Known { exists: true, pods: Some(pods), ..known(policy) })
    };
    let begins = |report: &Report, words: &str| {
        let text = plain(&report.table());
        assert!(text.starts_with(words), "{words}: {text}");
    };
    // The sender in web-a is of the tap `o`.
    let other = report(&json!({}), &json!({}));
    assert_eq!(states(&other), [("web-a", "NodeNotFound"), ("web-b", "NodeNotFound")]);
    begins(&other, "PodTap shop/web mirrors 0 of 2 pods ");
    let own = report(&json!({"/metadata/uid": "o"}), &json!({"limits": {"tapsPerPod": 1}}));
    assert_eq!(states(&own), [("web-a", "ok"), ("web-b", "NodeNotFound")]);
    begins(&own, "PodTap shop/web mirrors 1 of 2 pods ");
    let suspended = report(&json!({"/spec/suspend": true}), &json!({}));
    assert_eq!(states(&suspended), [("web-a", "ok"), ("web-b", "ok")]);
    begins(&suspended, "PodTap shop/web would mirror 2 of 2 pods ");
    // Of one that is changed, the sender that it has does not count.
    let pods = || Some(vec![pod("web-a", "n1", &json!({}))]);
    let one = json!({"limits": {"tapsPerPod": 1}});
    let changed = Report::of(&tap(&json!({"/metadata/uid": "o"})), Known { pods: pods(), ..known(&one) });
    assert_eq!(states(&changed), [("web-a", "ok")]);
}

#[test]
fn an_impossible_mtu_is_ignored() {
    let mtu = |mtu: u32| {
        let networks = json!([{"interface": "eth0", "default": true, "mtu": mtu}]);
        let annotations = json!({"k8s.v1.cni.cncf.io/network-status": networks.to_string()});
        let pods = vec![pod("web-b", "n2", &json!({"/metadata/annotations": annotations}))];
        let report = Report::of(&tap(&json!({})), Known { pods: Some(pods), ..known(&json!({})) });
        report.rows().next().map(|row| (row.mtu, row.wire.longest_packet))
    };
    assert_eq!(mtu(65_535), Some((Some(65_535), Some(65_585))));
    for impossible in [65_536, u32::MAX] {
        assert_eq!(mtu(impossible), Some((None, None)), "{impossible}");
    }
}

#[test]
fn the_oldest_pods_are_tapped_up_to_the_limit() {
    let young = json!({"/metadata/creationTimestamp": "2026-02-01T00:00:00Z"});
    let pods = || vec![pod("a-young", "n1", &young), pod("b-old", "n1", &json!({}))];
    for (changes, policy) in
        [(json!({"/spec/targets/maxPods": 1}), json!({})), (json!({}), json!({"limits": {"targetsPerTap": 1}}))]
    {
        let report = Report::of(&tap(&changes), Known { pods: Some(pods()), ..known(&policy) });
        assert_eq!(states(&report), [("a-young", "TooManyPods"), ("b-old", "ok")]);
    }
}

#[test]
fn quotas_and_identifiers() {
    let pods = || Some(vec![pod("web-a", "n1", &json!({}))]);
    let other = |status: Value| {
        let mut other = tap(&json!({"/metadata/uid": "o", "/metadata/name": "other"}));
        if let Tap::Namespaced(tap) = &mut other {
            (tap.status, tap.metadata.generation) = (Some(read(status)), Some(1));
        }
        other
    };
    let reasons = |tap: &Tap, known: Known| {
        let report = Report::of(tap, Known { pods: pods(), ..known });
        assert_eq!(report.exit(false), if report.denials.is_empty() { Exit::Done } else { Exit::Refused });
        report.denials.into_iter().map(|denial| denial.cause.reason).collect::<Vec<_>>()
    };
    let one = || known(&json!({"limits": {"tapsPerNamespace": 1}}));
    let web = tap(&json!({}));
    let expired = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "Expired", "message": "", "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    assert_eq!(reasons(&web, Known { rivals: Some(vec![other(json!({}))]), ..one() }), ["TooManyTaps"]);
    assert_eq!(reasons(&web, Known { rivals: Some(vec![other(expired)]), ..one() }), [""; 0]);
    assert_eq!(reasons(&web, Known { rivals: Some(vec![tap(&json!({}))]), ..one() }), [""; 0], "itself");
    let with_vni = tap(&json!({"/spec/vxlan": {"vni": 5000}}));
    let of_range = |first: u32| known(&json!({"vniRange": {"first": first, "last": 6000}}));
    let holders = || vec![other(json!({"vni": 5001, "destinations": [{"name": "x", "vni": 5000, "ready": true}]}))];
    assert_eq!(reasons(&with_vni, of_range(5000)), [""; 0]);
    assert_eq!(reasons(&with_vni, of_range(5001)), ["NotAllowedByPolicy"]);
    assert_eq!(reasons(&with_vni, Known { vni_holders: holders(), ..of_range(5000) }), ["VNIInUse"]);
}

#[test]
fn destinations_that_cannot_be_used() {
    let pods = || Some(vec![pod("web-a", "n1", &json!({}))]);
    let refused = |known: Known| {
        let report = Report::of(&tap(&json!({})), Known { pods: pods(), ..known });
        let causes = report.destinations.iter().map(|place| place.refusal.clone().map(|cause| cause.reason));
        (causes.map(Option::unwrap_or_default).collect::<Vec<_>>(), report.exit(false))
    };
    let both = |second: Place| {
        let mut known = known(&json!({}));
        known.places.push(second);
        known
    };
    let address = |text: &str| vec![text.parse().expect("an address")];
    let fine = Place { is_external: true, addresses: address("192.0.2.10"), ..Place::default() };
    assert_eq!(refused(both(fine.clone())), (vec![String::new(), String::new()], Exit::Done));
    let cause = Cause { reason: "NodeNotFound".to_owned(), message: String::new() };
    let absent = Place { refusal: Some(cause), addresses: Vec::new(), ..fine.clone() };
    assert_eq!(
        refused(both(absent)),
        (vec![String::new(), "NodeNotFound".to_owned()], Exit::Partly),
        "the other one gets the frames"
    );
    let of_ipv6 = Place { addresses: address("2001:db8::1"), ..fine };
    assert_eq!(refused(both(of_ipv6)), (vec!["AddressFamilyMismatch".to_owned(); 2], Exit::Refused));
    let mut taken = known(&json!({}));
    taken.around.node_taps = Some(vec![read(json!({
        "metadata": {"name": "n3"},
        "spec": {"receivers": [{"tap": {"namespace": "shop", "name": "other", "uid": "o"}, "vni": 7, "port": 14789, "interfaceName": "tap0",
            "pod": {"namespace": "shop", "name": "ids-0", "uid": "ids-0"}}]},
    }))]);
    assert_eq!(refused(taken), (vec!["InterfaceNameConflict".to_owned()], Exit::Refused));
}

#[test]
fn what_may_not_be_read_is_a_warning() {
    let places = vec![Place { unread: Some("nodes, which tell their addresses"), ..Place::default() }];
    let report = Report::of(&tap(&json!({})), Known { places, ..Known::default() });
    assert_eq!((report.exit(false), report.exit(true)), (Exit::Done, Exit::Partly));
    assert_eq!(report.warnings.len(), 5, "{:?}", report.warnings);
    let text = plain(&report.table());
    assert!(
        text.starts_with("PodTap shop/web would mirror the pods of shop (app=web), both directions, to "),
        "{text}"
    );
    assert!(text.contains("helper pods on nodes that have none"), "{text}");
    assert_eq!(report.creates, Some(Creates { receivers: 1, vnis: 1, ..Creates::default() }));
}

#[test]
fn what_is_planned() {
    let parse = |words: &[&str]| Cli::try_parse_from(["kubectl-podtap", "plan"].iter().chain(words));
    for words in
        [&["web"][..], &["deploy/web", "--to", "node/n2"], &["-l", "app=web", "--to", "collector"], &["-f", "-"]]
    {
        assert!(parse(words).is_ok_and(|cli| matches!(cli.verb, Verb::Plan(_))), "{words:?}");
    }
    for words in [&["web", "--port", "443"][..], &["-l", "app=web"], &["-f", "a", "web"], &["-f", "a", "--rate", "1M"]]
    {
        assert!(parse(words).is_err(), "a flag would mean nothing: {words:?}");
    }
    let words = |words: &[&str]| existing(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    assert_eq!(words(&["cptap/all"]).expect("a tap").kind, Kind::ClusterPodTap);
    for wrong in [&[][..], &["deploy/web"], &["web", "deploy/web"]] {
        assert_eq!(words(wrong).expect_err("no tap").exit, Exit::Usage, "{wrong:?}");
    }
    let tap = "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\n";
    assert_eq!(object(tap).expect("a tap").0, Kind::PodTap);
    for wrong in ["", "kind: PodTap", "kind: Pod\napiVersion: v1", &format!("{tap}---\n{tap}"), "{"] {
        assert_eq!(object(wrong).expect_err("no tap").exit, Exit::Usage, "{wrong:?}");
    }
}
