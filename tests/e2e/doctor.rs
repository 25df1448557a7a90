//! `kubectl podtap doctor`: a fault at a time is planted in the lab, and has to be named; healed, it is named no more.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::ResourceExt as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE},
    wait::{PATIENCE, until},
};

use crate::{
    cli::podtap,
    controller::Setting,
    helper_pods::helper_of,
    scene::{Scene, node_address, tap},
};

fn kubectl(words: &[&str], input: &str) {
    Cluster::lab().kubectl(words, input).unwrap_or_else(|message| panic!("{words:?}: {message}"));
}

fn in_podtap(words: &[&str]) {
    kubectl(&[&["-n", PODTAP_NAMESPACE], words].concat(), "");
}

/// Undoes a fault, also if it is not named in time.
struct Undo<F: Fn()>(F);

impl<F: Fn()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Faults, and how many of them were named.
struct Faults<'a> {
    scene: &'a Scene,
    named: usize,
}

impl Faults<'_> {
    fn doctor(&self, more: &[&str]) -> (i32, String) {
        let (code, output, errors) = podtap(&self.scene.sandbox, &[&["doctor"], more].concat());
        (code, output + &errors)
    }

    /// Waits until it names a fault that was planted, and returns how it ended.
    #[track_caller]
    fn names(&mut self, words: &[&str], more: &[&str]) -> i32 {
        let start = Instant::now();
        let code = until(&format!("it says {words:?}"), PATIENCE, || {
            let (code, text) = self.doctor(&[&["-o", "short"], more].concat());
            if words.iter().all(|word| text.contains(word)) { Ok(code) } else { Err(text) }
        });
        self.named += 1;
        println!("{}: {:?}, exit {code}, after {:?}", self.named, words[0], start.elapsed());
        code
    }

    /// Waits until it finds no error.
    #[track_caller]
    fn healthy(&self) {
        let (code, text) = self.doctor(&["--wait", "90s", "-q"]);
        assert_eq!(code, 0, "{text}");
    }
}

/// Drops packets to the port of receivers that arrive at n2 from n1 and meet a condition.
fn cut(condition: &str) -> Undo<impl Fn()> {
    let from = node_address("n1");
    on_n2(&format!(
        "nft 'add table inet doctor; add chain inet doctor input {{ type filter hook prerouting priority -300; }}; \
         add rule inet doctor input ip saddr {from} udp dport 14789 {condition} drop'"
    ));
    Undo(|| on_n2("nft delete table inet doctor"))
}

fn on_n2(script: &str) {
    Cluster::lab().on_node("n2", script).unwrap_or_else(|message| panic!("{script}: {message}"));
}

#[test]
fn planted_faults_are_named() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("doctor");
    let mut faults = Faults { scene: &scene, named: 0 };
    faults.healthy();
    kinds_and_versions(&mut faults);
    tap(&scene.sandbox, "n2", "doctor");
    network_by_taps(&mut faults);
    rights_and_settings(&mut faults);
    programs(&mut faults);
    assert_eq!(faults.named, 14);
}

fn network_by_taps(faults: &mut Faults<'_>) {
    {
        let _cut = cut("");
        assert_eq!(faults.names(&["node n2 receives no probes from node n1, but TCP", "ufw allow proto udp"], &[]), 3);
    }
    faults.healthy();
    {
        let _cut = cut("meta length > 1400");
        assert_eq!(faults.names(&["receives small probes from node n1, but no full-size", "underlayMTU"], &[]), 3);
    }
    faults.healthy();
}

fn rights_and_settings(faults: &mut Faults<'_>) {
    let sandbox = &faults.scene.sandbox;
    let namespaced = |words: &[&str]| {
        sandbox.kubectl(words, "").expect("an administrator can grant permissions");
    };
    namespaced(&["create", "role", "taps", "--verb=*", "--resource=podtaps.podtap.dev"]);
    namespaced(&["create", "rolebinding", "taps", "--role=taps", "--user=alice"]);
    let words = format!("× you may create podtaps, but not tap pods in the namespace {}", sandbox.namespace());
    assert_eq!(faults.names(&[&words], &["--as", "alice"]), 3);

    let label = |value: &str| {
        let label = format!("pod-security.kubernetes.io/enforce={value}");
        kubectl(&["label", "namespace", PODTAP_NAMESPACE, "--overwrite", &label], "");
    };
    {
        let _undo = Undo(|| label("privileged"));
        label("restricted");
        assert_eq!(faults.names(&["enforces restricted, which rejects helper pods"], &[]), 3);
        assert_eq!(faults.names(&["enforces restricted, which rejects helper pods"], &["--pre"]), 3);
    }
    let policy = |suspend: bool| {
        let policy = format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTapPolicy\nmetadata: {{name: default}}\nspec: {{suspendAll: {suspend}}}\n"
        );
        kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &policy);
    };
    {
        let _undo = Undo(|| policy(false));
        policy(true);
        assert_eq!(faults.names(&["nothing is mirrored: the PodTapPolicy has suspendAll: true"], &[]), 3);
    }
    let cilium = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cilium-config, namespace: kube-system}\n\
                  data: {tunnel-port: '14789'}\n";
    {
        let _undo = Undo(|| kubectl(&["delete", "-f", "-"], cilium));
        kubectl(&["create", "-f", "-"], cilium);
        assert_eq!(faults.names(&["the tunnels of Cilium use UDP 14789, and so does PodTap"], &[]), 3);
    }
    faults.healthy();
}

fn kinds_and_versions(faults: &mut Faults<'_>) {
    let label = |version: &str| {
        in_podtap(&[
            "label",
            "deployment",
            "podtap-controller",
            "--overwrite",
            &format!("app.kubernetes.io/version={version}"),
        ]);
    };
    {
        let _undo = Undo(|| label(env!("CARGO_PKG_VERSION")));
        label("9.9.9");
        assert_eq!(faults.names(&["the controller is of version 9.9.9"], &[]), 0);
    }
    let definition = Cluster::lab().top().join("crds/clusterpodtaps.yaml");
    let definition = definition.to_str().expect("a path of letters");
    {
        let _undo = Undo(|| {
            kubectl(&["apply", "--server-side", "--force-conflicts", "-f", definition], "");
            kubectl(&["wait", "--for=condition=Established", "-f", definition], "");
        });
        // Not while a node has a part of a tap, which may be one of the previous test.
        until("the definition can be deleted", PATIENCE, || Cluster::lab().kubectl(&["delete", "-f", definition], ""));
        assert_eq!(faults.names(&["the cluster does not serve the kind ClusterPodTap"], &[]), 3);
    }
    faults.healthy();
}

fn programs(faults: &mut Faults<'_>) {
    let image = {
        let setting = Setting::set("HELPER_IMAGE", "podtap.dev/podtap:no-such-tag");
        let words = ["ErrImageNeverPull", "podtap.dev/podtap:no-such-tag"];
        assert_eq!(faults.names(&words, &[]), 3);
        setting.previous().map(str::to_owned)
    };
    assert!(image.is_some());
    faults.healthy();
    let scale =
        |replicas: &str| in_podtap(&["scale", "deployment", "podtap-controller", &format!("--replicas={replicas}")]);
    {
        let _undo = Undo(|| scale("2"));
        scale("0");
        assert_eq!(faults.names(&["0 of 0 pods of the controller are ready", "no controller leads"], &[]), 3);
        // No controller creates another one.
        let helper = helper_of("n1").expect("it has a tapped pod").name_any();
        in_podtap(&["delete", "pod", &helper]);
        assert_eq!(faults.names(&["the node n1 has no helper pod"], &["--node", "n1"]), 3);
        // The kernel of the lab has all features, so this is in the status only: as a helper pod would have reported it.
        let features = r#"{"status":{"features":{"ebpf":false}}}"#;
        kubectl(&["patch", "nodetap", "n1", "--subresource=status", "--type=merge", "-p", features], "");
        assert_eq!(faults.names(&["n1: the kernel of the node cannot load eBPF programs"], &["--tap", "web"]), 3);
        let sender = r#"[{"op":"add","path":"/status/senders/0/state","value":"Failed"},
            {"op":"add","path":"/status/senders/0/reason","value":"KernelFeatureMissing"},
            {"op":"add","path":"/status/senders/0/message","value":"The node's kernel lacks VXLAN devices (vxlan)"}]"#;
        kubectl(&["patch", "nodetap", "n1", "--subresource=status", "--type=json", "-p", sender], "");
        assert_eq!(faults.names(&["KernelFeatureMissing: The node's kernel lacks VXLAN", "modprobe -a vxlan"], &[]), 3);
    }
    faults.healthy();
}

/// The pods of `--network`, and the Jobs.
fn leftovers() -> Vec<String> {
    let lab = Cluster::lab();
    let is_own = |name: &String| name.starts_with("podtap-doctor-");
    let jobs = lab.list::<Job>(PODTAP_NAMESPACE).into_iter().map(|job| job.name_any());
    jobs.chain(lab.list::<Pod>(PODTAP_NAMESPACE).into_iter().map(|pod| pod.name_any())).filter(is_own).collect()
}

#[track_caller]
fn nothing_is_left() {
    until("the pods are deleted", Duration::from_secs(20), || {
        let found = leftovers();
        if found.is_empty() { Ok(()) } else { Err(found.join(", ")) }
    });
}

#[test]
fn the_network_between_nodes_is_tried() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("doctor-network");
    let faults = Faults { scene: &scene, named: 0 };
    let try_network = |more: &[&str]| {
        let start = Instant::now();
        let (code, text) = faults.doctor(&[&["--network", "-y"], more].concat());
        println!("exit {code} after {:?}", start.elapsed());
        nothing_is_left();
        (code, text)
    };
    let (code, text) = try_network(&[]);
    let words = "√ UDP 14789 passes, small packets and those of the MTU, on 2 paths: n1 to n2, n2 to n1";
    assert!(code == 0 && text.contains(words), "{text}");
    let passes = "√ UDP 14789 passes, small packets and those of the MTU, on 1 path: n2 to n1";
    for (condition, words, hint) in [
        ("", "× UDP 14789 does not pass on 1 path: n1 to n2", "ufw allow proto udp"),
        (
            "meta length > 1400",
            "× UDP 14789 passes in IP packets of up to 1400 bytes, and not of the MTU, on 1 path: n1 to n2",
            "\"underlayMTU\":1400",
        ),
    ] {
        let _cut = cut(condition);
        let (code, text) = try_network(&[]);
        let all = [words, hint, passes].iter().all(|part| text.contains(part));
        assert!(code == 3 && all, "{text}");
    }
    // Where a tap has a receiver, its probes tell.
    tap(&scene.sandbox, "n2", "doctor-net");
    let (code, text) = try_network(&[]);
    let words = "- UDP 14789 is in use at the receiving node, and was not tried, on 1 path: n1 to n2";
    assert!(code == 0 && text.contains(words) && text.contains("on 1 path: n1 to n2\n"), "{text}");
}

#[test]
fn nothing_is_left_of_an_interrupted_try() {
    let _alone = Cluster::alone();
    let lab = Cluster::lab();
    let _cut = cut("");
    let mut command = Command::new(lab.top().join("target/lab/bin/kubectl-podtap"));
    command.env("KUBECONFIG", lab.top().join("target/lab/kubeconfig")).args(["doctor", "--network", "-y"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
    until("its pods run", PATIENCE, || if leftovers().len() == 3 { Ok(()) } else { Err(leftovers().join(", ")) });
    let pid = Pid::from_raw(child.id().try_into().expect("a PID is positive"));
    kill(pid, Signal::SIGINT).expect("it runs");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    nothing_is_left();
}
