//! `cleanup`: taps that have expired, and what captures have left whose client is gone.

use std::{collections::BTreeSet, fmt, time::Duration};

use clap::Args;
use k8s_openapi::{
    api::batch::v1::Job,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, ResourceExt as _,
    api::ListParams,
    runtime::wait::{await_condition, conditions::is_deleted},
};
use podtap_api::NodeTap;
use podtap_model::Reason;

use crate::{
    connection::{Cluster, Connection, duration},
    console::{Console, after, ask, counted, line, warn},
    delete::{finish, request},
    exit::{Exit, Failure, Outcome, page},
    installation::component,
    job,
    pods::{Surroundings, if_permitted},
    tap::{Kind, Tap, list, of_cluster},
};

/// Arguments of `cleanup`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Of all namespaces, and of every ClusterPodTap
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Tell what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for each tap. 0: do not wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    wait: Duration,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
}

/// Why a tap is not needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It has expired.
    Expired,
    /// The client of its capture is gone.
    Abandoned,
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Expired => "it has expired",
            Self::Abandoned => "the client of its capture is gone",
        })
    }
}

/// What is left.
#[derive(Default)]
struct Left {
    taps: Vec<(Tap, Why)>,
    jobs: Vec<Job>,
    /// Captures that run without their client, a message each.
    kept: Vec<String>,
    exit: Exit,
}

/// Deletes what is left.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let cluster = connection.open().await?;
    let Left { taps, jobs, kept, mut exit } = left(&cluster, arguments.all_namespaces).await?;
    for message in kept {
        console.progress(&message);
    }
    // Only the controller and the nodes themselves may change what is on a node.
    for node in nodes(&cluster).await? {
        let hint = page("install.md", "if-podtap-was-uninstalled-before-its-taps");
        warn(&format!("{node}. If that persists, clean up the node with tap-helper purge, see {hint}"));
        exit = after(exit, Ok(Exit::Partly));
    }
    let names: Vec<String> = taps
        .iter()
        .map(|(tap, why)| format!("{tap}: {why}"))
        .chain(jobs.iter().map(|job| format!("{}: its client is gone", called(job))))
        .collect();
    if names.is_empty() {
        console.progress("nothing is left");
        return Ok(exit);
    }
    if arguments.dry_run {
        for name in names {
            line(&name);
        }
        return Ok(exit);
    }
    let (of_taps, of_jobs) = (counted(taps.len(), "tap"), counted(jobs.len(), "Job"));
    ask(&format!("this deletes {of_taps} and {of_jobs}: {}", names.join("; ")), arguments.yes).await?;
    let mut deleted = Vec::new();
    // Only for the report.
    let around = Surroundings::read(&cluster).await.ok();
    // All of them at first: none keeps the others waiting. A Job comes after its taps, which are deleted with it.
    for (tap, why) in taps {
        // Meanwhile, its user may have given an expired one more time.
        let version = tap.meta().resource_version.clone().filter(|_| why == Why::Expired);
        match request(&cluster, &tap, version, around.as_ref()).await {
            Ok(nodes) => deleted.push((tap, nodes)),
            Err(failure) => exit = after(exit, Err(failure)),
        }
    }
    for job in jobs {
        exit = after(exit, delete(&cluster, &job, arguments.wait).await);
    }
    for (tap, nodes) in deleted {
        exit = after(exit, finish(&cluster, &tap, nodes.as_ref(), arguments.wait, console).await);
    }
    Ok(exit)
}

/// What is left in the namespace, or in the cluster, as far as the user may read it.
async fn left(cluster: &Cluster, all_namespaces: bool) -> Outcome<Left> {
    let namespace = Some(cluster.namespace.as_str()).filter(|_| !all_namespaces);
    let mut left = Left::default();
    let mut taps = list(cluster, Kind::PodTap, namespace).await?;
    if all_namespaces {
        match of_cluster(cluster).await? {
            Some(of_cluster) => taps.extend(of_cluster),
            None => left.unread("ClusterPodTaps"),
        }
    }
    let api: Api<Job> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let (mut ended, mut running) = (BTreeSet::new(), BTreeSet::new());
    match if_permitted(api.list(&component("capture")).await)? {
        None => left.unread("Jobs, which tell whether the client of a capture is gone"),
        Some(jobs) => {
            let now = Timestamp::now();
            for job in jobs.items {
                let uid = job.uid().unwrap_or_default();
                if is_over(&job, now) {
                    ended.insert(uid);
                    left.jobs.push(job);
                } else {
                    running.insert(uid);
                }
            }
        }
    }
    for tap in taps {
        let is_orphan = match tap.job() {
            Some((_, uid)) if ended.contains(uid) => true,
            Some((_, uid)) if running.contains(uid) => false,
            Some((name, uid)) => is_gone(cluster, tap.namespace(), name, uid).await?,
            None => false,
        };
        let has_expired = tap.ready().is_some_and(|ready| ready.reason == Reason::Expired.as_str());
        if is_orphan {
            left.taps.push((tap, Why::Abandoned));
        } else if has_expired {
            left.taps.push((tap, Why::Expired));
        } else if let Some(how) = tap.how_to_continue() {
            left.kept.push(format!("{tap} stays: it {how}"));
        }
    }
    Ok(left)
}

impl Left {
    fn unread(&mut self, what: &str) {
        warn(&format!("you may not list {what}"));
        self.exit = Exit::Partly;
    }
}

/// Whether there is no such Job any more. The garbage collector takes care of that, too, if it runs.
async fn is_gone(cluster: &Cluster, namespace: Option<&str>, name: &str, uid: &str) -> Outcome<bool> {
    let api: Api<Job> = Api::namespaced(cluster.client.clone(), namespace.unwrap_or_default());
    let job = if_permitted(api.get_metadata_opt(name).await)?;
    Ok(job.is_some_and(|job| job.is_none_or(|job| job.metadata.uid.as_deref() != Some(uid))))
}

/// Whether the Job of a capture has ended, or should have: its pod ends by itself when its client is gone. One whose pod is not Ready
/// may still have a client that waits, for example for its node.
fn is_over(job: &Job, now: Timestamp) -> bool {
    let status = job.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let has_ended = conditions.any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    let start = status.and_then(|status| status.start_time.as_ref());
    let limit = job.spec.as_ref().and_then(|spec| spec.active_deadline_seconds).map(SignedDuration::from_secs);
    let is_late = start.zip(limit).is_some_and(|(start, limit)| now.duration_since(start.0) > limit);
    has_ended || is_late
}

fn called(job: &Job) -> String {
    format!("Job {}/{}", job.namespace().unwrap_or_default(), job.name_any())
}

async fn delete(cluster: &Cluster, job: &Job, limit: Duration) -> Outcome {
    let (name, uid) = (job.name_any(), job.uid().unwrap_or_default());
    let api: Api<Job> = Api::namespaced(cluster.client.clone(), &job.namespace().unwrap_or_default());
    job::delete(&api, &name, &uid).await?;
    if !limit.is_zero() {
        let gone = tokio::time::timeout(limit, await_condition(api, &name, is_deleted(&uid))).await;
        let late = || Failure::new(Exit::TimedOut, format!("{} is not gone after {} s", called(job), limit.as_secs()));
        gone.map_err(|_| late())?.map_err(|error| Failure::error(error.to_string()))?;
    }
    line(&format!("job.batch/{name} deleted"));
    Ok(Exit::Done)
}

/// Nodes with something of PodTap that they could not remove, a message each; none if the user may not read that.
async fn nodes(cluster: &Cluster) -> Outcome<Vec<String>> {
    let api: Api<NodeTap> = Api::all(cluster.client.clone());
    let nodes = if_permitted(api.list(&ListParams::default()).await)?.map(|list| list.items).unwrap_or_default();
    let message = |node: &NodeTap| {
        let leftovers = &node.status.as_ref()?.leftovers;
        Some(format!("node {}: {}", node.name_any(), leftovers.first()?))
    };
    Ok(nodes.iter().filter_map(message).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn captures_that_are_over() {
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        let job = |status: Value| -> Job {
            let spec = json!({"activeDeadlineSeconds": 600, "template": {}});
            let metadata = json!({"name": "capture", "namespace": "shop"});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).expect("a Job")
        };
        let ended = |kind: &str| json!({"conditions": [{"type": kind, "status": "True"}]});
        let started = |start: &str| json!({"active": 1, "ready": 0, "startTime": start});
        for (status, expected) in [
            (json!({}), false),
            (ended("Complete"), true),
            (ended("Failed"), true),
            (ended("Suspended"), false),
            // Its node may be back, or still be created: the client waits.
            (started("2026-01-01T00:50:01Z"), false),
            (started("2026-01-01T00:49:59Z"), true),
        ] {
            assert_eq!(is_over(&job(status.clone()), now), expected, "{status}");
        }
    }
}
