//! The objects of a capture: created, waited for, and deleted.

use std::{cell::Cell, ops::ControlFlow, time::Duration};

use futures_util::{StreamExt as _, stream::BoxStream};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, ContainerState, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use podtap_api::{MirrorSpec, PodTap, Targets};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    blocks::Format,
    objects::{INSTALLATION, Installation, Limits, job as new_job, tap as new_tap},
};
use crate::{
    connection::Cluster,
    console::warn,
    exit::{Exit, Failure, Outcome, with_causes},
    job::{self, unique_name},
    tap::{MANAGER, Tap},
    wait::Waiting,
};

/// The pause between two questions whether the pod is gone.
const POLL: Duration = Duration::from_millis(250);
/// How long the API server may take to delete the objects.
const ANSWER: Duration = Duration::from_secs(5);

/// A capture in the cluster, of which parts may exist.
pub struct Session {
    jobs: Api<Job>,
    taps: Api<PodTap>,
    pods: Api<Pod>,
    /// Of its job and of its tap.
    name: String,
    may_exist: Cell<bool>,
}

/// How far its pod is.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Runs,
    /// It has ended, or is gone, and why.
    Ended(String),
}

impl Session {
    /// One of which nothing exists yet. Its name is known before anything is created, so that it can be deleted at any time.
    pub fn new(cluster: &Cluster) -> Self {
        let client = &cluster.client;
        Self {
            jobs: Api::namespaced(client.clone(), &cluster.namespace),
            taps: Api::namespaced(client.clone(), &cluster.namespace),
            pods: Api::namespaced(client.clone(), &cluster.namespace),
            name: unique_name("capture"),
            may_exist: Cell::new(false),
        }
    }

    /// Creates the job, and its tap as soon as its pod exists.
    pub async fn create(
        &self,
        cluster: &Cluster,
        installed_in: &str,
        (targets, mirror): (Targets, MirrorSpec),
        (format, limits): (Format, &Limits),
        requested_by: Option<&str>,
    ) -> Outcome<(String, Tap)> {
        let installation: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), installed_in);
        let map = installation.get(INSTALLATION).await.map_err(|error| Installation::missing(installed_in, error))?;
        let new = new_job(&self.name, &Installation::new(&map)?, format, limits, requested_by);
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        self.may_exist.set(true);
        let created = self.jobs.create(&parameters, &new).await;
        if matches!(created, Err(kube::Error::Api(_))) {
            self.may_exist.set(false);
        }
        let job = created?;
        let pod = self.pod_of(&job, limits.wait).await?;
        let tap = self.taps.create(&parameters, &new_tap(&job, &pod, targets, mirror, limits)).await?;
        Ok((pod, Tap::Namespaced(Box::new(tap))))
    }

    /// The name of the pod that a job has created. A label alone may be of another pod.
    async fn pod_of(&self, job: &Job, limit: Duration) -> Outcome<String> {
        let deadline = Instant::now() + limit;
        let mut pods = self.watch();
        while let Ok(Some(pod)) = timeout_at(deadline, pods.next()).await {
            let pod = pod.map_err(is_not_watched)?;
            if let Some(pod) = pod
                .filter(|pod| pod.owner_references().iter().any(|owner| Some(&owner.uid) == job.metadata.uid.as_ref()))
            {
                return Ok(pod.name_any());
            }
        }
        let (seconds, name) = (limit.as_secs(), &self.name);
        Err(Failure::new(
            Exit::TimedOut,
            format!("after {seconds} s, the job {name} has no pod: kubectl describe job {name}"),
        ))
    }

    /// Its pods, as they change. None: the watch is retried.
    fn watch(&self) -> BoxStream<'static, Result<Option<Pod>, watcher::Error>> {
        let config = watcher::Config::default().labels(&job::label(&self.name));
        let pods = watcher::watcher(self.pods.clone(), config).default_backoff().applied_objects();
        let retried = |pod| match pod {
            Ok(pod) => Ok(Some(pod)),
            Err(error @ (watcher::Error::InitialListFailed(_) | watcher::Error::WatchStartFailed(_))) => Err(error),
            Err(_) => Ok(None),
        };
        pods.map(retried).boxed()
    }

    /// Of its job and of its tap.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its pods.
    pub fn pods(&self) -> &Api<Pod> {
        &self.pods
    }

    /// Waits until its pod runs.
    pub async fn runs(&self, name: &str, limit: Duration, waiting: &mut Waiting) -> Outcome<()> {
        let deadline = Instant::now() + limit;
        let mut pods = self.watch();
        let mut last = "the pod".to_owned();
        while let Ok(Some(pod)) = timeout_at(deadline, pods.next()).await {
            let Some(pod) = pod.map_err(is_not_watched)?.filter(|pod| pod.name_any() == name) else { continue };
            match state(&pod) {
                ControlFlow::Break(Ok(())) => return Ok(()),
                ControlFlow::Break(Err(message)) => return Err(Failure::error(message)),
                ControlFlow::Continue(text) => {
                    waiting.reports(text.clone());
                    last = text;
                }
            }
        }
        Err(Failure::new(
            Exit::TimedOut,
            format!(
                "after {} s, the capture still waits for {last}: kubectl describe job {}",
                limit.as_secs(),
                self.name
            ),
        ))
    }

    /// Waits until it has no pod, or for so long. Returns whether it has none.
    pub async fn has_no_pod(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let labelled = job::pods(&self.name);
        while Instant::now() < deadline {
            match self.pods.list_metadata(&labelled).await {
                Ok(pods) if pods.items.is_empty() => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
            sleep(POLL).await;
        }
        false
    }

    /// How far a pod of it is.
    pub async fn state(&self, name: &str) -> Result<State, kube::Error> {
        let Some(pod) = self.pods.get_opt(name).await? else {
            return Ok(State::Ended(format!("the pod {name} was deleted")));
        };
        let status = pod.status.clone().unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(State::Ended(format!("the pod {name} was deleted")));
        }
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            let ended = status.container_statuses.into_iter().flatten().find_map(|status| status.state?.terminated);
            let why = status.reason.or(ended.and_then(|ended| ended.message.or(ended.reason))).unwrap_or_default();
            return Ok(State::Ended(format!("the pod {name} has ended: {}", why.trim())));
        }
        Ok(State::Runs)
    }

    /// Deletes tap and job, and returns whether it could. What cannot be deleted ends without it: the pod does when it is asked for nothing
    /// any more.
    pub async fn end(&self) -> bool {
        if !self.may_exist.get() {
            return true;
        }
        let mut message = "the API server does not answer".to_owned();
        let deleted = timeout(ANSWER, async {
            // An API server that has just started may know no rights yet.
            while let Err(error) = self.delete().await {
                message = Failure::from(error).message;
                sleep(POLL).await;
            }
        });
        let is_deleted = deleted.await.is_ok();
        if !is_deleted {
            warn(&format!("{} ends by itself within a minute: {message}", self.name));
        }
        is_deleted
    }

    async fn delete(&self) -> Result<(), kube::Error> {
        let delete = DeleteParams::background();
        let (tap, job) = tokio::join!(self.taps.delete(&self.name, &delete), self.jobs.delete(&self.name, &delete));
        let is_gone = |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 404);
        [tap.err(), job.err()].into_iter().flatten().find(|error| !is_gone(error)).map_or(Ok(()), Err)
    }
}

fn is_not_watched(error: watcher::Error) -> Failure {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => error.into(),
        error => Failure::error(with_causes(&error)),
    }
}

/// Whether a pod runs, cannot run, or what it waits for.
fn state(pod: &Pod) -> ControlFlow<Result<(), String>, String> {
    let name = pod.name_any();
    let status = pod.status.clone().unwrap_or_default();
    let container = status.container_statuses.into_iter().flatten().next();
    match container.and_then(|container| container.state) {
        Some(ContainerState { running: Some(_), .. }) => ControlFlow::Break(Ok(())),
        Some(ContainerState { terminated: Some(ended), .. }) => {
            let why = ended.message.or(ended.reason).unwrap_or_default();
            ControlFlow::Break(Err(format!(
                "the pod {name} has ended with exit code {}: {}",
                ended.exit_code,
                why.trim()
            )))
        }
        Some(ContainerState { waiting: Some(waiting), .. }) => {
            let reason = waiting.reason.unwrap_or_default();
            let message = waiting.message.map(|message| format!(": {message}")).unwrap_or_default();
            ControlFlow::Continue(format!("the pod {name} ({reason}{message})"))
        }
        _ => {
            let conditions = status.conditions.into_iter().flatten();
            let mut unscheduled =
                conditions.filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
            let why = unscheduled.find_map(|condition| condition.message);
            ControlFlow::Continue(format!("the pod {name} ({})", why.unwrap_or_else(|| "Pending".to_owned())))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state_of(pod: serde_json::Value) -> ControlFlow<Result<(), String>, String> {
        state(&serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn a_pod_runs_waits_or_has_ended() {
        let state = |state: serde_json::Value| {
            let pod = json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [
                {"name": "capture", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]}});
            state_of(pod)
        };
        assert_eq!(state(json!({"running": {}})), ControlFlow::Break(Ok(())));
        let waiting = state(json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}));
        assert_eq!(waiting, ControlFlow::Continue("the pod p (ImagePullBackOff: not found)".to_owned()));
        let ControlFlow::Break(Err(ended)) = state(json!({"terminated": {"exitCode": 1, "message": "in use\n"}}))
        else {
            panic!("it has ended");
        };
        assert_eq!(ended, "the pod p has ended with exit code 1: in use");
        let pending = state_of(json!({"metadata": {"name": "p"}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}}));
        assert_eq!(pending, ControlFlow::Continue("the pod p (0/2 nodes are available)".to_owned()));
    }
}
