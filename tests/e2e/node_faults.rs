//! Faults of a node's resources, with traffic flowing.

use std::time::Duration;

use podtap_tests::{
    cluster::{Cluster, in_network, namespace_of_node},
    wait::until,
};

use crate::{
    changes::apply_change,
    numbered::{PORT, a_while, each_once, under_load},
    processes::{pids, tap_helper},
    scene::{Scene, capture, tap},
};

const TIMEOUT: Duration = Duration::from_secs(60);

fn on_n1(script: &str) -> String {
    Cluster::lab().on_node("n1", script).unwrap_or_else(|message| panic!("{script}: {message}"))
}

/// The OOM killer kills the tap-helper, because its container has reached its limit.
#[test]
fn a_tap_helper_that_runs_out_of_memory_is_restarted_and_the_mirror_keeps_running() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("memory");
    tap(&scene.sandbox, "n2", "nod-oom");
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "nod-oom");
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        let helper = tap_helper("n1");
        // A process of the container's cgroup that uses up its limit, which is far below 2 GiB: `tail` keeps what has no end of a line.
        // The OOM killer kills the process with the highest score first, and this one next.
        let hog = format!(
            "group=$(sed -n 's/^[0-9]*:memory://p; s/^0:://p' /proc/{helper}/cgroup | head -1); \
             [ -n \"${{group#/}}\" ] || {{ echo no cgroup >&2; exit 3; }}; \
             for tree in /sys/fs/cgroup/memory /sys/fs/cgroup; do \
               limit=$(cat $tree$group/memory.limit_in_bytes $tree$group/memory.max 2>/dev/null); \
               [ \"$limit\" -lt 2000000000 ] 2>/dev/null || continue; \
               echo 1000 >/proc/{helper}/oom_score_adj; \
               echo $$ >$tree$group/cgroup.procs && head -c 2G /dev/zero | tail >/dev/null; exit 1; \
             done; echo no limit in $group >&2; exit 3"
        );
        let end = Cluster::lab().on_node("n1", &hog).expect_err("it has no success");
        assert!(!end.contains("no cgroup") && !end.contains("no limit"), "{end}");
        until("the tap-helper was killed and runs again", TIMEOUT, || {
            let now = pids("n1", "/tap-helper serve");
            if now.is_empty() || now.contains(&helper) { Err(now.join(", ")) } else { Ok(()) }
        });
        apply_change(&scene, 1);
        a_while(sent);
    });
    assert_eq!(each_once(&receiver, PORT, sent), 0, "the first datagram arrives, too");
    scene.sandbox.ready("web");
}

/// A file system that hides the node's /run until this is dropped.
struct EmptyRun;

impl EmptyRun {
    fn new() -> Self {
        on_n1("mount -t tmpfs -o size=1m empty /run");
        Self
    }
}

impl Drop for EmptyRun {
    fn drop(&mut self) {
        let _ = Cluster::lab().on_node("n1", "umount -l /run");
    }
}

/// Nothing of PodTap is in /run: what a mirror consists of is in the kernel, and found there.
#[test]
fn a_node_whose_run_directory_is_empty_keeps_its_mirrors() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("empty-run");
    tap(&scene.sandbox, "n2", "nod-run");
    let network = scene.sandbox.network(&scene.web);
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "nod-run");
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        let empty = EmptyRun::new();
        assert_eq!(on_n1("ls -A /run"), "");
        let helper = tap_helper("n1");
        on_n1(&format!("kill -9 {helper}"));
        // The datagrams arrive at the other hook.
        in_network(&network, &["tc", "filter", "del", "dev", "eth0", "egress"]);
        let filters = || in_network(&network, &["tc", "filter", "show", "dev", "eth0", "egress"]);
        until("the filter is repaired", TIMEOUT, || {
            if filters().contains("podtap_egress") { Ok(()) } else { Err(filters()) }
        });
        apply_change(&scene, 1);
        a_while(sent);
        drop(empty);
        apply_change(&scene, 2);
    });
    assert_eq!(each_once(&receiver, PORT, sent), 0, "the first datagram arrives, too");
    scene.sandbox.ready("web");
}
