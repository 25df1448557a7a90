//! Whether a pod runs, and why not.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

/// How far a pod is whose containers are not restarted.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    Runs,
    /// It does not run yet, and what it waits for.
    Waits(String),
    /// It has ended, or is being deleted, and why.
    Ended(String),
}

/// How far a pod is.
pub fn state(pod: &Pod) -> State {
    let name = pod.name_any();
    let status = pod.status.as_ref();
    let containers = || status.into_iter().flat_map(|status| status.container_statuses.iter().flatten());
    let has_ended =
        |container: &ContainerStatus| container.state.as_ref().is_some_and(|state| state.terminated.is_some());
    let phase = status.and_then(|status| status.phase.as_deref());
    if pod.metadata.deletion_timestamp.is_some() {
        State::Ended(format!("the pod {name} was deleted"))
    } else if matches!(phase, Some("Succeeded" | "Failed")) || containers().any(has_ended) {
        let why = trouble(pod).map(|why| format!(": {}", why.trim())).unwrap_or_default();
        State::Ended(format!("the pod {name} has ended{why}"))
    } else if containers().any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some())) {
        State::Runs
    } else {
        State::Waits(format!("the pod {name} ({})", trouble(pod).unwrap_or_else(|| "Pending".to_owned())))
    }
}

/// Why a pod does not run, if the kubelet or the scheduler has told.
pub fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let with = |reason: Option<&String>, message: Option<&String>| match (reason, message) {
        (Some(reason), Some(message)) if !message.is_empty() => format!("{reason}: {message}"),
        (Some(one), _) | (None, Some(one)) => one.clone(),
        (None, None) => "for an unknown reason".to_owned(),
    };
    let containers = || status.container_statuses.iter().flatten();
    let waits = |container: &ContainerStatus| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let ended = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let is_usual =
            waiting.reason.as_deref().is_none_or(|reason| reason == "ContainerCreating" || reason == "PodInitializing");
        let message = ended.and_then(|ended| ended.message.as_ref()).or(waiting.message.as_ref());
        (!is_usual).then(|| format!("{} ({})", with(waiting.reason.as_ref(), message), container.image))
    };
    let unscheduled = || {
        let conditions = status.conditions.iter().flatten();
        conditions
            .filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
            .map(|condition| with(condition.reason.as_ref(), condition.message.as_ref()))
            .next()
    };
    let ended = |container: &ContainerStatus| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then(|| with(ended.reason.as_ref(), ended.message.as_ref()))
    };
    let failed = || {
        let is_failed = status.phase.as_deref() == Some("Failed");
        let of_pod = || with(status.reason.as_ref(), status.message.as_ref());
        is_failed.then(|| containers().find_map(ended).unwrap_or_else(of_pod))
    };
    containers().find_map(waits).or_else(unscheduled).or_else(failed)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> Pod {
        let metadata = json!({"name": "p"});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).expect("a pod")
    }

    #[test]
    fn the_cause_of_a_pod_that_does_not_run() {
        let cause = |status: Value| trouble(&pod(&status));
        let container = |state: Value| json!([{"name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
        let waiting = |reason: &str| container(json!({"waiting": {"reason": reason}}));
        assert_eq!(cause(json!({"phase": "Running"})), None);
        assert_eq!(cause(json!({"phase": "Pending", "containerStatuses": waiting("ContainerCreating")})), None);
        assert_eq!(
            cause(json!({"phase": "Running", "containerStatuses": waiting("CrashLoopBackOff")})).as_deref(),
            Some("CrashLoopBackOff (i)")
        );
        let scheduled =
            json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no free ports"}]);
        assert_eq!(
            cause(json!({"phase": "Pending", "conditions": scheduled})).as_deref(),
            Some("Unschedulable: no free ports")
        );
        let ended = container(json!({"terminated": {"exitCode": 2, "reason": "Error", "message": "no such command"}}));
        assert_eq!(
            cause(json!({"phase": "Failed", "containerStatuses": ended})).as_deref(),
            Some("Error: no such command")
        );
        let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"});
        assert_eq!(cause(evicted).as_deref(), Some("Evicted: low on memory"));
    }

    #[test]
    fn a_pod_runs_waits_or_has_ended() {
        let with = |phase: &str, state: Value| {
            let container = json!({"name": "capture", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state});
            super::state(&pod(&json!({"phase": phase, "containerStatuses": [container]})))
        };
        assert_eq!(with("Running", json!({"running": {}})), State::Runs);
        let waiting = with("Pending", json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}));
        assert_eq!(waiting, State::Waits("the pod p (ImagePullBackOff: not found (i))".to_owned()));
        let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "in use\n"}});
        assert_eq!(with("Failed", ended), State::Ended("the pod p has ended: Error: in use".to_owned()));
        let ended = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        assert_eq!(with("Running", ended), State::Ended("the pod p has ended".to_owned()));
        let unscheduled =
            json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}]);
        let waits = super::state(&pod(&json!({"phase": "Pending", "conditions": unscheduled})));
        assert_eq!(waits, State::Waits("the pod p (Unschedulable: 0/2 nodes)".to_owned()));
        let mut deleted = pod(&json!({"phase": "Running"}));
        deleted.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
        assert_eq!(super::state(&deleted), State::Ended("the pod p was deleted".to_owned()));
    }
}
