//! Faults of a node's resources, with traffic flowing.

use std::time::Duration;

use podtap_tests::{
    cluster::{Cluster, in_network, namespace_of_node},
    wait::until,
};

use crate::{
    faults::{apply_change, tap},
    helper_pods::{pid, pids},
    numbered::{PORT, a_while, each_once, under_load},
    scene::{Scene, capture},
};

const TIMEOUT: Duration = Duration::from_secs(60);

fn on_n1(script: &str) -> String {
    Cluster::lab().on_node("n1", script).unwrap_or_else(|message| panic!("{script}: {message}"))
}

/// The kernel ends the tap-helper, because its container has used its memory.
#[test]
fn a_tap_helper_that_runs_out_of_memory_is_restarted_and_the_mirror_keeps_running() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("memory");
    tap(&scene, "nod-oom");
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "nod-oom");
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        let helper = pid("n1", "/tap-helper serve");
        // A process that uses up what is left of the container's limit. The kernel ends the one with the highest score first, and this
        // one next: `tail` keeps what has no end of a line. Both versions of cgroups.
        let hog = format!(
            "echo 1000 >/proc/{helper}/oom_score_adj; \
             group=$(sed -n 's/^[0-9]*:memory://p; s/^0:://p' /proc/{helper}/cgroup | head -1); \
             for tree in /sys/fs/cgroup/memory /sys/fs/cgroup; do \
               [ -w $tree$group/cgroup.procs ] && echo $$ >$tree$group/cgroup.procs && exec tail /dev/zero; \
             done; echo no cgroup $group >&2; exit 3"
        );
        let end = Cluster::lab().on_node("n1", &hog).expect_err("it is ended as well");
        assert!(!end.contains("no cgroup"), "{end}");
        until("the tap-helper was ended and runs again", TIMEOUT, || {
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
    tap(&scene, "nod-run");
    let network = scene.sandbox.network(&scene.web);
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "nod-run");
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        let empty = EmptyRun::new();
        assert_eq!(on_n1("ls -A /run"), "");
        let helper = pid("n1", "/tap-helper serve");
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
