//! A namespace of the cluster for one test.

use std::{fmt::Write as _, path::PathBuf, sync::RwLockReadGuard, thread, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use podtap_api::PodTap;

use super::{Cluster, namespace_of_pod};
use crate::wait::until;

/// How long a pod or a tap may take; generous, because the machine is shared.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A namespace of the cluster for one test, deleted with everything in it when dropped. A failing test prints its content first.
pub struct Sandbox {
    lab: &'static Cluster,
    namespace: String,
    _beside: Option<RwLockReadGuard<'static, ()>>,
}

impl Sandbox {
    /// A namespace for a test that may run beside others.
    #[must_use]
    pub fn new(test: &str) -> Self {
        let beside = Cluster::beside_others();
        Self::made(test, Some(beside))
    }

    /// A namespace for a test that holds [`Cluster::alone`].
    #[must_use]
    pub fn alone(test: &str) -> Self {
        Self::made(test, None)
    }

    /// Another namespace for the same test. Only one of them may hold the lock: a test that waits for it again, behind one that waits to be
    /// alone, would wait for ever.
    #[must_use]
    pub fn another(&self, test: &str) -> Self {
        Self::made(test, None)
    }

    fn made(test: &str, beside: Option<RwLockReadGuard<'static, ()>>) -> Self {
        let lab = Cluster::lab();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is after 1970");
        let namespace = format!("t-{test}-{:x}", now.as_millis() % 0x0100_0000);
        lab.kubectl(&["create", "namespace", &namespace], "").expect("a namespace can be created");
        Self { lab, namespace, _beside: beside }
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &'static Cluster {
        self.lab
    }

    /// Name of the namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// `kubectl` in this namespace.
    ///
    /// # Errors
    /// If it fails, with its standard error.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments);
        self.lab.kubectl(&all, input)
    }

    /// `kubectl apply` of `yaml`.
    ///
    /// # Errors
    /// If the API server refuses it, with its message.
    pub fn try_apply(&self, yaml: &str) -> Result<String, String> {
        self.kubectl(&["apply", "-f", "-"], yaml)
    }

    /// `kubectl apply` of `yaml`, which must be accepted.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        if let Err(message) = self.try_apply(yaml) {
            panic!("{message}\n{yaml}");
        }
    }

    /// Starts a pod that sleeps, on a node, with the label `app`; returns when it is Running.
    #[track_caller]
    pub fn pod(&self, name: &str, node: &str, app: &str) -> Pod {
        self.start(name, node, app, "sleep 3600");
        self.running(name)
    }

    /// Creates a pod that runs `script`, without waiting for it.
    #[track_caller]
    pub fn start(&self, name: &str, node: &str, app: &str, script: &str) {
        self.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\nspec:\n  \
             nodeName: {node}\n  terminationGracePeriodSeconds: 0\n  automountServiceAccountToken: false\n  \
             containers:\n  - name: main\n    image: podtap.dev/busybox:1\n    imagePullPolicy: Never\n    \
             command: [sh, -c, {script:?}]\n"
        ));
    }

    /// Waits until a pod runs.
    #[track_caller]
    pub fn running(&self, name: &str) -> Pod {
        until(&format!("pod {name} runs"), TIMEOUT, || {
            let pod: Pod = self.lab.get(&self.namespace, name).ok_or("no such pod")?;
            let status = pod.status.clone().unwrap_or_default();
            if status.phase.as_deref() == Some("Running") && status.pod_ip.is_some() {
                Ok(pod)
            } else {
                Err(format!("{:?} {:?}", status.phase, status.container_statuses))
            }
        })
    }

    /// Path of a pod's network namespace.
    #[track_caller]
    #[must_use]
    pub fn network(&self, pod: &Pod) -> PathBuf {
        let uid = pod.uid().expect("a stored pod has a UID");
        until("the pod has a process", TIMEOUT, || namespace_of_pod(&uid))
    }

    /// Runs a script in a pod.
    ///
    /// # Errors
    /// If it fails, with its standard error.
    pub fn in_pod(&self, pod: &str, script: &str) -> Result<String, String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script], "")
    }

    /// The tap as it is now.
    #[track_caller]
    #[must_use]
    pub fn tap(&self, name: &str) -> PodTap {
        self.lab.get(&self.namespace, name).expect("the tap is there")
    }

    /// Waits until the tap's condition of type `kind` has the status and, unless empty, the reason.
    #[track_caller]
    pub fn condition(&self, tap: &str, kind: &str, status: &str, reason: &str) -> PodTap {
        until(&format!("{tap}: {kind}={status} {reason}"), TIMEOUT, || {
            let tap: PodTap = self.lab.get(&self.namespace, tap).ok_or("no such tap")?;
            let conditions = tap.status.clone().unwrap_or_default().conditions;
            let current = conditions.iter().find(|c| {
                c.type_ == kind
                    && c.status == status
                    && (reason.is_empty() || c.reason == reason)
                    && c.observed_generation == tap.metadata.generation
            });
            if current.is_some() { Ok(tap) } else { Err(format!("{conditions:?}")) }
        })
    }

    /// Waits until the tap is Ready.
    #[track_caller]
    pub fn ready(&self, tap: &str) -> PodTap {
        self.condition(tap, "Ready", "True", "")
    }

    /// Everything that helps to diagnose a failure.
    fn dump(&self) -> String {
        let mut text = format!("\n===== {} =====\n", self.namespace);
        for arguments in [
            &["get", "podtaps,pods", "-o", "wide"][..],
            &["get", "podtaps", "-o", "yaml"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["get", "nodetaps", "-o", "yaml"],
            &["-n", super::PODTAP_NAMESPACE, "get", "pods", "-o", "wide"],
            &[
                "-n",
                super::PODTAP_NAMESPACE,
                "logs",
                "-l",
                "app.kubernetes.io/part-of=podtap",
                "--all-containers",
                "--tail=40",
                "--prefix",
            ],
        ] {
            let output = self.kubectl(arguments, "").unwrap_or_else(|e| e);
            let _ = writeln!(text, "----- kubectl {}\n{output}", arguments.join(" "));
        }
        text
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.dump());
        }
        // Taps first, and waiting for them, so that the residue check at the end finds what they have left behind.
        for arguments in [
            &["delete", "podtaps", "--all", "--timeout=60s"][..],
            &["delete", "namespace", &self.namespace, "--wait=false"],
        ] {
            if let Err(message) = self.kubectl(arguments, "") {
                eprintln!("{}: {message}", self.namespace);
            }
        }
    }
}
