//! Faults of the control plane, with traffic flowing: nothing is lost that should stay.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use podtap_api::{NodeTap, PodTap};
use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE, in_network, namespace_of_node, traces},
    wait::until,
};

use crate::{
    changes::{apply_change, exclude},
    controller::leader,
    etcd,
    numbered::{PORT, a_while, each_once, under_load},
    processes::{Stopped, runs},
    scene::{Scene, capture, tap},
};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Four times as long as a lease of the controller lasts, and longer than the agents and the controller pause between attempts.
const OUTAGE: Duration = Duration::from_secs(60);

/// It comes back with an empty cache, and with no history: what watched before has to list again.
#[test]
fn without_the_api_server_mirrors_run_and_are_repaired() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("api-down");
    tap(&scene.sandbox, "n2", "flt-api");
    let network = scene.sandbox.network(&scene.web);
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "flt-api");
    let filters = || in_network(&network, &["tc", "filter", "show", "dev", "eth0", "egress"]);
    assert!(filters().contains("podtap_egress"), "{}", filters());
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        let start = Instant::now();
        let stopped = Stopped::new("cp", "[ \"$(cat $p/comm)\" = kube-apiserver ]");
        a_while(sent);
        // The datagrams arrive at the other hook.
        in_network(&network, &["tc", "filter", "del", "dev", "eth0", "egress"]);
        until("the filter is repaired", Duration::from_secs(5), || {
            if filters().contains("podtap_egress") { Ok(()) } else { Err(filters()) }
        });
        until("the outage has lasted", OUTAGE * 2, || match OUTAGE.checked_sub(start.elapsed()) {
            Some(left) if !left.is_zero() => Err(format!("{left:?} left")),
            _ => Ok(()),
        });
        etcd::compact();
        stopped.kill();
        apply_change(&scene, 1);
        a_while(sent);
    });
    assert_eq!(each_once(&receiver, PORT, sent), 0, "the first datagram arrives, too");
    until("the tap is Ready", TIMEOUT, || {
        let status = scene.sandbox.tap("web").status.unwrap_or_default();
        let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready").ok_or("no condition")?;
        if ready.status == "True" { Ok(()) } else { Err("not yet") }
    });
}

/// A leader that is stopped, and continued when another one leads, changes nothing.
#[test]
fn a_leader_that_was_stopped_changes_nothing() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("two-leaders");
    let lab = scene.sandbox.lab();
    tap(&scene.sandbox, "n2", "flt-lead");
    let receiver = capture(&namespace_of_node(lab, "n2"), "flt-lead");
    let first = leader().expect("one leads");
    let pod: Pod = lab.get(PODTAP_NAMESPACE, &first).expect("the leader is a pod");
    let uid = pod.uid().expect("a stored pod has a UID");
    let node = match pod.spec.and_then(|spec| spec.node_name).as_deref() {
        Some("n1") => "n1",
        Some("n2") => "n2",
        other => panic!("the leader is on {other:?}"),
    };
    let escaped = uid.replace('-', "_");
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        let stopped =
            Stopped::new(node, &format!("grep -q -e {uid} -e {escaped} $p/cgroup && {}", runs("/podtap-controller")));
        // What the first one may have planned already is done.
        scene
            .sandbox
            .kubectl(&["patch", "podtap", "web", "--type=merge", "-p", &exclude(1).to_string()], "")
            .expect("it can be changed");
        until("another one leads", TIMEOUT, || match leader() {
            Some(leader) if leader != first => Ok(()),
            other => Err(format!("{other:?}")),
        });
        (2..5).for_each(|port| apply_change(&scene, port));
        let generation = |node: &str| {
            let nodes: Vec<NodeTap> = lab.list_all();
            nodes.into_iter().find(|object| object.name_any() == node).and_then(|object| object.metadata.generation)
        };
        let before = [generation("n1"), generation("n2")];
        let restarts = || {
            let pod: Option<Pod> = lab.get(PODTAP_NAMESPACE, &first);
            let statuses = pod.and_then(|pod| pod.status?.container_statuses).unwrap_or_default();
            statuses.iter().map(|status| status.restart_count).sum::<i32>()
        };
        let restarted = restarts();
        drop(stopped);
        // It ends when it notices that it has lost the lease, and the kubelet restarts it.
        until("the first one notices that it leads no more", TIMEOUT, || match restarts() {
            count if count > restarted => Ok(()),
            count => Err(format!("{count} restarts")),
        });
        a_while(sent);
        assert_eq!([generation("n1"), generation("n2")], before);
        assert_ne!(leader(), Some(first.clone()));
    });
    assert_eq!(each_once(&receiver, PORT, sent), 0, "the first datagram arrives, too");
}

/// A tap that is changed by eight clients, as fast as the API server takes it: no frame is lost, and the last change counts.
#[test]
fn a_tap_is_changed_all_the_time() {
    const CLIENTS: u16 = 8;
    const CHANGES: u16 = 100;
    const LAST: u16 = CLIENTS * CHANGES + 1;
    let scene = Scene::new("changes");
    let lab = scene.sandbox.lab();
    tap(&scene.sandbox, "n2", "flt-fast");
    let receiver = capture(&namespace_of_node(lab, "n2"), "flt-fast");
    let taps: Api<PodTap> = Api::namespaced(lab.client(), scene.sandbox.namespace());
    let mut rate = 0.0;
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        let start = Instant::now();
        let change = |port: u16| {
            let patch = Patch::Merge(exclude(port));
            lab.wait(taps.patch("web", &PatchParams::default(), &patch)).expect("it can be changed");
        };
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                scope.spawn(move || (1..=CHANGES).for_each(|number| change(client * CHANGES + number)));
            }
        });
        rate = f64::from(CLIENTS * CHANGES) / start.elapsed().as_secs_f64();
        apply_change(&scene, LAST);
        a_while(sent);
    });
    println!("{rate:.0} changes per second");
    assert_eq!(each_once(&receiver, PORT, sent), 0, "the first datagram arrives, too");
    scene.sandbox.ready("web");
}

/// The definition of `PodTap`, which other tests need. It is there again when this is dropped.
struct Definition;

impl Definition {
    fn restore() -> Result<(), String> {
        let lab = Cluster::lab();
        let chart = lab.top().join("deploy/chart/podtap");
        let chart = chart.to_str().ok_or("a path that is not UTF-8")?;
        lab.helm(&["upgrade", "podtap", chart, "--reuse-values", "--wait", "--timeout", "120s"])?;
        let established = ["wait", "--for=condition=Established", "crd/podtaps.podtap.dev", "--timeout=60s"];
        lab.kubectl(&established, "").map(drop)
    }
}

impl Drop for Definition {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Err(message) = Self::restore()
        {
            eprintln!("there is no PodTap any more: {message}");
        }
    }
}

/// Deleting the definition deletes its taps, and they end as others do. With the definition, everything works again.
#[test]
fn taps_end_with_their_definition_and_can_be_created_with_the_next_one() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("definition");
    let lab = scene.sandbox.lab();
    tap(&scene.sandbox, "n2", "flt-crd");
    let networks = [scene.sandbox.network(&scene.web), namespace_of_node(lab, "n2")];
    let left = || networks.iter().flat_map(|network| traces(network)).collect::<Vec<_>>();
    assert_ne!(left(), [""; 0], "this check sees the tap");
    // By pod: those of helper pods that end meanwhile do not count.
    let restarts = || -> BTreeMap<Option<String>, i32> {
        let pods: Vec<Pod> = lab.list(PODTAP_NAMESPACE);
        let count = |pod: &Pod| {
            let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            (pod.metadata.uid.clone(), statuses.map(|status| status.restart_count).sum())
        };
        pods.iter().map(count).collect()
    };
    let before = restarts();
    let _definition = Definition;
    lab.kubectl(&["delete", "crd", "podtaps.podtap.dev", "--timeout=60s"], "").expect("its taps end");
    assert_eq!(left(), [""; 0], "nothing is left of the tap");

    Definition::restore().expect("it can be created again");
    tap(&scene.sandbox, "n2", "flt-crd");
    let restarted = |(pod, count): (Option<String>, i32)| before.get(&pod).is_some_and(|before| *before != count);
    assert!(!restarts().into_iter().any(restarted), "nothing had to be restarted: {before:?}, now {:?}", restarts());
    let receiver = capture(&networks[1], "flt-crd");
    let sent = under_load(&scene, a_while);
    assert_eq!(each_once(&receiver, PORT, sent), 0, "the first datagram arrives, too");
}
