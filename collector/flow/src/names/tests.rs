use super::*;

fn pod(uid: &str, address: &str, started: u64, ended: Option<u64>) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: uid.into(),
        uid: uid.into(),
        addresses: vec![address.parse().expect("an address")],
        node: None,
        host_network: false,
        workload: Workload { kind: "Deployment".into(), name: uid.into(), api_version: String::new() },
        labels: BTreeMap::new().into(),
        end_is_estimate: false,
        started: Timestamp::from_seconds(started),
        ended: ended.map(Timestamp::from_seconds),
    }
}

fn owner(names: &Names, address: &str, second: u64) -> Option<String> {
    match names.owner(address.parse().expect("an address"), Timestamp::from_seconds(second)) {
        Owner::Pod(pod) => Some(pod.name.clone()),
        Owner::Service(service) => Some(format!("service {}", service.name)),
        Owner::Node(node) => Some(format!("node {}", node.name)),
        Owner::External(network) => network.map(|network| network.name().into_owned()),
    }
}

#[test]
fn an_address_is_of_the_pod_that_had_it_then() {
    let mut names = Names::default();
    names.set_pod(pod("first", "10.0.0.9", 10, Some(20)));
    names.set_pod(pod("second", "10.0.0.9", 30, None));
    for (second, expected) in [(7, None), (8, Some("first")), (22, Some("first")), (25, None), (31, Some("second"))] {
        assert_eq!(owner(&names, "10.0.0.9", second).as_deref(), expected, "{second}");
    }
    names.expire(Timestamp::from_seconds(25 + 1800));
    assert_eq!(owner(&names, "10.0.0.9", 15), None, "it is forgotten");
    assert_eq!(owner(&names, "10.0.0.9", 1000).as_deref(), Some("second"));
}

#[test]
fn a_pod_that_changes_is_replaced() {
    let mut names = Names::default();
    names.set_pod(pod("web", "10.0.0.9", 10, None));
    names.set_pod(pod("web", "10.0.0.10", 10, None));
    assert_eq!((owner(&names, "10.0.0.9", 11), owner(&names, "10.0.0.10", 11).as_deref()), (None, Some("web")));
}

#[test]
fn pods_of_the_node_s_network_have_no_address() {
    let mut names = Names::default();
    names.set_node(Node { name: "n1".into(), addresses: vec!["192.168.0.1".parse().expect("an address")], zone: None });
    names.set_pod(Pod { host_network: true, ..pod("agent", "192.168.0.1", 0, None) });
    assert_eq!(owner(&names, "192.168.0.1", 1).as_deref(), Some("node n1"));
}

#[test]
fn the_smallest_network_names_an_external_address() {
    let network = |text: &str| text.parse().expect("a network");
    let networks =
        vec![(network("192.0.2.0/24"), "offices".to_owned()), (network("192.0.2.128/25"), "Berlin".to_owned())];
    let names = Names::new(Objects { networks, ..Objects::default() });
    assert_eq!(owner(&names, "192.0.2.1", 0).as_deref(), Some("offices"));
    assert_eq!(owner(&names, "192.0.2.200", 0).as_deref(), Some("Berlin"));
    assert_eq!(owner(&names, "198.51.100.1", 0), None);
}

#[test]
fn services_know_their_ports_and_backends() {
    let mut names = Names::default();
    names.set_pod(pod("web", "10.0.0.9", 10, None));
    let address: IpAddr = "10.96.0.5".parse().expect("an address");
    let backend = |address: &str, from: u64, until: Option<u64>| Backend {
        address: address.parse().expect("an address"),
        from: Timestamp::from_seconds(from),
        until: until.map(Timestamp::from_seconds),
    };
    let port = Port { name: None, port: 80, protocol: None, target_port: Some(8080), node_port: Some(30080) };
    let node: IpAddr = "192.168.0.1".parse().expect("an address");
    names.set_node(Node { name: "n1".into(), addresses: vec![node], zone: None });
    names.set_service(Service {
        namespace: "shop".into(),
        name: "web".into(),
        addresses: vec![address],
        ports: vec![port],
        backends: vec![backend("10.0.0.9", 20, None), backend("10.0.0.8", 0, Some(10))],
    });
    assert!(names.service(address, 80, packet::UDP).is_none() && names.service(address, 81, packet::TCP).is_none());
    let (service, _) = names.service(address, 80, packet::TCP).expect("it has this port");
    let backends = |second: u64| names.backends(service, Timestamp::from_seconds(second)).count();
    assert_eq!((backends(5), backends(15), backends(25)), (1, 0, 1));
    assert!(names.backends(service, Timestamp::from_seconds(25)).all(|pod| pod.is_some_and(|pod| pod.name == "web")));
    assert!(names.backends(service, Timestamp::from_seconds(5)).all(|pod| pod.is_none()), "it had no pod then");
    assert!(names.serves("10.0.0.9".parse().expect("an address"), 8080, packet::TCP));
    assert_eq!(
        names.service(node, 30080, packet::TCP).map(|(service, port)| (&*service.name, port.port)),
        Some(("web", 80))
    );
    assert!(names.service(node, 80, packet::TCP).is_none() && names.service(node, 30080, packet::UDP).is_none());
    assert!(names.service(address, 30080, packet::TCP).is_none(), "only nodes have it");
    let key = ("shop".to_owned(), "web".to_owned());
    names.remove_service(key, Timestamp::from_seconds(30));
    assert!(names.service(address, 80, packet::TCP).is_some(), "its last flows are still to be reported");
    names.expire(Timestamp::from_seconds(31 + 1800));
    assert!(names.service(address, 80, packet::TCP).is_none() && names.service(node, 30080, packet::TCP).is_none());
    assert!(!names.serves("10.0.0.9".parse().expect("an address"), 8080, packet::TCP));
}

#[test]
fn of_two_pods_the_older_one_has_the_address_until_it_ends() {
    let mut names = Names::default();
    names.set_pod(pod("first", "10.0.0.9", 10, Some(40)));
    names.set_pod(pod("second", "10.0.0.9", 30, None));
    for (second, expected) in [(35, "first"), (40, "first"), (41, "second")] {
        assert_eq!(owner(&names, "10.0.0.9", second).as_deref(), Some(expected), "{second}");
    }
    // Where its end is not known, the younger one has the address as soon as it exists.
    for ended in [None, Some(50)] {
        names.set_pod(Pod { end_is_estimate: true, ..pod("first", "10.0.0.9", 10, ended) });
        for (second, expected) in [(25, "first"), (35, "second"), (60, "second")] {
            assert_eq!(owner(&names, "10.0.0.9", second).as_deref(), Some(expected), "{second}");
        }
    }
}

#[test]
fn a_pod_that_was_deleted_before_its_end_has_its_address_until_the_next_one_starts() {
    let mut names = Names::default();
    names.set_pod(Pod { end_is_estimate: true, ..pod("first", "10.0.0.9", 10, Some(20)) });
    for (second, expected) in [(20, Some("first")), (30, Some("first")), (31, None)] {
        assert_eq!(owner(&names, "10.0.0.9", second).as_deref(), expected, "{second}");
    }
    names.set_pod(pod("second", "10.0.0.9", 22, None));
    for (second, expected) in [(20, "first"), (21, "first"), (22, "second"), (40, "second")] {
        assert_eq!(owner(&names, "10.0.0.9", second).as_deref(), Some(expected), "{second}");
    }
}

#[test]
fn only_the_last_owner_of_an_address_or_the_next_one_can_have_it() {
    let mut names = Names::default();
    names.set_pod(Pod { end_is_estimate: true, ..pod("first", "10.0.0.9", 10, Some(20)) });
    names.set_pod(pod("second", "10.0.0.9", 22, Some(24)));
    names.set_pod(pod("third", "10.0.0.9", 101, None));
    for (second, expected) in
        [(21, Some("first")), (26, Some("second")), (27, None), (98, None), (99, Some("third")), (101, Some("third"))]
    {
        assert_eq!(owner(&names, "10.0.0.9", second).as_deref(), expected, "{second}");
    }
}

#[test]
fn a_pod_with_another_address_had_the_former_one_until_then() {
    let mut names = Names::default();
    names.apply(Update::Pod(pod("web", "10.0.0.1", 10, None)), Timestamp::from_seconds(11));
    names.apply(Update::Pod(pod("web", "10.0.0.2", 10, None)), Timestamp::from_seconds(50));
    assert_eq!(owner(&names, "10.0.0.1", 40).as_deref(), Some("web"));
    assert_eq!(owner(&names, "10.0.0.1", 61), None);
    assert_eq!(owner(&names, "10.0.0.2", 60).as_deref(), Some("web"));
}

#[test]
fn backends_outlive_a_restart_of_the_program_that_watches_them() {
    let service = |backends: Vec<Backend>| {
        let (namespace, name) = ("shop".to_owned(), "web".to_owned());
        Update::Service(Service { namespace, name, addresses: Vec::new(), ports: Vec::new(), backends })
    };
    let backend = |address: &str, from: u64, until: Option<u64>| Backend {
        address: address.parse().expect("an address"),
        from: Timestamp::from_seconds(from),
        until: until.map(Timestamp::from_seconds),
    };
    let mut names = Names::default();
    let first = vec![backend("10.0.0.1", 10, None), backend("10.0.0.2", 10, None), backend("10.0.0.3", 5, Some(8))];
    names.apply(service(first), Timestamp::from_seconds(11));
    // It knows only what is, and since when it watches.
    names.apply(service(vec![backend("10.0.0.1", 90, None)]), Timestamp::from_seconds(100));
    let key = ("shop".to_owned(), "web".to_owned());
    let mut found = names.services[&key].backends.clone();
    found.sort_by_key(|backend| backend.address);
    let expected = [backend("10.0.0.1", 10, None), backend("10.0.0.2", 10, Some(100)), backend("10.0.0.3", 5, Some(8))];
    assert_eq!(found, expected);
}

#[test]
fn what_is_not_listed_again_was_deleted() {
    let now = Timestamp::from_seconds(100);
    let service = |name: &str, address: &str| Service {
        namespace: "shop".into(),
        name: name.into(),
        addresses: vec![address.parse().expect("an address")],
        ports: Vec::new(),
        backends: Vec::new(),
    };
    let node = |name: &str, address: &str| Node {
        name: name.into(),
        addresses: vec![address.parse().expect("an address")],
        zone: None,
    };
    let mut names = Names::default();
    let first = [
        Update::Pod(pod("kept", "10.0.0.1", 1, None)),
        Update::Pod(pod("gone", "10.0.0.2", 1, None)),
        Update::Service(service("kept", "10.96.0.1")),
        Update::Service(service("gone", "10.96.0.2")),
        Update::Node(node("kept", "192.168.0.1")),
        Update::Node(node("gone", "192.168.0.2")),
    ];
    let again = first.iter().step_by(2).cloned();
    let updates = [Update::Listing].into_iter().chain(first.clone()).chain([Update::Listed, Update::Listing]);
    for update in updates.chain(again).chain([Update::Listed]) {
        let line = serde_json::to_string(&update).expect("it can be written");
        names.apply(serde_json::from_str(&line).expect("it can be read"), now);
    }
    for (address, expected) in [("10.0.0.1", "kept"), ("10.96.0.1", "service kept"), ("192.168.0.1", "node kept")] {
        assert_eq!(owner(&names, address, 101).as_deref(), Some(expected));
    }
    assert_eq!(owner(&names, "10.0.0.2", 111), None);
    assert_eq!(owner(&names, "10.0.0.2", 99).as_deref(), Some("gone"), "its flows are still named");
    assert_eq!(owner(&names, "10.96.0.2", 101).as_deref(), Some("service gone"), "likewise");
    names.expire(Timestamp::from_seconds(101 + 1800));
    for address in ["10.0.0.2", "10.96.0.2", "192.168.0.2"] {
        assert_eq!(owner(&names, address, 101), None);
    }
}
