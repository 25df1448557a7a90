//! The objects of a capture: created, waited for, and deleted.

use std::{cell::Cell, time::Duration};

use futures_util::{StreamExt as _, stream::BoxStream};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use podtap_api::{MirrorSpec, PodTap, Targets};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    blocks::Format,
    objects::{INSTALLATION, Installation, Limits, job as new_job, tap as new_tap},
};
use crate::{
    connection::Cluster,
    console::warn,
    exit::{Exit, Failure, Outcome, with_causes},
    job::{self, unique_name},
    pod_state::{State, state},
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
    /// Whether it is to run without this program, once this has been connected to it.
    is_kept: bool,
    stays: Cell<bool>,
    leaving: Notify,
}

impl Session {
    /// One of which nothing exists yet. Its name is known before anything is created, so that it can be deleted at any time.
    pub fn new(cluster: &Cluster, is_kept: bool) -> Self {
        Self::named(cluster, unique_name("capture"), is_kept)
    }

    /// One that runs, and its pod.
    pub async fn running(cluster: &Cluster, tap: &Tap, limit: Duration) -> Outcome<(Self, String)> {
        let session = Self::named(cluster, tap.name().to_owned(), true);
        session.may_exist.set(true);
        session.stays.set(true);
        let (_, job) = tap.job().ok_or_else(|| Failure::new(Exit::Refused, format!("{tap} has no Job")))?;
        let pod = session.pod_of(job, limit).await?;
        Ok((session, pod))
    }

    fn named(cluster: &Cluster, name: String, is_kept: bool) -> Self {
        let client = &cluster.client;
        Self {
            jobs: Api::namespaced(client.clone(), &cluster.namespace),
            taps: Api::namespaced(client.clone(), &cluster.namespace),
            pods: Api::namespaced(client.clone(), &cluster.namespace),
            name,
            may_exist: Cell::new(false),
            is_kept,
            stays: Cell::new(false),
            leaving: Notify::new(),
        }
    }

    /// Takes note that it has a client: from now on, it runs without one, if that was asked for.
    pub fn set_connected(&self) {
        self.stays.set(self.is_kept);
    }

    /// Takes note that it is over.
    pub fn set_over(&self) {
        self.stays.set(false);
    }

    /// Whether it runs without this program.
    pub fn stays(&self) -> bool {
        self.stays.get()
    }

    /// Has the stream be left where it is.
    pub fn leave(&self) {
        self.leaving.notify_one();
    }

    /// Waits for that.
    pub async fn left(&self) {
        self.leaving.notified().await;
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
        let pod = self.pod_of(&job.uid().unwrap_or_default(), limits.wait).await?;
        let tap = self.taps.create(&parameters, &new_tap(&job, &pod, targets, mirror, limits)).await?;
        Ok((pod, Tap::Namespaced(Box::new(tap))))
    }

    /// The name of the pod that a job has created. A label alone may be of another pod.
    async fn pod_of(&self, job: &str, limit: Duration) -> Outcome<String> {
        let deadline = Instant::now() + limit;
        let mut pods = self.watch();
        while let Ok(Some(pod)) = timeout_at(deadline, pods.next()).await {
            let pod = pod.map_err(is_not_watched)?;
            if let Some(pod) = pod.filter(|pod| pod.owner_references().iter().any(|owner| owner.uid == job)) {
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
                State::Runs => return Ok(()),
                State::Ended(message) => return Err(Failure::error(message)),
                State::Waits(text) => {
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
        let pod = self.pods.get_opt(name).await?;
        Ok(pod.as_ref().map_or_else(|| State::Ended(format!("the pod {name} was deleted")), state))
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
            let when = if self.is_kept { "at its deadline" } else { "within a minute" };
            warn(&format!("{} ends by itself {when}: {message}", self.name));
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
