//! Pods that come and go, and pods that cannot be tapped, do not make a tap not Ready.

use std::{
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use podtap_api::{PodTap, PodTapStatus};
use podtap_tests::{cluster::Sandbox, wait::until};

use crate::scene::{address, capture};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Every version of a tap that a watch shows, by `kubectl get --watch`.
struct Watch {
    kubectl: Child,
    seen: Arc<Mutex<Vec<PodTap>>>,
}

impl Watch {
    fn start(sandbox: &Sandbox, tap: &str) -> Self {
        let top = sandbox.lab().top();
        let mut kubectl = Command::new(top.join("target/lab/bin/kubectl"))
            .arg("--kubeconfig")
            .arg(top.join("target/lab/kubeconfig"))
            .args(["-n", sandbox.namespace(), "get", "podtap", tap, "--watch", "-o", "json"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl can be started");
        let output = kubectl.stdout.take().expect("standard output is a pipe");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let target = Arc::clone(&seen);
        thread::spawn(move || {
            for tap in serde_json::Deserializer::from_reader(output).into_iter::<PodTap>().map_while(Result::ok) {
                target.lock().expect("no panic before").push(tap);
            }
        });
        let watch = Self { kubectl, seen };
        until("the watch shows the tap", TIMEOUT, || if watch.seen().is_empty() { Err("nothing yet") } else { Ok(()) });
        watch
    }

    fn seen(&self) -> Vec<PodTap> {
        self.seen.lock().expect("no panic before").clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

fn ready(tap: &PodTap) -> (String, String) {
    let conditions = tap.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").expect("Ready is always set");
    (ready.status.clone(), ready.message.clone())
}

/// A pod that ends after `script`, as those of a Job do.
fn job(sandbox: &Sandbox, name: &str, node: &str, script: &str) {
    sandbox.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec:\n  nodeName: {node}\n  \
         restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  automountServiceAccountToken: false\n  \
         containers:\n  - name: main\n    image: podtap.dev/busybox:1\n    imagePullPolicy: Never\n    \
         command: [sh, -c, {script:?}]\n"
    ));
}

#[track_caller]
fn status_with(sandbox: &Sandbox, what: &str, check: impl Fn(&PodTapStatus) -> bool) -> PodTapStatus {
    until(what, TIMEOUT, || {
        let status = sandbox.tap("web").status.unwrap_or_default();
        if check(&status) { Ok(status) } else { Err(format!("{status:?}")) }
    })
}

#[test]
fn a_tap_stays_ready_while_pods_come_and_go() {
    let sandbox = Sandbox::new("churn");
    sandbox.pod("steady", "n1", "web");
    sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  \
         targets: {podSelector: {matchLabels: {app: web}}}\n  \
         destinations: [{node: {name: n2, interfaceName: chu-stay}}]\n",
    );
    let established = sandbox.ready("web");
    let watch = Watch::start(&sandbox, "web");
    let start = Instant::now();
    for round in 0..8 {
        let (node, name) = (["n1", "n2"][round % 2], format!("job-{round}"));
        job(&sandbox, &name, node, if round % 4 == 3 { "sleep 3600" } else { "sleep 1" });
        if round % 4 == 3 {
            // Deleted while it runs.
            status_with(&sandbox, "it is tapped", |status| status.tapped_pods == 2);
        } else {
            until("it has ended", TIMEOUT, || {
                let pod: Pod = sandbox.lab().get(sandbox.namespace(), &name).ok_or("no such pod")?;
                let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
                if phase == "Succeeded" { Ok(()) } else { Err("it runs") }
            });
        }
        sandbox.kubectl(&["delete", "pod", &name], "").expect("a pod can be deleted");
    }
    // At last the only pod that was there all the time.
    sandbox.kubectl(&["delete", "pod", "steady"], "").expect("a pod can be deleted");
    status_with(&sandbox, "no pod is left", |status| (status.matched_pods, status.skipped_pods) == (0, 0));
    sandbox.pod("next", "n2", "web");
    status_with(&sandbox, "the next one is tapped", |status| (status.matched_pods, status.tapped_pods) == (1, 1));

    let seen = watch.seen();
    let matched = seen.iter().filter(|tap| tap.status.as_ref().is_some_and(|status| status.matched_pods == 2)).count();
    assert!(matched > 2, "the watch has seen pods come and go: {matched} of {}", seen.len());
    for tap in &seen {
        assert_eq!(ready(tap).0, "True", "{}", ready(tap).1);
    }
    let most = start.elapsed().as_secs() + 2;
    assert!(u64::try_from(seen.len()).expect("a few") <= most, "{} writes within {most} s", seen.len());
    let events = sandbox
        .kubectl(&["get", "events", "--field-selector=reason=TapEstablished", "-o", "name"], "")
        .expect("events can be listed");
    assert_eq!(events.lines().count(), 1, "{events}");
    assert_eq!(sandbox.tap("web").metadata.generation, established.metadata.generation);
}

/// A pod on its node's network, and one that has ended, in a namespace that is tapped as a whole.
#[test]
fn what_a_selector_matches_but_cannot_be_tapped_is_skipped() {
    let sandbox = Sandbox::new("skipped");
    let web = sandbox.pod("web", "n1", "web");
    let consumer = sandbox.pod("ids", "n2", "ids");
    sandbox.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: on-host, labels: {app: host}}\nspec:\n  hostNetwork: true\n  \
         nodeName: n1\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: 'podtap.dev/busybox:1', \
         imagePullPolicy: Never, command: [sleep, '3600']}\n",
    );
    job(&sandbox, "ended", "n1", "true");
    sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  targets: {podSelector: {}}\n  \
         destinations: [{pod: {name: ids, interfaceName: chu-skip}}]\n",
    );
    sandbox.ready("web");
    let status = status_with(&sandbox, "three are skipped", |status| status.skipped_pods == 3);
    assert_eq!((status.matched_pods, status.tapped_pods, status.failures.len()), (1, 1, 0));
    let mut skipped: Vec<_> = status.skipped.iter().map(|s| (s.reason.as_str(), s.pods.join(","))).collect();
    skipped.sort_unstable();
    assert_eq!(
        skipped,
        [
            ("DestinationIsTarget", "ids".to_owned()),
            ("HostNetwork", "on-host".to_owned()),
            ("PodFinished", "ended".to_owned())
        ]
    );
    // The consumer receives what the other pod sends, and nothing of its own.
    let receiver = capture(&sandbox.network(&consumer), "chu-skip");
    sandbox.in_pod("ids", &format!("ping -c 3 -i 0.2 {}", address(&web))).expect("the pod answers");
    let to_web: std::net::Ipv4Addr = address(&web).parse().expect("the lab is IPv4");
    let requests = || receiver.count(|f| f.bytes.len() > 34 && f.bytes[23] == 1 && f.bytes[30..34] == to_web.octets());
    until("each request arrives once", TIMEOUT, || match requests() {
        3 => Ok(()),
        number => Err(format!("{number} of 3")),
    });

    sandbox.kubectl(&["delete", "podtap", "web"], "").expect("a tap can be deleted");
    sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  \
         targets: {podSelector: {matchLabels: {app: host}}}\n  \
         destinations: [{node: {name: n2, interfaceName: chu-host}}]\n",
    );
    let tap = sandbox.condition("web", "Ready", "False", "AllPodsSkipped");
    assert!(ready(&tap).1.contains("uses the network of its node (1)"), "{}", ready(&tap).1);
    assert_eq!(tap.name_any(), "web");
}
