//! What a capture is in the cluster: a job whose pod receives the frames, and a tap that the job owns.

use std::time::Duration;

use k8s_openapi::{
    api::{batch::v1::Job, core::v1::ConfigMap},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource as _, ResourceExt as _};
use podtap_api::{Destination, MirrorSpec, PodDestination, PodTap, PodTapSpec};
use serde_json::json;

use super::blocks::Format;
use crate::{
    connection::YEAR,
    exit::{Exit, Failure, Outcome, page},
    tap::KEPT,
};

/// `ConfigMap` of the chart with what a capture has to know of the installation.
pub const INSTALLATION: &str = "podtap-capture";
/// Port on the loopback of the pod, on which it sends the frames.
pub const PORT: u16 = 9091;
/// How long after the last sign of the client the pod ends.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(15);
/// What the pod has beyond the time of the capture: to start, and for the rest of the stream.
pub const SPARE: Duration = Duration::from_secs(60);

/// The least that can be kept.
pub const LEAST: u64 = 4 << 20;
/// Where the pod keeps frames.
const DIRECTORY: &str = "/frames";
/// What files of the frames that are kept take beside these.
const SLACK: u64 = 8 << 20;

/// What the chart tells of the installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    image: String,
    pull_policy: String,
    ether_type: String,
}

impl Installation {
    /// From the chart's `ConfigMap`.
    pub fn new(map: &ConfigMap) -> Outcome<Self> {
        let value = |key: &str| {
            map.data.as_ref().and_then(|data| data.get(key)).cloned().ok_or_else(|| {
                Failure::new(Exit::Refused, format!("the ConfigMap {INSTALLATION} has no {key}: install PodTap again"))
            })
        };
        Ok(Self { image: value("image")?, pull_policy: value("imagePullPolicy")?, ether_type: value("etherType")? })
    }

    /// Why there is none.
    pub fn missing(namespace: &str, error: kube::Error) -> Failure {
        match error {
            kube::Error::Api(status) if matches!(status.code, 403 | 404) => Failure::new(
                Exit::Refused,
                format!(
                    "there is no ConfigMap {INSTALLATION} in the namespace {namespace}, which has the image: install PodTap, or name its \
                     namespace with --podtap-namespace. See {}",
                    page("install.md", "")
                ),
            ),
            error => error.into(),
        }
    }
}

/// When a capture ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// After this time, from the first frame that can come.
    pub time: Duration,
    /// How long the pod may take to run.
    pub wait: Duration,
    /// After so many bytes.
    pub bytes: u64,
    /// After so many frames.
    pub packets: Option<u64>,
    /// Not without its client: so many bytes are kept for one that comes later.
    pub keep: bool,
}

impl Limits {
    /// When everything has ended, whatever happens.
    pub fn deadline(&self) -> Duration {
        self.time + self.wait + SPARE
    }
}

/// The job.
pub fn job(
    name: &str,
    installation: &Installation,
    format: Format,
    limits: &Limits,
    requested_by: Option<&str>,
) -> Job {
    let Installation { image, pull_policy, ether_type } = installation;
    let seconds = |time: Duration| time.as_secs().max(1).to_string();
    let mut command = vec![
        "/podtap-collector".to_owned(),
        "stream".to_owned(),
        format!("--listen=127.0.0.1:{PORT}"),
        format!("--ether-type={ether_type}"),
        format!("--for={}", seconds(limits.time)),
        format!("--abandoned-after={}", seconds(ABANDONED_AFTER)),
        // It was asked for by a program that runs: the image is there when this counts.
        format!("--first-client={}", seconds(ABANDONED_AFTER)),
    ];
    if limits.keep {
        command.extend([format!("--keep={DIRECTORY}"), format!("--keep-bytes={}", limits.bytes)]);
    } else {
        command.push(format!("--max-bytes={}", limits.bytes));
    }
    if format == Format::Pcap {
        command.push("--format=pcap".to_owned());
    }
    command.extend(limits.packets.map(|packets| format!("--packets={packets}")));
    let labels = json!({"app.kubernetes.io/name": "podtap", "app.kubernetes.io/component": "capture"});
    let mut of_job = labels.clone();
    if limits.keep {
        of_job[KEPT] = json!(seconds(limits.time));
    }
    let mut job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": of_job,
            "annotations": requested_by.map(|user| json!({(crate::tap::REQUESTED_BY): user})),
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": limits.deadline().as_secs(),
            "ttlSecondsAfterFinished": 0,
            "template": {
                "metadata": {
                    "labels": labels,
                    // A sidecar would keep the job from ending, and is no part of what is captured.
                    "annotations": {
                        "sidecar.istio.io/inject": "false",
                        "linkerd.io/inject": "disabled",
                        "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
                    },
                },
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": 5,
                    "securityContext": {
                        "runAsNonRoot": true,
                        "runAsUser": 65532,
                        "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "capture",
                        "image": image,
                        "imagePullPolicy": pull_policy,
                        "command": command,
                        "resources": {
                            "requests": {"cpu": "10m", "memory": "64Mi"},
                            "limits": {"memory": "128Mi"},
                        },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                    }],
                },
            },
        },
    });
    if limits.keep {
        let pod = &mut job["spec"]["template"]["spec"];
        // The kubelet evicts a pod that takes more. It is not requested: kubelets without local storage isolation offer none.
        let size = (limits.bytes + SLACK).to_string();
        pod["volumes"] = json!([{"name": "frames", "emptyDir": {"sizeLimit": size}}]);
        pod["containers"][0]["volumeMounts"] = json!([{"name": "frames", "mountPath": DIRECTORY}]);
    }
    serde_json::from_value(job).expect("it is a job")
}

/// The destination of the tap: a pod, which is handed a packet socket.
fn destination(pod: &str) -> Destination {
    let pod = PodDestination { name: Some(pod.to_owned()), packet_socket: true, ..PodDestination::default() };
    let mut destination = crate::destination::none("main".to_owned());
    destination.pod = Some(pod);
    destination
}

/// The tap of a job, which Kubernetes deletes with it.
pub fn tap(job: &Job, pod: &str, targets: podtap_api::Targets, mirror: MirrorSpec, limits: &Limits) -> PodTap {
    let duration = Some(kube::core::Duration::from(limits.deadline().min(YEAR)));
    let mirror = MirrorSpec { destinations: vec![destination(pod)], duration, ..mirror };
    let mut tap = PodTap::new(&job.name_any(), PodTapSpec { targets, mirror });
    tap.metadata.namespace = job.namespace();
    tap.metadata.labels.clone_from(&job.metadata.labels);
    tap.metadata.annotations.clone_from(&job.metadata.annotations);
    tap.metadata.owner_references = Some(vec![OwnerReference {
        api_version: Job::api_version(&()).into_owned(),
        kind: Job::kind(&()).into_owned(),
        name: job.name_any(),
        uid: job.uid().unwrap_or_default(),
        ..OwnerReference::default()
    }]);
    tap
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_restricted_and_the_tap_is_its_jobs() {
        let map: ConfigMap = serde_json::from_value(
            json!({"data": {"image": "i:1", "imagePullPolicy": "Always", "etherType": "34997"}}),
        )
        .expect("a ConfigMap");
        let installation = Installation::new(&map).expect("it has everything");
        let seconds = Duration::from_secs;
        let limits = Limits { time: seconds(120), wait: seconds(60), bytes: 1 << 30, packets: Some(7), keep: false };
        let mut job = job("podtap-capture-x", &installation, Format::Pcapng, &limits, Some("alice"));
        let pod = job.spec.as_ref().and_then(|spec| spec.template.spec.clone()).expect("it has a template");
        assert_eq!(pod.automount_service_account_token, Some(false));
        let command = pod.containers[0].command.clone().expect("it has a command");
        for word in ["--for=120", "--max-bytes=1073741824", "--packets=7", "--ether-type=34997", "--abandoned-after=15"]
        {
            assert!(command.iter().any(|found| found == word), "{word}: {command:?}");
        }
        job.metadata.uid = Some("u".to_owned());
        let targets = serde_json::from_value(json!({"podNames": ["web"]})).expect("targets");
        let mirror = serde_json::from_value(json!({"destinations": []})).expect("a spec");
        let tap = tap(&job, "podtap-capture-x-1", targets, mirror, &limits);
        let owner = &tap.metadata.owner_references.as_ref().expect("it has an owner")[0];
        assert_eq!((&*owner.kind, &*owner.name, &*owner.uid), ("Job", "podtap-capture-x", "u"));
        let pod = tap.spec.mirror.destinations[0].pod.as_ref().expect("a pod");
        assert_eq!((pod.packet_socket, pod.name.as_deref()), (true, Some("podtap-capture-x-1")));
        assert_eq!(tap.spec.mirror.duration.map(|time| std::time::Duration::from(time).as_secs()), Some(240));
        assert!(Installation::new(&ConfigMap::default()).is_err());

        let kept = Limits { packets: None, keep: true, ..limits };
        let job = super::job("podtap-capture-y", &installation, Format::Pcapng, &kept, None);
        assert_eq!(job.metadata.labels.as_ref().expect("it has some")[KEPT], "120");
        let template = job.spec.expect("it has a spec").template;
        // Pods have no keys of PodTap's own.
        assert!(!template.metadata.and_then(|metadata| metadata.labels).expect("it has some").contains_key(KEPT));
        let pod = template.spec.expect("it has a spec");
        let command = pod.containers[0].command.clone().expect("it has a command").join(" ");
        assert!(command.ends_with("--first-client=15 --keep=/frames --keep-bytes=1073741824"), "{command}");
        let volume = pod.volumes.expect("it has one").remove(0).empty_dir.expect("it is one");
        assert_eq!(volume.size_limit.expect("it has one").0, "1082130432");
    }
}
