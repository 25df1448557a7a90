//! The helper pods: their privileges, their lifetime, and their failures.

use std::{path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use podtap_api::NodeTap;
use podtap_tests::{
    capture::Capture,
    cluster::{Cluster, PODTAP_NAMESPACE, in_network, namespace_of_node},
    net::Network,
    wait::until,
};

use crate::{
    processes::pids,
    scene::{Scene, capture, same_traffic, tap},
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// User and group of the agent.
const AGENT_UID: &str = "2000014789";

/// The helper pod of a node, if it has one. One that is being deleted does not count.
pub fn helper_of(node: &str) -> Option<Pod> {
    let pods: Vec<Pod> = Cluster::lab().list(PODTAP_NAMESPACE);
    pods.into_iter().find(|pod| {
        let spec = pod.spec.as_ref().expect("a pod has a spec");
        let is_helper = spec.host_network == Some(true) && spec.node_name.as_deref() == Some(node);
        is_helper && pod.metadata.deletion_timestamp.is_none()
    })
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Lines of `/proc/PID/status` of each process that runs `program`, and of what it has of a service account's token.
fn statuses_of(node: &str, program: &str) -> Vec<String> {
    let status = |pid: String| {
        let script = format!(
            "cat /proc/{pid}/status; ls -A /proc/{pid}/root/var/run/secrets/kubernetes.io 2>&1 | sed 's/^/token /'"
        );
        Cluster::lab().on_node(node, &script).expect("the node runs")
    };
    pids(node, program).into_iter().map(status).collect()
}

#[test]
fn each_container_has_exactly_its_privileges() {
    let scene = Scene::new("privileges");
    tap(&scene.sandbox, "n2", "hlp-priv");
    let helpers = statuses_of("n1", "/tap-helper serve");
    assert_eq!(helpers.len(), 2, "the container's first process, and the one that it starts");
    let agents = statuses_of("n1", "/podtap-agent run");
    let [agent] = &agents[..] else { panic!("{agents:?}") };
    // Bits of include/uapi/linux/capability.h: NET_ADMIN 12, NET_RAW 13, SYS_PTRACE 19, SYS_ADMIN 21, BPF 39.
    let expected: u64 = 1 << 12 | 1 << 13 | 1 << 19 | 1 << 21 | 1 << 39;
    let field = |status: &str, name: &str| -> String {
        let line =
            status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
        line[name.len()..].trim().to_owned()
    };
    for helper in &helpers {
        assert_eq!(u64::from_str_radix(&field(helper, "CapEff:"), 16), Ok(expected));
        assert_eq!(u64::from_str_radix(&field(helper, "CapBnd:"), 16), Ok(expected));
        assert!(!helper.contains("token serviceaccount"), "the tap-helper has no token: {helper}");
    }
    assert_eq!(u64::from_str_radix(&field(agent, "CapEff:"), 16), Ok(0));
    assert_eq!(u64::from_str_radix(&field(agent, "CapBnd:"), 16), Ok(0));
    for status in helpers.iter().chain([agent]) {
        assert_eq!(field(status, "Seccomp:"), "2", "a seccomp filter is active");
    }
    assert_eq!(field(agent, "Uid:"), [AGENT_UID; 4].join("\t"));
    assert_eq!(field(agent, "NoNewPrivs:"), "1");
    assert!(agent.contains("token serviceaccount"), "the agent has the token: {agent}");
    let pod = helper_of("n1").expect("the node has work").spec.expect("a pod has a spec");
    assert_eq!(pod.containers.len(), 2);
    for container in &pod.containers {
        let security = container.security_context.clone().unwrap_or_default();
        assert_ne!(security.privileged, Some(true), "{}", container.name);
        assert_eq!(security.read_only_root_filesystem, Some(true), "{}", container.name);
    }
}

/// The agent sees the processes of its node. A user may read the files of its own processes through `/proc`, tokens included.
#[test]
fn the_agents_user_reads_no_tokens_and_no_other_user_reads_the_agents() {
    let scene = Scene::new("agent-uid");
    tap(&scene.sandbox, "n2", "hlp-uid");
    // The user of distroless' images, and a token as most pods have one.
    scene.sandbox.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: nonroot}\nspec:\n  nodeName: n1\n  \
         terminationGracePeriodSeconds: 0\n  securityContext: {runAsUser: 65532, runAsGroup: 65532}\n  containers:\n  - {name: main, \
         image: 'podtap.dev/busybox:1', imagePullPolicy: Never, command: [sleep, '65532']}\n",
    );
    scene.sandbox.running("nonroot");
    let process = |program: &str| format!("/proc/{}", pids("n1", program).first().expect("it runs"));
    let (pod, agent) = (process("sleep 65532"), process("/podtap-agent run"));
    let read = |user: &str, process: &str| {
        let token = format!("{process}/root/var/run/secrets/kubernetes.io/serviceaccount/token");
        let user = format!("setpriv --reuid={user} --regid={user} --clear-groups --bounding-set=-all --inh-caps=-all");
        scene.sandbox.lab().on_node("n1", &format!("{user} cat {token}"))
    };
    assert!(read("65532", &pod).is_ok_and(|token| token.starts_with("ey")), "the check sees a token");
    for (user, process) in [(AGENT_UID, &pod), ("65532", &agent), (AGENT_UID, &agent)] {
        let denied = read(user, process).expect_err("the kernel denies it");
        assert!(denied.contains("Permission denied"), "{denied}");
    }
}

#[test]
fn a_helper_that_is_killed_leaves_the_mirror_running_and_adopts_it() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("killed");
    tap(&scene.sandbox, "n2", "hlp-kill");
    let network = scene.sandbox.network(&scene.web);
    crate::scene::as_on_the_wire(&network, "eth0");
    crate::scene::as_on_the_wire(&scene.sandbox.network(&scene.client), "eth0");
    let index = |network: &PathBuf| in_network(network, &["sh", "-c", "ip -o link show type vxlan | cut -d: -f1"]);
    let before = index(&network);
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "hlp-kill");
    let pod = Capture::start(&network, "eth0");
    for program in ["/tap-helper serve", "/podtap-agent run"] {
        let killed = pids("n1", program);
        scene.sandbox.lab().on_node("n1", &format!("kill -9 {}", killed.join(" "))).expect("they can be killed");
        scene.traffic();
        until("it is started again", TIMEOUT, || {
            let now = pids("n1", program);
            let is_up = now.len() == killed.len() && !now.iter().any(|pid| killed.contains(pid));
            if is_up { Ok(()) } else { Err(format!("{now:?}; {killed:?} were killed")) }
        });
        scene.traffic();
    }
    scene.sandbox.ready("web");
    assert_eq!(index(&network), before, "the device is the same one");
    same_traffic(pod, receiver, |_| true);
}

/// Processes that are stopped look alive, but answer nobody who asks them. The kubelet does, and restarts their containers.
#[test]
fn programs_that_hang_are_restarted_and_the_mirror_keeps_running() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("hung");
    tap(&scene.sandbox, "n2", "hlp-hung");
    let network = scene.sandbox.network(&scene.web);
    crate::scene::as_on_the_wire(&network, "eth0");
    crate::scene::as_on_the_wire(&scene.sandbox.network(&scene.client), "eth0");
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "hlp-hung");
    let pod = Capture::start(&network, "eth0");
    until("the helper pod is Ready", TIMEOUT, || helper_of("n1").filter(is_ready).ok_or("not yet"));
    let before = helper_of("n1").and_then(|pod| pod.metadata.uid);
    let pids = |program: &str| pids("n1", program);
    let programs = ["/tap-helper serve", "/podtap-agent run"];
    let stopped = programs.map(pids);
    assert!(stopped.iter().all(|pids| !pids.is_empty()), "{stopped:?}");
    scene.sandbox.lab().on_node("n1", &format!("kill -STOP {}", stopped.concat().join(" "))).expect("they run");
    scene.traffic();
    // Three probes of the tap-helper go without an answer, and its container has five seconds to end.
    for (program, stopped) in programs.into_iter().zip(&stopped) {
        until(&format!("{program} is restarted"), Duration::from_secs(120), || {
            let now = pids(program);
            let restarted = !now.is_empty() && now.iter().all(|pid| !stopped.contains(pid));
            if restarted { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }
    until("the helper pod is Ready again", TIMEOUT, || helper_of("n1").filter(is_ready).ok_or("not yet"));
    assert_eq!(helper_of("n1").and_then(|pod| pod.metadata.uid), before, "the same pod");
    // What it applies now, it applies itself: a change that none of the traffic notices.
    let change = r#"{"spec":{"filter":{"exclude":[{"protocol":"SCTP"}]}}}"#;
    scene.sandbox.kubectl(&["patch", "podtap", "web", "--type=merge", "-p", change], "").expect("a tap can be changed");
    until("n1 has applied the change", TIMEOUT, || {
        let nodes: Vec<NodeTap> = Cluster::lab().list_all();
        let node = nodes.into_iter().find(|node| node.name_any() == "n1").ok_or("no NodeTap")?;
        let observed = node.status.as_ref().and_then(|status| status.observed_generation);
        let taps = &node.spec.0.taps;
        let is_sent = taps.iter().any(|tap| tap.namespace == scene.sandbox.namespace() && tap.options.filter.is_some());
        if is_sent && observed == node.metadata.generation { Ok(()) } else { Err("not yet") }
    });
    scene.sandbox.ready("web");
    scene.traffic();
    same_traffic(pod, receiver, |_| true);
}

/// `kubectl delete` waits for the pod that it deletes. A successor of the same name would keep it waiting.
#[test]
fn all_helper_pods_can_be_deleted_at_once_and_others_take_over() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("deleted");
    tap(&scene.sandbox, "n2", "hlp-del");
    let pod_network = scene.sandbox.network(&scene.web);
    crate::scene::as_on_the_wire(&pod_network, "eth0");
    crate::scene::as_on_the_wire(&scene.sandbox.network(&scene.client), "eth0");
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "hlp-del");
    let sent = Capture::start(&pod_network, "eth0");
    for _ in 0..3 {
        let before = ["n1", "n2"].map(|node| helper_of(node).expect("the node has work").metadata);
        let all = ["-n", PODTAP_NAMESPACE, "delete", "pod", "-l", "app.kubernetes.io/component=helper"];
        let now = [&all[..], &["--now", "--timeout=60s"]].concat();
        scene.sandbox.lab().kubectl(&now, "").expect("it returns when the pods have ended");
        scene.traffic();
        for (node, before) in ["n1", "n2"].into_iter().zip(before) {
            let next = until("the node has a helper pod that is Ready", TIMEOUT, || {
                helper_of(node).filter(is_ready).ok_or("none")
            });
            assert!(next.metadata.uid != before.uid, "another pod");
            assert_ne!(next.metadata.name, before.name, "a name of its own");
        }
    }
    scene.sandbox.ready("web");
    scene.traffic();
    same_traffic(sent, receiver, |_| true);
}

#[test]
fn what_is_removed_by_hand_comes_back() {
    let scene = Scene::new("drift");
    tap(&scene.sandbox, "n2", "hlp-drift");
    let pod = Network::open(&scene.sandbox.network(&scene.web));
    let node = Network::open(&namespace_of_node(scene.sandbox.lab(), "n2"));
    let uid = scene.sandbox.tap("web").metadata.uid.expect("a stored tap has a UID");
    let own = node.devices_of(&uid);
    assert!(own.contains(&"hlp-drift".to_owned()), "{own:?}");
    // Other tests have receivers on that node as well.
    let is_own = |line: &String| line.split(' ').nth(1).is_some_and(|device| own.iter().any(|name| name == device));
    let state = || {
        let on_node = node.full_state().into_iter().filter(is_own);
        pod.full_state().into_iter().chain(on_node).collect::<Vec<_>>()
    };
    pod.wait_for_carrier();
    node.wait_for_carrier();
    let before = state();
    let device = pod.vxlan_devices()[0].clone();
    for (network, command) in [
        (&pod, format!("ip link del {device}")),
        (&pod, "tc filter del dev eth0 ingress".to_owned()),
        (&pod, "tc qdisc del dev eth0 clsact".to_owned()),
        (&node, "ip link del hlp-drift".to_owned()),
    ] {
        network.run(&command);
        until(&format!("the tap is repaired after {command}"), Duration::from_secs(5), || {
            let now = state();
            if now == before { Ok(()) } else { Err(format!("{}\ninstead of\n{}", now.join("\n"), before.join("\n"))) }
        });
    }
    let arrives = capture(node.path(), "hlp-drift");
    let sent = Capture::start(pod.path(), "eth0");
    crate::scene::as_on_the_wire(pod.path(), "eth0");
    crate::scene::as_on_the_wire(&scene.sandbox.network(&scene.client), "eth0");
    scene.traffic();
    same_traffic(sent, arrives, |_| true);
}
