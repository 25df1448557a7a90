//! `--network`: a Job with a pod on each node, which send packets to each other, and what they report.
//!
//! The pods need no privileges but the network of their node. The Job ends by itself, and is removed by Kubernetes, if this program
//! cannot remove it.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Node, Pod, PodSpec},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, LogParams, PostParams},
};
use podtap_api::is_excluded;
use podtap_model::PathEvent;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{nodes::can_run, snapshot::Snapshot};
use crate::{
    connection::Cluster,
    console::{Console, counted},
    exit::{Exit, Failure, Outcome},
    job::{self, unique_name},
    pod_state::trouble,
    wait::Waiting,
};

/// How many nodes take part: all of them send to all others.
const MAX_NODES: usize = 16;
/// How long pods may take to start.
const START: Duration = Duration::from_secs(60);
/// How long packets may take after the last pod has started: each size is sent twice a second.
const SETTLE: Duration = Duration::from_secs(5);
/// When Kubernetes ends the pods, at the latest.
const DEADLINE_SECONDS: u64 = 120;
const INTERVAL: Duration = Duration::from_millis(500);

/// A node that takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: String,
    pub address: String,
}

/// What the pod of a node has reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Why its pod does not run.
    pub trouble: Option<String>,
    /// None before its pod has reported anything.
    pub events: Option<BTreeSet<PathEvent>>,
}

/// A Job that may exist.
pub struct Session {
    jobs: Api<Job>,
    name: String,
    may_exist: Cell<bool>,
}

/// The nodes that take part: those that can run pods, with an address of the family of the first one. Of many nodes a sample, with
/// `node` if it is named.
pub fn members(snapshot: &Snapshot, node: Option<&str>) -> Vec<Member> {
    let address = |node: &Node| {
        let addresses = node.status.as_ref()?.addresses.as_ref()?;
        addresses.iter().find(|found| found.type_ == "InternalIP").map(|found| found.address.clone())
    };
    let nodes = snapshot.all_nodes.iter().filter(|node| can_run(node) && !is_excluded(&node.metadata));
    let mut members: Vec<Member> =
        nodes.filter_map(|node| Some(Member { node: node.name_any(), address: address(node)? })).collect();
    let is_ipv6 = members.first().is_some_and(|member| member.address.contains(':'));
    members.retain(|member| member.address.contains(':') == is_ipv6);
    // The names of nodes of a group are similar, so that a sample has some of each.
    members.sort_by(|a, b| a.node.cmp(&b.node));
    let named = node.and_then(|name| members.iter().position(|member| member.node == name));
    let first = named.map(|index| members.remove(index));
    let room = MAX_NODES - usize::from(first.is_some());
    let step = members.len().div_ceil(room).max(1);
    first.into_iter().chain(members.into_iter().step_by(step)).collect()
}

impl Session {
    /// One that does not exist yet.
    pub fn new(cluster: &Cluster, home: &str) -> Self {
        let jobs = Api::namespaced(cluster.client.clone(), home);
        Self { jobs, name: unique_name("doctor"), may_exist: Cell::new(false) }
    }

    /// Starts the pods, and returns what they have reported when all packets have arrived, or after a few seconds.
    pub async fn observe(
        &self,
        cluster: &Cluster,
        snapshot: &Snapshot,
        members: &[Member],
        console: Console,
    ) -> Outcome<BTreeMap<String, Observed>> {
        let job = job(&self.name, snapshot, members)?;
        self.may_exist.set(true);
        self.jobs.create(&PostParams::default(), &job).await?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &snapshot.home);
        let of_job = job::pods(&self.name);
        let (start, mut started) = (Instant::now(), None);
        let mut waiting = Waiting::new(console);
        loop {
            let listed = pods.list(&of_job).await?.items;
            let observed: BTreeMap<String, Observed> =
                join_all(listed.iter().map(|pod| observed(&pods, pod))).await.into_iter().collect::<Outcome<_>>()?;
            let running = observed.values().filter(|observed| observed.events.is_some()).count();
            // One that cannot start is not waited for.
            let is_settled = listed.len() == members.len()
                && observed.values().all(|observed| observed.events.is_some() || observed.trouble.is_some());
            if started.is_none() && (is_settled || start.elapsed() > START) {
                started = Some(Instant::now());
            }
            let is_over = started.is_some_and(|started| started.elapsed() > SETTLE);
            if is_over || is_complete(&observed, members) {
                return Ok(observed);
            }
            waiting.reports(match started {
                None => format!("pods to start: {running} of {}", members.len()),
                Some(_) => format!("packets between {}", counted(running, "node")),
            });
            sleep(INTERVAL).await;
        }
    }

    /// Removes the Job and its pods, if they exist.
    pub async fn remove(&self) -> Outcome<()> {
        if !self.may_exist.get() {
            return Ok(());
        }
        match self.jobs.delete(&self.name, &DeleteParams::background()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(Failure::new(
                Exit::Partly,
                format!(
                    "the job {} is not deleted ({error}): Kubernetes deletes it in {DEADLINE_SECONDS} s",
                    self.name
                ),
            )),
        }
    }
}

/// The node of a pod, and what the pod has reported.
async fn observed(pods: &Api<Pod>, pod: &Pod) -> Outcome<(String, Observed)> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let events = match phase {
        "Running" | "Failed" | "Succeeded" => match pods.logs(&pod.name_any(), &LogParams::default()).await {
            Ok(log) => Some(log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
            Err(kube::Error::Api(status)) if status.code == 403 => return Err(kube::Error::Api(status).into()),
            // The container has no log yet, or the kubelet does not answer.
            Err(kube::Error::Api(_)) => None,
            Err(error) => return Err(error.into()),
        },
        _ => None,
    };
    let observed = Observed { trouble: trouble(pod), events: events.filter(|events: &BTreeSet<_>| !events.is_empty()) };
    // One that is on no node has a name of its own.
    Ok((node.unwrap_or_else(|| pod.name_any()), observed))
}

/// Whether every packet has arrived that can.
fn is_complete(observed: &BTreeMap<String, Observed>, members: &[Member]) -> bool {
    super::paths::paths(observed, members).iter().all(|path| path.state.is_final())
}

/// The Job, with the image of the controller.
fn job(name: &str, snapshot: &Snapshot, members: &[Member]) -> Outcome<Job> {
    let controller = snapshot.controller.as_ref().ok().and_then(Option::as_ref);
    let template: &PodSpec =
        controller.and_then(|controller| controller.spec.as_ref()?.template.spec.as_ref()).ok_or_else(|| {
            let text = "--network starts pods with the image of the controller, and there is none to be read";
            Failure::new(Exit::Refused, text)
        })?;
    let container = template.containers.first();
    let port = snapshot.receiver_port();
    let underlay = snapshot.policy.as_ref().ok().and_then(|policy| policy.as_ref()?.spec.underlay_mtu);
    let mut command: Vec<String> =
        ["/podtap-agent", "try-paths", "--port", &port.to_string(), "--run", name].map(str::to_owned).to_vec();
    command.extend(underlay.map(|mtu| format!("--mtu={mtu}")));
    command.extend(members.iter().map(|member| format!("--peer={}={}", member.node, member.address)));
    let labels: Value = json!({
        "app.kubernetes.io/name": "podtap", "app.kubernetes.io/part-of": "podtap", "app.kubernetes.io/component": "doctor",
    });
    let is_one_of: Vec<&str> = members.iter().map(|member| member.node.as_str()).collect();
    // A term of matchFields names one node only.
    let terms: Vec<Value> = is_one_of
        .iter()
        .map(|node| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}))
        .collect();
    let job = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "completions": members.len(), "parallelism": members.len(),
            // A pod that fails is not repeated, and does not end the others.
            "completionMode": "Indexed", "backoffLimitPerIndex": 0,
            "activeDeadlineSeconds": DEADLINE_SECONDS, "ttlSecondsAfterFinished": 0,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "hostNetwork": true, "restartPolicy": "Never",
                    // With 0, the object would be gone before the process, which still has the port.
                    "terminationGracePeriodSeconds": 2,
                    "automountServiceAccountToken": false, "enableServiceLinks": false,
                    "imagePullSecrets": template.image_pull_secrets,
                    "tolerations": [{"operator": "Exists"}],
                    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}},
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "try-paths",
                        "image": container.and_then(|container| container.image.clone()),
                        "imagePullPolicy": container.and_then(|container| container.image_pull_policy.clone()),
                        "command": command,
                        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                        // The scheduler puts only one pod with this port on a node.
                        "ports": [{"containerPort": port, "hostPort": port, "protocol": "UDP"}],
                        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "securityContext": {
                            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                },
            },
        },
    });
    serde_json::from_value(job).map_err(|error| Failure::error(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures::healthy, *};

    fn with_nodes(count: usize) -> Snapshot {
        let mut snapshot = healthy();
        let model = snapshot.all_nodes[0].clone();
        snapshot.all_nodes = (0..count)
            .map(|index| {
                let mut node = model.clone();
                node.metadata.name = Some(format!("n{index:03}"));
                node
            })
            .collect();
        snapshot
    }

    #[test]
    fn the_number_of_nodes_is_bounded() {
        for count in [0, 1, 2, 15, 16, 17, 31, 32, 33, 5000] {
            let found = members(&with_nodes(count), None).len();
            assert!(found <= MAX_NODES && found >= count.min(MAX_NODES / 2), "{count}: {found}");
            let found = members(&with_nodes(count), Some("n000"));
            assert!(found.len() <= MAX_NODES, "{count}: {found:?}");
            assert_eq!(found.first().map(|member| member.node.as_str()), (count > 0).then_some("n000"));
        }
    }

    #[test]
    fn nodes_that_cannot_take_part_are_left_out() {
        let mut snapshot = with_nodes(4);
        snapshot.all_nodes[0].labels_mut().insert("podtap.dev/exclude".to_owned(), "true".to_owned());
        snapshot.all_nodes[1].labels_mut().insert("type".to_owned(), "virtual-kubelet".to_owned());
        if let Some(status) = &mut snapshot.all_nodes[2].status {
            status.addresses = None;
        }
        let names: Vec<_> = members(&snapshot, None).into_iter().map(|member| member.node).collect();
        assert_eq!(names, ["n003"]);
    }

    #[test]
    fn the_pods_have_no_privileges_and_end_by_themselves() {
        let snapshot = healthy();
        let job = job("podtap-doctor-1", &snapshot, &members(&snapshot, None)).expect("there is a controller");
        let spec = job.spec.expect("it has one");
        assert_eq!((spec.completions, spec.ttl_seconds_after_finished), (Some(2), Some(0)));
        assert!(spec.active_deadline_seconds.is_some());
        let pod = spec.template.spec.expect("it has one");
        assert_eq!(pod.automount_service_account_token, Some(false));
        let [container] = &pod.containers[..] else { panic!("one container") };
        assert_eq!(container.image.as_deref(), Some("podtap.dev/podtap:0.1.0"));
        let context = container.security_context.as_ref().expect("it has one");
        let capabilities = context.capabilities.as_ref().expect("they are dropped");
        assert_eq!((capabilities.drop.as_deref(), &capabilities.add), (Some(&["ALL".to_owned()][..]), &None));
        let command = container.command.as_ref().expect("it has one").join(" ");
        assert!(command.ends_with("--peer=n1=10.0.0.1 --peer=n2=10.0.0.2"), "{command}");
    }
}
